"""Pictures and clips as 2D Gaussians added up: plain modules that any optimiser can fit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vidkernels import _check, functional

__all__ = ["GaussianImage", "GaussianVideo"]

_FLOOR = 0.5  # added to the diagonal of the Cholesky factor, in pixels
_MOTIONS = ("spacetime", "bspline", "polynomial_fourier")


def _seeds(count: int, size: tuple[int, int], channels: int, generator: torch.Generator | None):
    """Positions over the whole picture, Gaussians as large as their distance, faint colours."""
    height, width = size
    means = torch.rand(count, 2, generator=generator) * torch.tensor([float(width), float(height)])
    spacing = max(0.55 * math.sqrt(height * width / count) - _FLOOR, 0.05)
    colors = torch.rand(count, channels, generator=generator) / (2 * math.pi * 0.55**2)
    return means, spacing, colors


def _checked_size(name: str, count: int, size: tuple[int, int], channels: int) -> tuple[int, int]:
    height, width = (int(n) for n in size)
    if count < 1 or height < 1 or width < 1 or not 1 <= channels <= 512:
        _check.fail(name, "expected a count and a size (H, W) of at least 1, and 1 to 512 channels.",
                    count=count, size=size, channels=channels)  # fmt: skip
    return height, width


def _resized(means: Tensor, cholesky: Tensor, old: tuple[int, int], new: tuple[int, int]) -> tuple[Tensor, Tensor]:
    sy, sx = new[0] / old[0], new[1] / old[1]
    return means * means.new_tensor([sx, sy]), cholesky * cholesky.new_tensor([sx, sy, sy])


class GaussianImage(nn.Module):
    """One picture as N Gaussians: image = sum_i colors_i exp(-sigma_i), with no order and no opacity.

    The Cholesky factor is (l11 + 0.5, l21, l22 + 0.5) of the parameter `cholesky`, so that no Gaussian falls between
    the pixels.
    Args:
        count: N.
        size: (H, W) of the picture in pixels.
        channels: C.
        generator: of the random start; None takes torch's.
    Returns:
        image: forward() gives [H, W, C], not clamped; render(size) at any other size.
    Raises:
        ValueError: a count, size or number of channels below 1.
    Source: Zhang et al. 2024, arXiv 2403.08551, section 3; differs: positions are in
        pixels, without a tanh around them.
    Example:
        >>> model = GaussianImage(50, (12, 16))
        >>> model().shape, model.render((24, 32)).shape
        (torch.Size([12, 16, 3]), torch.Size([24, 32, 3]))
    """

    def __init__(self, count: int, size: tuple[int, int], channels: int = 3, generator: torch.Generator | None = None):
        super().__init__()
        self.size = _checked_size("GaussianImage", count, size, channels)
        means, spacing, colors = _seeds(count, self.size, channels, generator)
        self.means = nn.Parameter(means)
        self.cholesky = nn.Parameter(torch.tensor([spacing, 0.0, spacing]).repeat(count, 1))
        self.colors = nn.Parameter(colors)

    @classmethod
    def from_image(cls, image: Tensor, count: int, generator: torch.Generator | None = None) -> GaussianImage:
        """A start from a picture [H, W, C], uint8 or floats 0..1: most Gaussians where it has detail."""
        _check.is_tensor("GaussianImage.from_image", "image", image, "[H, W, C]")
        if image.ndim != 3 or not (image.is_floating_point() or image.dtype is torch.uint8):
            _check.fail("GaussianImage.from_image", "expected `image` [H, W, C] as uint8 or floats.", image=image)
        image = image.float() / 255 if image.dtype is torch.uint8 else image.float()
        if not image.isfinite().all():
            _check.fail("GaussianImage.from_image", "`image` holds NaN or infinity.", image=image)
        height, width, channels = image.shape
        model = cls(count, (height, width), channels, generator)
        image = image.cpu()  # where the generator and the new model are
        x = image.mean(-1)
        slope = torch.zeros_like(x)
        slope[:, 1:] += x.diff(dim=1).abs()
        slope[1:] += x.diff(dim=0).abs()
        weight = 0.7 * slope / slope.sum().clamp(min=1e-12) + 0.3 / slope.numel()
        place = torch.multinomial(weight.flatten(), count, replacement=True, generator=generator)
        jitter = torch.rand(count, 2, generator=generator)
        reach = (0.55 / (count * weight.flatten()[place]).sqrt() - _FLOOR).clamp(0.05, 30)
        with torch.no_grad():
            model.means.copy_(torch.stack([place % width, place // width], 1) + jitter)
            model.cholesky[:, 0] = reach
            model.cholesky[:, 2] = reach
            model.colors.copy_(image.flatten(0, 1)[place] / (2 * math.pi * 0.55**2))
        return model

    def forward(self) -> Tensor:
        return self.render()

    def render(self, size: tuple[int, int] | None = None) -> Tensor:
        """The picture [H, W, C] at `size` (None: its own)."""
        cholesky = self.cholesky + self.cholesky.new_tensor([_FLOOR, 0.0, _FLOOR])
        means, size = self.means, self.size if size is None else size
        if size != self.size:
            means, cholesky = _resized(means, cholesky, self.size, size)
        return functional.splat_2d(means, cholesky, self.colors, size=size)

    def extra_repr(self) -> str:
        return f"{self.means.shape[0]} Gaussians, size={self.size}, channels={self.colors.shape[1]}"


class GaussianVideo(nn.Module):
    """A clip as N Gaussians that all its frames share, added up; rendered at any time and size.

    spacetime:           Gaussians over (x, y, t), sliced at each time: a straight path, seen for a while
    bspline:             2D Gaussians whose centres follow cubic B-splines with `knots` control points
    polynomial_fourier:  centres on a cubic polynomial and four harmonics of time
    Convention: times run from 0 (first frame) to 1 (last frame).
    Args:
        count: N.
        size: (H, W) in pixels.
        frames: T, what forward() renders without times.
        motion: one of the three above.
        channels: C.
        knots: control points of "bspline".
        generator: of the random start; None takes torch's.
    Returns:
        clip: forward(times) gives [T, H, W, C], not clamped.
    Raises:
        ValueError: sizes below 1, an unknown motion.
    Source: slicing is the conditional of a normal distribution; bspline: Bond et al. 2025, arXiv 2501.04782;
        polynomial_fourier: Sun et al. 2024, arXiv 2406.13870; differs: 2D, accumulated sum, no camera.
    Example:
        >>> model = GaussianVideo(40, (12, 16), frames=4, motion="bspline")
        >>> model().shape, model(torch.tensor([0.1]), size=(6, 8)).shape
        (torch.Size([4, 12, 16, 3]), torch.Size([1, 6, 8, 3]))
    """

    def __init__(
        self,
        count: int,
        size: tuple[int, int],
        frames: int,
        motion: str = "spacetime",
        channels: int = 3,
        knots: int = 8,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        name = "GaussianVideo"
        self.size = _checked_size(name, count, size, channels)
        if motion not in _MOTIONS:
            _check.fail(name, f"expected `motion` to be one of {', '.join(_MOTIONS)}.", motion=motion)
        if frames < 1 or knots < 4:
            _check.fail(name, "expected at least one frame and four knots.", frames=frames, knots=knots)
        self.frames, self.motion = int(frames), motion
        means, spacing, colors = _seeds(count, self.size, channels, generator)
        self.colors = nn.Parameter(colors)
        if motion == "spacetime":
            time = torch.rand(count, 1, generator=generator)
            self.means = nn.Parameter(torch.cat([means, time], 1))
            self.cholesky = nn.Parameter(torch.tensor([spacing, 0.0, spacing, 0.0, 0.0, 0.5]).repeat(count, 1))
        else:
            self.cholesky = nn.Parameter(torch.tensor([spacing, 0.0, spacing]).repeat(count, 1))
            terms = knots if motion == "bspline" else 12
            path = torch.zeros(count, terms, 2)
            path[:, slice(None) if motion == "bspline" else slice(0, 1)] = means[:, None]
            self.path = nn.Parameter(path)

    def gaussians(self, times: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """At times [T]: means [T, N, 2], Cholesky factors [T, N, 3], weights [T, N] or None (1)."""
        if self.motion == "spacetime":
            l11, l21, l22, l31, l32, l33 = self.cholesky.unbind(1)
            factor = torch.stack([l11 + _FLOOR, l21, l22 + _FLOOR, l31, l32, l33.abs() + 1e-3], 1)
            return functional.slice_spacetime(self.means, factor, times)
        means = functional.motion_eval(self.path, times, self.motion)
        cholesky = self.cholesky + self.cholesky.new_tensor([_FLOOR, 0.0, _FLOOR])
        return means, cholesky.expand(len(times), -1, -1), None

    def forward(self, times: Tensor | None = None, size: tuple[int, int] | None = None) -> Tensor:
        if times is None:
            times = torch.linspace(0, 1, self.frames, dtype=self.colors.dtype, device=self.colors.device)
        means, cholesky, weights = self.gaussians(times)
        size = self.size if size is None else size
        if size != self.size:
            means, cholesky = _resized(means, cholesky, self.size, size)
        moments, count = means.shape[:2]
        offsets = torch.arange(0, moments * count + 1, count, device=means.device)
        return functional.splat_2d(
            means.flatten(0, 1),
            cholesky.flatten(0, 1),
            self.colors.repeat(moments, 1),
            None if weights is None else weights.flatten(),
            size=size,
            batch_offsets=offsets,
        )

    def extra_repr(self) -> str:
        return f"{self.colors.shape[0]} Gaussians, size={self.size}, frames={self.frames}, motion={self.motion!r}"
