"""Finite scalar quantisation: a codebook that is a grid, with nothing to learn or to die."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vidkernels import _check
from vidkernels.functional.quantize.vq import straight_through

__all__ = ["FiniteScalarQuantized", "fsq", "fsq_codes"]

_MARGIN = 1e-3


class FiniteScalarQuantized(NamedTuple):
    """Vectors on a grid.

    Args:
        quantized: [..., D], multiples of 1 / floor(level / 2), in [-1, 1].
        index: [...] int64, the number of the grid point.
    Returns: a tuple of the two.
    Example:
        >>> from vidkernels.functional.quantize.fsq import fsq
        >>> fsq(torch.zeros(1, 2), (3, 3)).index
        tensor([4])
    """

    quantized: Tensor
    index: Tensor


def fsq(z: Tensor, levels: Sequence[int]) -> FiniteScalarQuantized:
    """Round every channel to one of a few levels; the levels of all channels together are the code.

    half = (level - 1) (1 + 1e-3) / 2;  offset = 0 for odd levels, 1/2 for even
    bounded = half tanh(z + atanh(offset / half)) - offset;  quantized = round(bounded) / floor(level / 2)
    Convention: index = sum over channels of (round(bounded) + floor(level / 2)) * product of the levels before: the
        first channel changes fastest. z = 0 is rounded to 0.
    Args:
        z: [..., D], float16/bfloat16/float32/float64. Half precision is rounded in float32.
        levels: one number of levels for each of the D channels, each at least 3. [8, 8, 8, 5, 5, 5] makes 64000 codes.
    Returns:
        FiniteScalarQuantized(quantized, index): quantized in the dtype of `z`, differentiable as if there were no
        rounding.
    Raises:
        ValueError: as many levels as channels are not given, a level below 3, 2^63 codes or more.
    Backends: torch alone. Deterministic: yes.
    Source: Mentzer et al. 2023, arXiv 2309.15505, appendix A.1; differs: atanh where the listing has tan, so that 0
        stays 0 for even levels, and a margin that lets every level have half of a step at both ends.
    Example:
        >>> quantized, index = fsq(torch.tensor([[-9.0, 0.0, 9.0]]), (3, 5, 4))
        >>> quantized, index
        (tensor([[-1.0000,  0.0000,  0.5000]]), tensor([51]))
    """
    steps, halves, basis = _grid("fsq", levels, z)
    wide = z if z.dtype is torch.float64 else z.float()
    half = (steps - 1) * (1 + _MARGIN) / 2
    offset = (steps % 2 == 0) / 2
    bounded = (half * torch.tanh(wide + torch.atanh(offset / half).to(wide)) - offset).to(wide)
    digits = bounded.detach().round()
    quantized = straight_through(bounded, digits) / halves.to(wide)
    index = ((digits + halves).long() * basis).sum(-1)
    return FiniteScalarQuantized(quantized.to(z.dtype), index)


def fsq_codes(index: Tensor, levels: Sequence[int]) -> Tensor:
    """The grid points that indices name: the inverse of the index of `fsq`.

    Args:
        index: any shape, int64 in [0, product of the levels).
        levels: as for `fsq`.
    Returns:
        codes: [..., D] float32, in [-1, 1].
    Raises:
        ValueError: a level below 3, 2^63 codes or more.
    Backends: torch alone. Deterministic: yes.
    Source: Mentzer et al. 2023, arXiv 2309.15505, appendix A.1.
    Example:
        >>> fsq_codes(torch.tensor([51]), (3, 5, 4))
        tensor([[-1.0000,  0.0000,  0.5000]])
    """
    steps, halves, basis = _grid("fsq_codes", levels, index)
    digits = index[..., None] // basis % steps.long()
    return ((digits - halves) / halves).float()


def _grid(name: str, levels: Sequence[int], tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Levels (float64), their halves, and what one step of each channel adds to the index."""
    levels = list(levels)
    if not levels or min(levels) < 3 or math.prod(levels) >= 2**63:
        _check.fail(name, "expected `levels` of at least 3, with fewer than 2^63 codes in all.", levels=levels)
    if tensor.is_floating_point() and (tensor.dim() == 0 or tensor.shape[-1] != len(levels)):
        _check.fail(name, f"expected `z` of shape [..., {len(levels)}], one channel a level.", z=tensor, levels=levels)
    steps = torch.tensor(levels, dtype=torch.float64, device=tensor.device)
    basis = [math.prod(levels[:i]) for i in range(len(levels))]
    return steps, (steps / 2).floor(), torch.tensor(basis, device=tensor.device)
