"""Synthetic clips whose masks, identities, flow, depth and boxes are known exactly."""

from __future__ import annotations

import math

import torch

from .._check import fail

_SHAPES = ("disc", "square", "triangle")
_MODES = ("constant", "gravity", "bounce")
_WAVES = 4  # sine waves per texture
_RESTITUTION = 0.7  # speed kept by a bounce


class SceneEngine:
    """Make clips of textured sprites that move over a still textured background, with exact ground truth.

        sprite k at frame t has its centre at p_k(t); a pixel at x shows texture_k(x - p_k(t)) if x - p_k(t) is inside
        its shape and no nearer sprite covers it. Textures are sums of sine waves, so motion is exact below the pixel.
        constant: p = p0 + v t, inside the frame where it fits
        gravity : p = p0 + v t + g t^2 / 2, one g for all clips (a clock: playback speed can be told), launched upwards
        bounce  : as gravity, but floor and walls give back 0.7 of the speed (time's arrow can be told)
    Convention: pixel centres at whole numbers, (x, y), y down; frames are the unit of time. Appearance (shape, texture,
    background, depth) and motion are drawn separately, so that either can be held while the other varies.

    Args:     frames, size (height, width) or one number, sprites, mode: as above.
              radius: range of sprite radii as a part of the shorter side.
              speed: range of speeds in pixels per frame (in gravity and bounce: of the sideways speed).
              gravity: pixels per frame^2; None: 0.004 of the height.
    Example:
        >>> import torch
        >>> from vidkernels.data import SceneEngine
        >>> clip = SceneEngine(frames=4, size=32, sprites=2)(torch.Generator().manual_seed(0))
        >>> clip["video"].shape, clip["flow"].shape
        (torch.Size([4, 32, 32, 3]), torch.Size([3, 2, 32, 32]))
    """

    def __init__(
        self,
        frames: int = 16,
        size: int | tuple[int, int] = 128,
        sprites: int = 3,
        mode: str = "constant",
        *,
        radius: tuple[float, float] = (0.1, 0.2),
        speed: tuple[float, float] = (1.0, 4.0),
        gravity: float | None = None,
    ):
        self.frames, self.sprites, self.mode = frames, sprites, mode
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.radius, self.speed = radius, speed
        self.gravity = 0.004 * self.size[0] if gravity is None else gravity
        if mode not in _MODES:
            fail("SceneEngine", f"expected `mode` of {', '.join(_MODES)}, got {mode!r}.")
        if frames < 1 or sprites < 1 or min(self.size) < 1 or not 0 < radius[0] <= radius[1]:
            fail(
                "SceneEngine",
                "expected at least one frame, one sprite and one pixel, and radii rising above 0.",
                frames=frames,
                sprites=sprites,
                size=self.size,
                radius=radius,
            )

    def __call__(
        self, generator: torch.Generator | None = None, *, appearance: torch.Generator | None = None
    ) -> dict[str, torch.Tensor]:
        """Make one clip.

        Args:     generator: draws everything; None uses torch's global one.
                  appearance: draws shapes, textures, background and depths instead; `generator` then draws sizes and
                      motion only.
        Returns:  dict, with K sprites and T frames:
                  video [T, H, W, 3] uint8; ids [T, H, W] int64, 0 = background, k + 1 = sprite k;
                  masks [K, T, H, W] bool, the pixels where sprite k is seen;
                  flow [T - 1, 2, H, W] float32, from a pixel of frame t to where the thing seen there is at t + 1;
                  depth [T, H, W] float32, background 1; boxes [K, T, 4] int64 (x0, y0, x1, y1) around the mask, ends
                  not included, 0 where unseen; visible [K, T] float32, the part of the sprite's pixels that is seen;
                  shape [K] int64 (0 disc, 1 square, 2 triangle); position [K, T, 2] and radius [K] float64.
        """
        looks = generator if appearance is None else appearance
        count = self.sprites
        low, high = (part * min(self.size) for part in self.radius)
        radius = _uniform(low, high, (count,), generator)
        position = self._paths(radius, generator)
        shape = torch.randint(len(_SHAPES), (count,), generator=looks)
        # Distinct depths: a shuffled ladder, so that which of two sprites is nearer is never a tie.
        depth = (torch.randperm(count, generator=looks) + 1).double() / (count + 1)
        textures = [_Texture(looks) for _ in range(count + 1)]
        ids, video, covered = self._paint(position, radius, shape, depth, textures)
        masks = ids == torch.arange(1, count + 1).view(-1, 1, 1, 1)
        # Row 0 of each table is the background: it stays, at depth 1.
        steps = torch.cat([torch.zeros(1, self.frames - 1, 2), position.diff(dim=1).float()])
        when = torch.arange(self.frames - 1).view(-1, 1, 1)
        depths = torch.cat([torch.ones(1), depth.float()])
        return {
            "video": video,
            "ids": ids,
            "masks": masks,
            "flow": steps[ids[:-1], when].permute(0, 3, 1, 2).contiguous(),
            "depth": depths[ids],
            "boxes": _boxes(masks),
            "visible": masks.sum((2, 3)) / covered.clamp(min=1),
            "shape": shape,
            "position": position,
            "radius": radius,
        }

    # -- motion ------------------------------------------------------------------------------------------------------
    def _paths(self, radius: torch.Tensor, generator) -> torch.Tensor:
        """Centres [K, T, 2] in float64."""
        count, last = self.sprites, self.frames - 1
        side = torch.tensor([self.size[1], self.size[0]], dtype=torch.float64)
        pace = _uniform(*self.speed, (count,), generator)
        t = torch.arange(self.frames, dtype=torch.float64).view(1, -1, 1)
        if self.mode == "constant":
            angle = _uniform(0, 2 * math.pi, (count,), generator)
            velocity = torch.stack([angle.cos(), angle.sin()], 1) * pace[:, None]
            path = velocity[:, None] * t
        else:
            way = torch.randint(2, (count,), generator=generator) * 2 - 1
            launch = _uniform(0.25, 0.75, (count,), generator)
            if self.mode == "gravity":  # the top of the path between a quarter and three quarters of the clip
                rise = launch * self.gravity * last
                fall = torch.tensor([0.0, self.gravity / 2], dtype=torch.float64)
                path = torch.stack([way * pace, -rise], 1)[:, None] * t + fall * t * t
            else:  # up to a quarter of the frame upwards; floor and walls keep the rest inside
                top = launch * self.size[0] / 4
                rise = (2 * self.gravity * top).sqrt()
                path = torch.stack([torch.zeros(count, 2), torch.stack([torch.zeros(count), -top], 1)], 1)
            velocity = torch.stack([way * pace, -rise], 1)
        # Any start that keeps the whole path inside is as likely; a path too long for the frame is centred on it.
        low = radius[:, None] - path.amin(1)
        high = side - 1 - radius[:, None] - path.amax(1)
        draw = _uniform(0, 1, (count, 2), generator)
        start = torch.where(high > low, low + (high - low) * draw, (low + high) / 2)
        if self.mode == "bounce":
            return self._bounce(start, velocity, radius[:, None], side)
        return start[:, None] + path

    def _bounce(self, at, velocity, radius, side) -> torch.Tensor:
        pull = torch.tensor([0.0, self.gravity], dtype=torch.float64)
        low, high = radius.expand(-1, 2).clone(), side - 1 - radius
        low[:, 1] = -math.inf  # no ceiling
        path = [at.clamp(min=low, max=high)]
        for _ in range(self.frames - 1):
            at = path[-1] + velocity + pull / 2
            velocity = velocity + pull
            for wall, beyond in ((high, at > high), (low, at < low)):
                at = torch.where(beyond, wall - _RESTITUTION * (at - wall), at)
                velocity = torch.where(beyond, -_RESTITUTION * velocity, velocity)
            path.append(at.clamp(min=low, max=high))
        return torch.stack(path, 1)

    # -- pictures ----------------------------------------------------------------------------------------------------
    def _paint(self, position, radius, shape, depth, textures):
        """Far to near, each sprite as one patch per frame; returns ids, video and pixels per sprite and frame."""
        (height, width), frames = self.size, self.frames
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        video = textures[0](x.float(), y.float()).expand(frames, -1, -1, -1).reshape(-1, 3).clone()
        ids = torch.zeros(frames * height * width, dtype=torch.int64)
        covered = torch.zeros(self.sprites, frames, dtype=torch.int64)
        offset = torch.arange(frames).view(-1, 1, 1) * (height * width)
        for k in depth.argsort(descending=True).tolist():
            reach = math.ceil(float(radius[k])) + 1
            span = torch.arange(-reach, reach + 1)
            corner = position[k].round().long()
            x = (corner[:, 0, None, None] + span.view(1, 1, -1)).expand(-1, len(span), -1)
            y = (corner[:, 1, None, None] + span.view(1, -1, 1)).expand(-1, -1, len(span))
            # Subtract in float64: far from the origin float32 would round the sub-pixel part of the position.
            u = (x - position[k, :, 0, None, None]).float()
            v = (y - position[k, :, 1, None, None]).float()
            inside = _inside(int(shape[k]), u / float(radius[k]), v / float(radius[k]))
            covered[k] = inside.sum((1, 2))
            seen = inside & (x >= 0) & (x < width) & (y >= 0) & (y < height)
            place = (offset + y * width + x)[seen]
            ids[place] = k + 1
            video[place] = textures[k + 1](u[seen], v[seen])
        video = (video * 255).round_().clamp_(0, 255).to(torch.uint8)
        return ids.view(frames, height, width), video.view(frames, height, width, 3), covered


