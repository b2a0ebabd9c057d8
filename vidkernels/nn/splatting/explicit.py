"""What every explicit Gaussian video can do: render at any time and size, read out, select and edit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels import _check
from vidkernels import functional as vkf

__all__ = ["ExplicitGaussianVideo"]

# Where less than this is covered, an average over Gaussians says nothing.
_THIN = 1e-4
_NEAR, _FAR = 0.01, 1e10


@dataclass(frozen=True)
class Rendering:
    """One rendered moment.

    rgb [H, W, 3] composited, not clamped; alpha [H, W] how much is covered; depth [H, W] mean over what is seen;
    flow [F, 2, H, W] pixels that the thing seen moves until each asked time; labels [H, W, L] composited label
    probabilities; means2d [1, N, 2] the centres in pixels, part of the graph (its gradient steers densification).
    """

    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    flow: Tensor | None
    labels: Tensor | None
    means2d: Tensor


class ExplicitGaussianVideo(nn.Module):
    """A video as Gaussians that move through a scene: what its kinds have in common.

    Convention: time 0 is the first frame, 1 the last. Scene units: half the frame's height, origin in the frame's
        middle, y down, z away from the viewer. Pixels are (x, y) with the first pixel's centre at (0.5, 0.5), of a
        frame of the size (height, width) asked for.
    A subclass gives `centres`, `quaternions` and `views`.
    Args:
        gaussians: rows are Gaussians: `log_scales` [N, 3], `quats` [N, 4], `opacities` [N] logits, `colors` [N, 3],
            optionally `labels` [N, L] logits, and the subclass's own.
    Raises:
        ValueError: masks, times or selections that do not fit.
    Example:
        >>> from vidkernels.nn import CanonicalGaussianVideo
        >>> video = CanonicalGaussianVideo(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3))
        >>> video.edited(torch.tensor([True, False]), remove=True).count
        1
    """

    # The entry of `gaussians` that a shift is added to: [N, 3], or [N, K, 3] control points.
    centre = "means"
    camera_model = "pinhole"

    def __init__(self, gaussians: dict[str, Tensor]):
        super().__init__()
        self.gaussians = nn.ParameterDict({name: nn.Parameter(value) for name, value in gaussians.items()})

    # -- what a subclass gives ---------------------------------------------------------------------------------------
    def centres(self, times: Tensor) -> Tensor:
        """Scene positions [T, N, 3] at times [T]."""
        raise NotImplementedError

    def quaternions(self, time: Tensor) -> Tensor:
        """Orientations [N, 4] (w, x, y, z) at times [1], of any length."""
        raise NotImplementedError

    def views(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """World-to-camera matrices [T, 4, 4] and focal lengths [T] in half frame heights."""
        raise NotImplementedError

    # -- geometry ----------------------------------------------------------------------------------------------------
    @property
    def count(self) -> int:
        return self.gaussians["opacities"].shape[0]

    def _times(self, times: float | Sequence[float] | Tensor) -> Tensor:
        like = self.gaussians["opacities"]
        return torch.as_tensor(times, dtype=like.dtype, device=like.device).reshape(-1)

    def _state(self, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scene positions, camera matrices and focal lengths, each evaluated once for all times."""
        return self.centres(times), *self.views(times)

    def screen(self, times: float | Sequence[float] | Tensor, size: tuple[int, int]) -> Tensor:
        """Centres as pixels and depth: [T, N, 3] of (x, y, z) in frames of `size`."""
        return self._on_screen(self._state(self._times(times)), size)

    def _on_screen(self, state: tuple[Tensor, Tensor, Tensor], size: tuple[int, int]) -> Tensor:
        places, matrices, focal = state
        seen = places @ matrices[:, :3, :3].transpose(1, 2) + matrices[:, None, :3, 3]
        plane, depth = seen[..., :2], seen[..., 2:]
        if self.camera_model == "pinhole":
            plane = plane / depth.clamp(min=_NEAR)
        middle = torch.tensor([size[1], size[0]], dtype=seen.dtype, device=seen.device) / 2
        return torch.cat([plane * focal[:, None, None] * (size[0] / 2) + middle, depth], -1)

    def unproject(self, pixels: Tensor, depth: Tensor, time: float, size: tuple[int, int]) -> Tensor:
        """Scene points [P, 3] seen at `pixels` [P, 2] and `depth` [P] at one time."""
        matrices, focal = self.views(self._times(time))
        middle = torch.tensor([size[1], size[0]], dtype=pixels.dtype, device=pixels.device) / 2
        plane = (pixels - middle) / (focal * size[0] / 2)
        if self.camera_model == "pinhole":
            plane = plane * depth[:, None]
        seen = torch.cat([plane, depth[:, None]], 1)
        return (seen - matrices[0, :3, 3]) @ torch.linalg.inv(matrices[0, :3, :3]).T

    def _splat(
        self,
        time: Tensor,
        state: tuple[Tensor, Tensor, Tensor],
        size: tuple[int, int],
        attributes: Tensor,
        eye: tuple[float, float] = (0.0, 0.0),
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Composite any attributes [N, C] at the first time of `state`, which is `time`.

        Returns:  image [H, W, C], alpha [H, W], centres in pixels [1, N, 2].
        """
        (height, width), rows = size, self.gaussians
        places, matrices, focal = state[0][0], state[1][:1], state[2]
        if eye[0]:
            # Seen from beside, keeping the plane at depth eye[1] in place: a shear along the line of sight.
            shear = torch.eye(4, dtype=time.dtype, device=time.device)
            shear[0, 2] = eye[0] if self.camera_model == "ortho" else eye[0] / eye[1]
            shear[0, 3] = -eye[1] * shear[0, 2]
            matrices = shear @ matrices
        half = focal[0] * height / 2
        zero, one = torch.zeros_like(half), torch.ones_like(half)
        intrinsics = torch.stack([half, zero, one * width / 2, zero, half, one * height / 2, zero, zero, one])
        image, alpha, meta = vkf.rasterization(
            places,
            self.quaternions(time),
            rows["log_scales"].exp(),
            rows["opacities"].sigmoid(),
            attributes,
            matrices,
            intrinsics.view(1, 3, 3),
            width,
            height,
            # An orthographic view has no eye to be behind of.
            near_plane=_NEAR if self.camera_model == "pinhole" else -_FAR,
            far_plane=_FAR,
            camera_model=self.camera_model,
        )
        return image[0], alpha[0, ..., 0], meta["means2d"]

    # -- rendering ---------------------------------------------------------------------------------------------------
    def render(
        self,
        time: float,
        size: tuple[int, int],
        *,
        flow_to: float | Sequence[float] | Tensor | None = None,
        eye: tuple[float, float] = (0.0, 0.0),
    ) -> Rendering:
        """Everything there is to see at one time, in one pass.

        Args:     time: any moment in [0, 1].
                  size: (height, width) of the picture, whatever the video's own was.
                  flow_to: times until which to render the motion of each pixel, or None.
                  eye: (offset to the right in scene units, depth that stays in place), for a stereo pair.
        Returns:  Rendering. Differentiable in all parameters.
        """
        now = self._times(time)
        state = self._state(now if flow_to is None else torch.cat([now, self._times(flow_to)]))
        start, *_ = places = self._on_screen(state, size)
        parts = [self.gaussians["colors"], start[:, 2:]]
        if flow_to is not None:
            moved = places[1:, :, :2] - start[:, :2]
            parts.append(moved.permute(1, 0, 2).flatten(1))
        if "labels" in self.gaussians:
            parts.append(self.gaussians["labels"].softmax(1))
        image, alpha, means2d = self._splat(now, state, size, torch.cat(parts, 1), eye)
        split = list(image.split([part.shape[1] for part in parts], 2))
        covered = alpha.clamp(min=_THIN).unsqueeze(2)
        flow = None
        if flow_to is not None:
            flow = (split[2] / covered).unflatten(2, (-1, 2)).permute(2, 3, 0, 1)
        return Rendering(
            rgb=split[0],
            alpha=alpha,
            depth=(split[1] / covered).squeeze(2),
            flow=flow,
            labels=split[-1] if "labels" in self.gaussians else None,
            means2d=means2d,
        )

    def forward(self, time: float, size: tuple[int, int]) -> Tensor:
        """The picture at one time: [H, W, 3], 0 to 1 where the fit is good, not clamped."""
        now = self._times(time)
        return self._splat(now, self._state(now), size, self.gaussians["colors"])[0]

    @torch.no_grad()
    def video(self, times: Sequence[float] | Tensor, size: tuple[int, int]) -> Tensor:
        """Frames [T, H, W, 3] uint8 at any times."""
        return torch.stack([_to_uint8(self(float(time), size)) for time in self._times(times)])

    @torch.no_grad()
    def flow(self, time: float, other: float, size: tuple[int, int]) -> Tensor:
        """Optical flow [2, H, W]: how far, in pixels, what is seen at `time` has gone at `other`."""
        return self.render(time, size, flow_to=other).flow[0]

    @torch.no_grad()
    def depth(self, time: float, size: tuple[int, int]) -> Tensor:
        """Depth [H, W] in scene units; the larger, the farther."""
        return self.render(time, size).depth

    @torch.no_grad()
    def stereo(
        self, time: float, size: tuple[int, int], baseline: float, focus: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """A left and a right picture, uint8 [H, W, 3].

        Args:     baseline: distance of the eyes in scene units.
                  focus: the depth that lies in the screen's plane; None: the median of the depths seen.
        """
        focus = float(self.depth(time, size).median()) if focus is None else focus
        pair = (self.render(time, size, eye=(side * baseline / 2, focus)).rgb for side in (-1, 1))
        left, right = (_to_uint8(picture) for picture in pair)
        return left, right

    @torch.no_grad()
    def tracks(
        self,
        points: Tensor,
        time: float,
        times: Sequence[float] | Tensor,
        size: tuple[int, int],
        *,
        tolerance: float = 0.05,
    ) -> tuple[Tensor, Tensor]:
        """Follow what is seen at some pixels through time, also where it is hidden.

        Args:     points: [P, 2] pixels (x, y) at `time`.
                  times: [T] when to report.
                  tolerance: a point counts as seen if nothing is nearer than it by more than this part of the
                      range of the Gaussians' depths.
        Returns:  positions [T, P, 2] in pixels; visible [T, P] bool, False outside the frame as well.
        """
        times, now = self._times(times), self._times(time)
        points = points.to(times)
        state = self._state(torch.cat([now, times]))
        here, *_ = places = self._on_screen(state, size)
        attributes = torch.cat([here[:, 2:], (places[1:] - here).permute(1, 0, 2).flatten(1)], 1)
        image, alpha, _ = self._splat(now, state, size, attributes)
        values = _sample(image / alpha.clamp(min=_THIN).unsqueeze(2), points)
        steps = values[:, 1:].unflatten(1, (-1, 3)).permute(1, 0, 2)
        positions = points + steps[..., :2]
        depth = values[:, 0] + steps[..., 2]
        slack = tolerance * float(here[:, 2].max() - here[:, 2].min())
        visible = [
            (_sample(self.depth(float(when), size).unsqueeze(2), where)[:, 0] >= far - slack) & _inside(where, size)
            for when, where, far in zip(times, positions, depth)
        ]
        return positions, torch.stack(visible)

    # -- selecting and editing ---------------------------------------------------------------------------------------
    @torch.no_grad()
    def select_by_mask(
        self,
        masks: Tensor,
        times: float | Sequence[float] | Tensor,
        share: float = 0.5,
        *,
        tolerance: float = 0.15,
    ) -> Tensor:
        """Gaussians [N] bool whose centres lie in masks, in front of or on what is seen there, not behind it.

        Args:     masks: [H, W] or [T, H, W] bool.
                  times: one time for each mask.
                  share: in more than this part of the given moments at which it is in the frame and not behind.
                  tolerance: what is farther than what is seen by less than this part of the range of depths still
                      belongs to it.
        """
        masks, times = masks.reshape(-1, *masks.shape[-2:]), self._times(times)
        if len(masks) != len(times) or masks.dtype is not torch.bool:
            _check.fail("select_by_mask", "expected bool masks and one time for each.", masks=masks, times=times)
        size = (masks.shape[1], masks.shape[2])
        votes, chances = torch.zeros_like(self.gaussians["opacities"]), torch.zeros_like(self.gaussians["opacities"])
        for mask, time, place in zip(masks, times, self.screen(times, size)):
            column, row = place[:, :2].floor().long().unbind(1)
            inside = _inside(place[:, :2], size)
            column, row = column.clamp(0, size[1] - 1), row.clamp(0, size[0] - 1)
            slack = tolerance * (place[:, 2].max() - place[:, 2].min())
            counts = inside & (place[:, 2] <= self.depth(float(time), size)[row, column] + slack)
            chances += counts
            votes += counts & mask[row, column]
        return votes > share * chances

    def select_by_label(self, label: int) -> Tensor:
        """Gaussians [N] bool whose most likely label this is, seen or hidden."""
        if "labels" not in self.gaussians:
            _check.fail("select_by_label", "these Gaussians carry no labels.", "fit them with a label prior.")
        return self.gaussians["labels"].argmax(1) == label

    @torch.no_grad()
    def select_by_box(self, box: tuple[float, float, float, float], time: float, size: tuple[int, int]) -> Tensor:
        """Gaussians [N] bool, seen or hidden, with their centre in the box (x0, y0, x1, y1) of pixels at `time`."""
        place = self.screen(time, size)[0, :, :2]
        corners = place.new_tensor(box)
        return ((place >= corners[:2]) & (place < corners[2:])).all(1)

    @torch.no_grad()
    def select_by_depth(self, near: float, far: float, time: float) -> Tensor:
        """Gaussians [N] bool, seen or hidden, with near <= depth < far at `time`."""
        depth = self.screen(time, (2, 2))[0, :, 2]
        return (depth >= near) & (depth < far)

    @torch.no_grad()
    def edited(
        self,
        selection: Tensor,
        *,
        color: Callable[[Tensor], Tensor] | Sequence[float] | None = None,
        shift: Sequence[float] | None = None,
        remove: bool = False,
    ) -> ExplicitGaussianVideo:
        """A copy in which some Gaussians differ, at all times.

        Args:     selection: [N] bool.
                  color: (r, g, b) in 0..1, or a function of the selected colors [M, 3].
                  shift: (x, y, z) in scene units, added to their whole paths.
                  remove: take them out.
        """
        if selection.shape != (self.count,) or selection.dtype is not torch.bool:
            _check.fail("edited", f"expected `selection` of {self.count} bools.", selection=selection)
        other = copy.deepcopy(self)
        rows = other.gaussians
        if color is not None:
            chosen = rows["colors"][selection]
            new = color(chosen) if callable(color) else chosen.new_tensor(color).expand_as(chosen)
            rows["colors"][selection] = new
        if shift is not None:
            rows[self.centre][selection] += rows[self.centre].new_tensor(shift)
        if remove:
            for name, value in rows.items():
                rows[name] = nn.Parameter(value[~selection])
        return other


def spread_pixels(
    count: int, size: tuple[int, int], generator: torch.Generator | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rows and columns [N] of pixels that cover a frame more evenly than chance: fewer holes to start from."""
    # The R2 sequence: multiples of the powers of the inverse plastic number, modulo 1, from a random start.
    step = torch.tensor([0.7548776662466927, 0.5698402909980532], dtype=torch.float64, device=device)
    start = torch.rand(2, generator=generator, dtype=torch.float64, device=device)
    place = (start + torch.arange(count, device=device)[:, None] * step) % 1
    row, column = (place * torch.tensor(size, device=device)).long().unbind(1)
    return row, column


def _sample(image: Tensor, points: Tensor) -> Tensor:
    """Bilinear values [P, C] of an image [H, W, C] at pixels [P, 2]; the border goes on outside."""
    size = torch.tensor([image.shape[1], image.shape[0]], dtype=points.dtype, device=points.device)
    grid = (2 * points / size - 1).view(1, 1, -1, 2)
    values = F.grid_sample(image.permute(2, 0, 1)[None], grid, padding_mode="border", align_corners=False)
    return values[0, :, 0].T


def _inside(points: Tensor, size: tuple[int, int]) -> Tensor:
    return ((points >= 0) & (points < points.new_tensor([size[1], size[0]]))).all(-1)


def _to_uint8(image: Tensor) -> Tensor:
    return (image * 255).round().clamp(0, 255).to(torch.uint8)
