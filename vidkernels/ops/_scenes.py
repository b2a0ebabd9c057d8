"""Scenes of Gaussians that the cases of the rasterisers share, and pixels that sit on a threshold."""

from __future__ import annotations

import math

import torch

_MARGIN = 5e-6


def scene(g, count: int, height: int, width: int, channels: int, cover: float = 0.7):
    """Gaussians scattered over the image, sized so that they overlap, of all orientations."""
    means = torch.rand(count, 2, generator=g, dtype=torch.float64) * torch.tensor([width, height])
    size = cover * math.sqrt(height * width / max(1, count)) * torch.exp(0.5 * torch.randn(count, generator=g).double())
    stretch = torch.exp(0.45 * torch.randn(count, generator=g).double())
    sx, sy = (size * stretch).clamp(min=0.5), (size / stretch).clamp(min=0.5)
    angle = torch.rand(count, generator=g, dtype=torch.float64) * math.pi
    cos, sin = angle.cos(), angle.sin()
    xx, yy = (cos * sx) ** 2 + (sin * sy) ** 2, (sin * sx) ** 2 + (cos * sy) ** 2
    l11 = xx.sqrt()
    l21 = cos * sin * (sx**2 - sy**2) / l11
    cholesky = torch.stack([l11, l21, (yy - l21**2).clamp(min=1e-4).sqrt()], 1)
    return means, cholesky, torch.rand(count, channels, generator=g, dtype=torch.float64)


def conic_of(cholesky):
    l1, l2, l3 = cholesky.unbind(1)
    return torch.stack([l2 * l2 + l3 * l3, -l1 * l2, l1 * l1], 1) / ((l1 * l3) ** 2)[:, None]


def unsettled(means, conics, opacities, height, width, pixel_center, level):
    """Which Gaussians have a pixel whose alpha is within the margin of `level`: only the pixels on either side of
    the ellipse alpha = level can be, and those nearest to its middle in rows that it just misses."""
    a, b, c = conics.unbind(1)
    reach = 2 * torch.log(opacities / level)
    found = torch.zeros_like(reach, dtype=torch.bool)
    rows = torch.where(reach > -1, ((reach.clamp(min=0) * a / (a * c - b * b)).sqrt() + 2).ceil(), 0).long() * 2 + 1
    of = torch.repeat_interleave(torch.arange(len(means)), rows)
    nth = torch.arange(len(of)) - (rows.cumsum(0) - rows)[of]
    row = means[of, 1].floor() + (nth - rows[of] // 2)
    dy = row + pixel_center - means[of, 1]
    middle = means[of, 0] - (b / a)[of] * dy
    half = ((reach / a)[of] - ((a * c - b * b) / (a * a))[of] * dy * dy).clamp(min=0).sqrt()
    for x in (middle, middle - half, middle + half):
        for pixel in ((x - pixel_center).floor(), (x - pixel_center).ceil()):
            dx = pixel + pixel_center - means[of, 0]
            sigma = 0.5 * (a[of] * dx * dx + c[of] * dy * dy) + b[of] * dx * dy
            close = (opacities[of] * torch.exp(-sigma) / level - 1).abs() < _MARGIN
            close &= (row >= 0) & (row < height) & (pixel >= 0) & (pixel < width)
            found[of[close]] = True
    return found
