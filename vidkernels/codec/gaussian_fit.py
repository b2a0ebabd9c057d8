"""Fitting Gaussians to frames: a key frame from nothing, then each frame from the one before.

A key frame starts with Gaussians where the picture has detail; half of them come later, where the error is largest.
A later frame starts from the last one and pays for every unit of change (`shrink`), so that what stands still costs
nothing. In the last part of each descent the renderer sees numbers rounded as the file will hold them, and the next
frame starts from those (closed loop).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from .. import _native
from ..functional import splat_2d
from .gaussian_bits import z_order
from .gaussian_model import Grid, rgb

RATES = (0.12, 0.12, 0.06, 0.06, 0.06, 0.004, 0.004, 0.004)
LEAST = 0.4  # pixels; l11 and l22 stay above it
_BETAS = (0.9, 0.99)
_BITS_PER_UNIT = 2.0  # what a unit of change costs, roughly
_GROWTH = (0.5, 0.75, 1.0)  # of the Gaussians, in equal parts of the first half of a key frame's descent

_BEFORE_MOVING = 0.4  # of a later frame's steps
_CELL = 8  # pixels
_REMOVED = 0.5  # of a cell's error, by a Gaussian that comes there
_BITS_OF_NEW = 60.0


@dataclass
class Moments:
    """Adam's state over [N, 8] numbers, and how many gradients each of its moments has seen."""

    mean: torch.Tensor
    variance: torch.Tensor
    mean_steps: int = 0
    variance_steps: int = 0

    @classmethod
    def zeros(cls, count: int) -> Moments:
        return cls(torch.zeros(count, 8), torch.zeros(count, 8))

    def extended(self, count: int) -> Moments:
        more = torch.zeros(count - self.mean.shape[0], 8)
        return Moments(torch.cat([self.mean, more]), torch.cat([self.variance, more]), self.mean_steps,
                       self.variance_steps)  # fmt: skip

    def later(self) -> Moments:
        """A copy for the next frame: gradients towards this one say nothing of where that one's point."""
        return Moments(torch.zeros_like(self.mean), self.variance.clone(), 0, self.variance_steps)


