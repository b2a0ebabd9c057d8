"""Finite scalar quantisation as a module."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from vidkernels import _check
from vidkernels.functional.quantize.fsq import FiniteScalarQuantized, fsq, fsq_codes

__all__ = ["FSQ"]


class FSQ(nn.Module):
    """Every channel is rounded to a few levels: see `vidkernels.functional.fsq`. Nothing to learn, no loss.

    Args:
        levels: levels of each channel; [8, 8, 8, 5, 5, 5] makes 64000 codes of 6 channels.
        channel_first: channels lie along axis 1, as in [B, C, T, H, W], instead of along the last.
    Example:
        >>> fsq = FSQ([8, 5, 5])
        >>> quantized, index = fsq(torch.randn(2, 10, 3))
        >>> fsq.codes, torch.equal(fsq.lookup(index), quantized)
        (200, True)
    """

    def __init__(self, levels: Sequence[int], *, channel_first: bool = False):
        super().__init__()
        self.levels, self.channel_first = tuple(levels), channel_first
        if not self.levels or min(self.levels) < 3:
            _check.fail("FSQ", "expected `levels` of at least 3.", levels=levels)

    @property
    def codes(self) -> int:
        """How many there are."""
        return math.prod(self.levels)

    def forward(self, z: Tensor) -> FiniteScalarQuantized:
        """Quantise [..., D] ([B, D, ...] with `channel_first`)."""
        quantized, index = fsq(z.movedim(1, -1) if self.channel_first else z, self.levels)
        return FiniteScalarQuantized(quantized.movedim(-1, 1) if self.channel_first else quantized, index)

    def lookup(self, index: Tensor) -> Tensor:
        """The codes that indices [...] name, [..., D] ([B, D, ...] with `channel_first`)."""
        codes = fsq_codes(index, self.levels)
        return codes.movedim(-1, 1) if self.channel_first else codes

    def extra_repr(self) -> str:
        return f"levels={self.levels}, channel_first={self.channel_first}"
