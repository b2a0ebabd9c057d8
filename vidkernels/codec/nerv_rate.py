"""Quantisation that a descent can pass through, and what the quantised numbers will cost."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOG2 = math.log(2)
_LEAST, _MOST = 0.04, 1e4  # of a Laplace distribution's spread, in steps


def quantised(x: Tensor, step: Tensor, mode: str, generator: torch.Generator | None = None) -> Tensor:
    """`x` in steps: with uniform noise of one step added, or rounded with the gradient of not being rounded."""
    k = x / step
    if mode == "noise":
        return k + (torch.rand(k.shape, generator=generator) - 0.5)
    return k + (k.round() - k).detach()


def laplace_bits(k: Tensor, spread: Tensor) -> Tensor:
    """Bits of each integer (or noisy one) under a Laplace distribution around 0 with this mean magnitude, in steps.

    P(k) = mass of the distribution from k - 1/2 to k + 1/2
    """
    b = spread.clamp(_LEAST, _MOST)
    r = k.abs()
    tail = (r - 0.5).clamp(min=0) / b - torch.log(-0.5 * torch.expm1(-1 / b))
    inside = -torch.log((1 - torch.exp(-0.5 / b) * torch.cosh(r.clamp(max=0.5) / b)).clamp(min=1e-9))
    return torch.where(r < 0.5, inside, tail) / _LOG2