def descend(
    current: torch.Tensor,
    previous: torch.Tensor | None,
    moments: Moments,
    frame: torch.Tensor,
    pace: torch.Tensor,
    *,
    quanta: np.ndarray | None = None,
    shrink: np.ndarray | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Move `current` [N, 8] and `moments`, in place, by one Adam step for each entry of `pace`, towards `frame`
    [H, W, 3] uint8; returns the mean squared error before each step. csrc/ops/splat_fit/splat_fit.h has the rules."""
    error = torch.zeros(len(pace), dtype=torch.float64)
    none = np.zeros(8)
    quanta, shrink = none if quanta is None else quanta, none if shrink is None else shrink
    kernel = getattr(_native._C, "splat_fit_cpu", None) if backend in (None, "cpu") else None
    if kernel is not None:
        one, order = torch.ones(1), torch.zeros(len(pace), dtype=torch.int32)
        kernel(current, previous, moments.mean, moments.variance, frame[None].contiguous(), one, order, pace.float(),
               error, list(RATES), quanta.tolist(), shrink.tolist(), LEAST, *_BETAS,
               moments.mean_steps, moments.variance_steps)  # fmt: skip
    else:
        for i, factor in enumerate(pace.tolist()):
            error[i] = _step(current, previous, moments, frame, factor, i, quanta, shrink, backend)
    moments.mean_steps += len(pace)
    moments.variance_steps += len(pace)
    return error


def _step(current, previous, moments, frame, factor, i, quanta, shrink, backend) -> float:
    """The same step in plain torch, on what splat_2d runs on."""
    base = torch.zeros_like(current) if previous is None else previous
    q, rate, price = (current.new_tensor(np.asarray(x, np.float32)) for x in (quanta, RATES, shrink))
    units = ((current - base) / q.clamp(min=1e-30)).round() * q + base
    seen = torch.where(q > 0, units, current).requires_grad_()
    with torch.enable_grad():
        image = splat_2d(seen[:, :2], seen[:, 2:5], rgb(seen[:, 5:]), size=tuple(frame.shape[:2]), backend=backend)
    residual = image.detach().clamp(0, 1) - frame.float() / 255
    (g,) = torch.autograd.grad(image, seen, residual)
    felt = (g != 0).any(1, keepdim=True)
    moments.mean.copy_(torch.where(felt, _BETAS[0] * moments.mean + (1 - _BETAS[0]) * g, moments.mean))
    moments.variance.copy_(torch.where(felt, _BETAS[1] * moments.variance + (1 - _BETAS[1]) * g * g, moments.variance))
    means, variances = moments.mean_steps + i + 1, moments.variance_steps + i + 1
    root = (moments.variance / (1 - _BETAS[1] ** variances)).sqrt() + 1e-12
    scale = rate * factor / root
    change = current - scale * moments.mean / (1 - _BETAS[0] ** means) - base
    change = torch.where(price > 0, change.sign() * (change.abs() - scale * price).clamp(min=0), change)
    moved = base + change
    moved[:, [2, 4]] = moved[:, [2, 4]].clamp(min=LEAST)
    current.copy_(torch.where(felt, moved, current))
    return float(residual.square().mean())


def scatter(weight: torch.Tensor, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` positions [N, 2] drawn by `weight` [H, W] (sums to 1), and the density of Gaussians there [N]."""
    picked = torch.multinomial(weight.flatten(), count, replacement=True, generator=generator)
    width = weight.shape[1]
    places = torch.stack([picked % width, picked // width], 1) + torch.rand(count, 2, generator=generator)
    return places, count * weight.flatten()[picked]


def detail(frame: torch.Tensor) -> torch.Tensor:
    """Where Gaussians are needed: the mean gradient of brightness around each pixel and a uniform share."""
    x = frame.float().mean(-1) / 255
    slope = torch.zeros_like(x)
    slope[:, 1:] += x.diff(dim=1).abs()
    slope[1:] += x.diff(dim=0).abs()
    return _blurred(slope, 0.3)


def _blurred(weight: torch.Tensor, uniform: float) -> torch.Tensor:
    weight = torch.nn.functional.avg_pool2d(weight[None, None], 11, 1, 5, count_include_pad=False)[0, 0] + 1e-12
    return (1 - uniform) * weight / weight.sum() + uniform / weight.numel()


def seeds(frame: torch.Tensor, weight: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """[N, 8] round Gaussians as large as their distance to each other, in the colours of the frame."""
    places, density = scatter(weight, count, generator)
    height, width = frame.shape[:2]
    reach = 0.55  # standard deviation in units of the distance between neighbours
    size = (reach / density.sqrt()).clamp(LEAST, 30.0)
    column, row = places[:, 0].long().clamp(max=width - 1), places[:, 1].long().clamp(max=height - 1)
    r, g, b = (frame[row, column].float() / 255 / (2 * math.pi * reach**2)).unbind(1)
    zero = torch.zeros_like(size)
    return torch.stack([*places.unbind(1), size, zero, size, (r + 2 * g + b) / 4, (r - b) / 2, (2 * g - r - b) / 4], 1)


def fit_key(
    frame: torch.Tensor, grid: Grid, count: int, steps: int, generator: torch.Generator
) -> tuple[np.ndarray, Moments]:
    """The steps [N, 8] of a key frame's numbers, in Z-order, and the optimiser's state."""
    count = max(count, 1)
    sizes = [max(1, round(count * share)) for share in _GROWTH]
    numbers, moments = seeds(frame, detail(frame), sizes[0], generator), Moments.zeros(sizes[0])
    lead = steps // 2
    for k, size in enumerate(sizes):
        more = size - numbers.shape[0]
        if more > 0:
            error = (grid.draw(numbers).float() - frame.float()).abs().mean(-1)
            fresh = seeds(frame, _blurred(error, 0.05), more, generator)
            fresh[:, 2] = fresh[:, 4] = fresh[:, 2].clamp(max=3.0)
            fresh[:, 5:] = 0
            numbers, moments = torch.cat([numbers, fresh]), moments.extended(size)
        part = lead // len(sizes) if k + 1 < len(sizes) else lead - lead // len(sizes) * (len(sizes) - 1)
        descend(numbers, None, moments, frame, torch.ones(part))
    rest = steps - lead
    pace = 0.03 + 0.97 * (1 + torch.cos(math.pi * torch.arange(rest) / max(1, rest))) / 2
    half = rest // 2
    descend(numbers, None, moments, frame, pace[:half])
    descend(numbers, None, moments, frame, pace[half:], quanta=grid.quanta)
    q = grid.rounded(numbers)
    cell = max(1, round(2 / float(grid.quanta[0])))
    order = z_order(q[:, :2], cell)
    at = torch.from_numpy(order)
    return q[order], replace(moments, mean=moments.mean[at], variance=moments.variance[at])


def fit_change(
    q: np.ndarray, moments: Moments, frame: torch.Tensor, grid: Grid, steps: int, price: float
) -> tuple[np.ndarray, Moments]:
    """The change [N, 8], in steps, that makes of `q`, the integers of the frame before, moved along with their blocks,
    those of `frame`. `price`: squared error (of the whole picture, pixels in [0, 1]) that one bit is worth; `moments`:
    of the frame before; also returns those after it."""
    previous, moments = grid.values(q), moments.later()
    current = previous.clone()
    shrink = _BITS_PER_UNIT * price / grid.quanta.astype(np.float64)
    pace = 0.05 + 0.95 * (1 + torch.cos(math.pi * torch.arange(steps) / max(1, steps))) / 2
    lead, half = round(_BEFORE_MOVING * steps), steps // 2
    descend(current, previous, moments, frame, pace[:lead], shrink=shrink)
    rows, fresh = relocations(current, frame, grid, price)
    away = np.zeros_like(q)
    away[rows] = grid.rounded(fresh - previous[rows])
    previous[rows] = current[rows] = grid.values(q[rows] + away[rows] * grid.steps)
    moments.mean[rows] = moments.variance[rows] = 0
    descend(current, previous, moments, frame, pace[lead:half], shrink=shrink)
    descend(current, previous, moments, frame, pace[half:], shrink=shrink, quanta=grid.quanta)
    return away + grid.rounded(current - previous), moments


def relocations(values: torch.Tensor, frame: torch.Tensor, grid: Grid, price: float) -> tuple[np.ndarray, torch.Tensor]:
    """Gaussians that do more elsewhere: (rows of `values`, their new numbers [n, 8]).

    What lies outside or hardly shows goes, one to a cell, to where the error is largest: what comes into view has no
    Gaussians of its own.
    """
    height, width = frame.shape[:2]
    off = ((grid.draw(values).float() - frame.float()) / 255).square().sum(-1)[None, None]
    gain = _REMOVED * _CELL**2 * torch.nn.functional.avg_pool2d(off, _CELL, ceil_mode=True)[0, 0]
    x, y, l11, _, l22 = values[:, :5].unbind(1)
    loss = rgb(values[:, 5:]).square().sum(1) * (math.pi * l11 * l22)  # the integral of its square
    reach = 3 * values[:, 2:5].norm(dim=1)
    loss[(x < -reach) | (y < -reach) | (x > width + reach) | (y > height + reach)] = 0
    best = gain.flatten().sort(descending=True, stable=True)
    least = loss.sort(stable=True)
    count = min(len(best.values), len(least.values))
    worth = best.values[:count] > least.values[:count] + _BITS_OF_NEW * price
    cells, rows = best.indices[:count][worth], least.indices[:count][worth]
    across = gain.shape[1]
    fresh = torch.zeros(len(rows), 8)
    fresh[:, 0], fresh[:, 1] = (cells % across + 0.5) * _CELL, (cells // across + 0.5) * _CELL
    fresh[:, 2] = fresh[:, 4] = _CELL / 3
    return rows.numpy(), fresh