class _Texture:
    """colour(u, v) = base + sum over waves of amplitude * sin(2 pi f . (u, v) + phase), kept within 0 .. 1."""

    def __init__(self, generator):
        angle, cycles, phase = (torch.rand(_WAVES, generator=generator) for _ in range(3))
        cycles = 0.02 + 0.08 * cycles  # per pixel: waves of 10 to 50 pixels
        self.fx, self.fy = (2 * math.pi * cycles * f(2 * math.pi * angle) for f in (torch.cos, torch.sin))
        self.phase = 2 * math.pi * phase
        self.base = 0.3 + 0.4 * torch.rand(3, generator=generator)
        self.amplitude = (torch.rand(_WAVES, 3, generator=generator) - 0.5) * (0.6 / _WAVES)

    def __call__(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        waves = torch.sin(u[..., None] * self.fx + v[..., None] * self.fy + self.phase)
        return waves @ self.amplitude + self.base


def _inside(shape: int, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Whether (u, v), in radii, lies in the shape; square and triangle are inscribed in the unit circle."""
    if shape == 0:
        return u * u + v * v <= 1
    if shape == 1:
        return torch.maximum(u.abs(), v.abs()) <= math.sqrt(0.5)
    return (v <= 0.5) & (math.sqrt(3) * u.abs() - v <= 1)  # point up


def _boxes(masks: torch.Tensor) -> torch.Tensor:
    ends = []
    for axis in (2, 3):  # onto x, onto y
        line = masks.any(axis).byte()
        first, last = line.argmax(-1), line.shape[-1] - line.flip(-1).argmax(-1)
        ends.append((first, last * line.amax(-1)))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1], -1)


def _uniform(low: float, high: float, shape, generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
