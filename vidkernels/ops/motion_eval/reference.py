"""Plain torch, the oracle. The basis is a table of [T, width] numbers, so the kernels share it."""

from __future__ import annotations

import math

import torch

POLYNOMIAL, WAVES = 4, 4
WIDTH = {"polynomial_fourier": POLYNOMIAL + 2 * WAVES, "bspline": 4}


def basis(times: torch.Tensor, kind: str, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values and slopes [T, WIDTH[kind]] in float64, and the coefficient [T] that the first column belongs to."""
    t = times.double()
    if kind == "polynomial_fourier":
        powers = [t**k for k in range(POLYNOMIAL)]
        slopes = [torch.zeros_like(t)] + [k * powers[k - 1] for k in range(1, POLYNOMIAL)]
        rates = [math.pi * wave for wave in range(1, WAVES + 1)]
        value = [*powers, *((r * t).cos() for r in rates), *((r * t).sin() for r in rates)]
        slope = [*slopes, *(-r * (r * t).sin() for r in rates), *(r * (r * t).cos() for r in rates)]
        first = torch.zeros_like(times, dtype=torch.int32)
    else:
        segments = count - 3
        u = t.clamp(0, 1) * segments
        first = u.nan_to_num(0.0).floor().clamp(max=segments - 1)
        s = u - first
        value = [(1 - s) ** 3 / 6, (3 * s**3 - 6 * s**2 + 4) / 6, (-3 * s**3 + 3 * s**2 + 3 * s + 1) / 6, s**3 / 6]
        slope = [-((1 - s) ** 2) / 2, (3 * s**2 - 4 * s) / 2, (-3 * s**2 + 2 * s + 1) / 2, s**2 / 2]
        inside = segments * ((t >= 0) & (t <= 1))
        slope = [x * inside for x in slope]
        first = first.int()
    return torch.stack(value, -1), torch.stack(slope, -1), first


def _spread(table: torch.Tensor, first: torch.Tensor, count: int) -> torch.Tensor:
    """[T, width] as [T, K] with zeros around."""
    wide = table.new_zeros(table.shape[0], count)
    place = first.long()[:, None] + torch.arange(table.shape[1], device=table.device)
    return wide.scatter(1, place, table)


def motion_eval(coefficients, times, kind):
    value, _, first = basis(times, kind, coefficients.shape[1])
    return torch.einsum(
        "tk,nkd->tnd", _spread(value, first, coefficients.shape[1]).to(coefficients.dtype), coefficients
    )


def motion_eval_backward(grad_out, coefficients, times, kind, moments):
    count = coefficients.shape[1]
    value, slope, first = basis(times, kind, count)
    wide = _spread(value, first, count).to(coefficients.dtype)
    grad_times = torch.zeros_like(times)
    if moments:
        speed = torch.einsum("tk,nkd->tnd", _spread(slope, first, count).to(coefficients.dtype), coefficients)
        grad_times = (grad_out * speed).sum((1, 2))
    return torch.einsum("tk,tnd->nkd", wide, grad_out), grad_times
