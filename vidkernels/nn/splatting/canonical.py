"""Video as 3D Gaussians in front of a fixed orthographic camera, each with its own motion."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vidkernels import _check
from vidkernels import functional as vkf
from vidkernels.nn.splatting.explicit import ExplicitGaussianVideo, spread_pixels

__all__ = ["CanonicalGaussianVideo"]

# 4 powers of time and 4 harmonics of cosine and sine; entry 1 multiplies t itself.
_TERMS, _LINEAR = 12, 1


class CanonicalGaussianVideo(ExplicitGaussianVideo):
    """3D Gaussians in a fixed orthographic camera; motion of centre and rotation by polynomial and Fourier series.

        mu(t) = mu + sum_{k=0..3} p_k t^k + sum_{l=1..4} (a_l cos(l pi t) + b_l sin(l pi t)), the quaternion likewise
    Convention: see ExplicitGaussianVideo. The frame spans [-aspect, aspect] x [-1, 1]; z is depth and never divides.
    Args:
        means: [N, 3] positions mu.
        log_scales: [N, 3] or [N, 1], logarithms of the standard deviations.
        colors: [N, 3], 0..1.
        opacity: of all Gaussians at the start.
        velocity: [N, 3] or None: the coefficient of t at the start.
        labels: [N, L] logits or None.
    Raises:
        ValueError: shapes that do not fit.
    Source: Sun et al. 2024, arXiv 2406.13870, equations 1 to 4; differs: plain colour instead of spherical harmonics
        (an orthographic camera that stands still sees one side only).
    Example:
        >>> model = CanonicalGaussianVideo(torch.zeros(1, 3), torch.full((1, 3), -1.0), torch.ones(1, 3))
        >>> model(0.5, (8, 12)).shape
        torch.Size([8, 12, 3])
    """

    camera_model = "ortho"

    def __init__(
        self,
        means: Tensor,
        log_scales: Tensor,
        colors: Tensor,
        opacity: float = 0.9,
        velocity: Tensor | None = None,
        labels: Tensor | None = None,
    ):
        count = means.shape[0]
        if means.dim() != 2 or means.shape[1] != 3 or colors.shape != means.shape:
            _check.fail("CanonicalGaussianVideo", "expected [N, 3] means and colors.", means=means, colors=colors)
        motion = means.new_zeros(count, _TERMS, 3)
        if velocity is not None:
            motion[:, _LINEAR] = velocity
        turn = means.new_zeros(count, 4)
        turn[:, 0] = 1
        rows = {
            "means": means.clone(),
            "log_scales": log_scales.expand(count, 3).clone(),
            "quats": turn,
            "opacities": means.new_full((count,), math.log(opacity / (1 - opacity))),
            "colors": colors.clone(),
            "motion": motion,
            "spin": means.new_zeros(count, _TERMS, 4),
        }
        if labels is not None:
            rows["labels"] = labels.clone()
        super().__init__(rows)

    @classmethod
    def from_video(
        cls,
        video: Tensor,
        count: int,
        *,
        times: Sequence[float] | Tensor | None = None,
        depth: Tensor | None = None,
        flow: Tensor | None = None,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> CanonicalGaussianVideo:
        """Start from evenly spread pixels of random frames, with the colour, and depth and motion if known, of each.

        Args:     video: [T, H, W, 3] uint8.
                  times: [T] rising in [0, 1]; None: evenly.
                  depth: [T, H, W], the larger the farther, or None: all at one depth.
                  flow: [T - 1, 2, H, W] pixels from each frame to the next, or None: at rest.
                  labels: [T, H, W] int64 or None.
        """
        frames, height, width = video.shape[:3]
        device = video.device
        times = torch.linspace(0, 1, frames) if times is None else torch.as_tensor(times, dtype=torch.float32)
        times = times.to(device)
        frame = torch.randint(frames, (count,), generator=generator, device=device)
        row, column = spread_pixels(count, (height, width), generator, device)
        place = (torch.stack([column, row], 1) + 0.5 - torch.tensor([width, height], device=device) / 2) * (2 / height)
        # Distinct depths even without a prior, so that the order of compositing is never a tie.
        far = torch.rand(count, 1, generator=generator, device=device) * 0.01
        if depth is not None:
            low, high = depth.amin(), depth.amax()
            far = far + (2 * (depth - low) / (high - low).clamp(min=1e-6))[frame, row, column].unsqueeze(1)
        velocity = torch.zeros(count, 3, device=device)
        if flow is not None and frames > 1:
            step = frame.clamp(max=frames - 2)
            velocity[:, :2] = flow[step, :, row, column] * (2 / height) / (times[step + 1] - times[step])[:, None]
        means = torch.cat([place, far], 1) - velocity * times[frame, None]
        logits = None
        if labels is not None:
            kinds = int(labels.max()) + 1
            logits = 4.0 * torch.nn.functional.one_hot(labels[frame, row, column], kinds).float()
        # Neighbours one standard deviation apart leave no gaps.
        spacing = math.sqrt(4 * width / height / count)
        return cls(
            means,
            means.new_full((count, 1), math.log(0.8 * spacing)),
            video[frame, row, column].float() / 255,
            velocity=velocity,
            labels=logits,
        )

    def centres(self, times: Tensor) -> Tensor:
        return self.gaussians["means"] + vkf.motion_eval(self.gaussians["motion"], times, "polynomial_fourier")

    def quaternions(self, time: Tensor) -> Tensor:
        return self.gaussians["quats"] + vkf.motion_eval(self.gaussians["spin"], time, "polynomial_fourier")[0]

    def views(self, times: Tensor) -> tuple[Tensor, Tensor]:
        still = torch.eye(4, dtype=times.dtype, device=times.device)
        return still.expand(len(times), 4, 4), torch.ones_like(times)
