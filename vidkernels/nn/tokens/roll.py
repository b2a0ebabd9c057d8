"""Token rolling and channel shift as layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vidkernels import _check
from vidkernels.functional.tokens.roll import temporal_shift, token_roll

__all__ = ["TemporalShift", "TokenRoll"]


class TokenRoll(nn.Module):
    """Roll a share of every frame's tokens to the next frame before a layer that sees one frame at a time.

    L rolled layers of per-frame attention see L frames far, at no cost.
    Args:
        share: of a frame's tokens.
        shift: frames to travel.
        prefix: tokens in front of each frame that stay: class token, text tokens.
    Shape: [B, T, N, D] -> [B, T, N, D]; `inverse` undoes it.
    Source: Wang et al. 2022, arXiv 2203.07303, section 3.2.
    Example:
        >>> roll, x = TokenRoll(prefix=1), torch.randn(2, 3, 9, 4)
        >>> torch.equal(roll.inverse(roll(x)), x)
        True
    """

    def __init__(self, share: float = 0.25, *, shift: int = 1, prefix: int = 0):
        super().__init__()
        if not 0 <= share <= 1 or prefix < 0:
            _check.fail("TokenRoll", "expected `share` in [0, 1] and `prefix` >= 0.", share=share, prefix=prefix)
        self.share, self.shift, self.prefix = share, shift, prefix

    def forward(self, x: Tensor) -> Tensor:
        return self._roll(x, self.shift)

    def inverse(self, x: Tensor) -> Tensor:
        return self._roll(x, -self.shift)

    def _roll(self, x: Tensor, shift: int) -> Tensor:
        if not self.prefix:
            return token_roll(x, self.share, shift=shift)
        _check.is_tensor("TokenRoll", "x", x, "[B, T, N, D]")
        front, rest = x[:, :, : self.prefix], x[:, :, self.prefix :]
        return torch.cat([front, token_roll(rest, self.share, shift=shift)], 2)


class TemporalShift(nn.Module):
    """functional.temporal_shift in front of a module that sees one frame at a time.

    Args:
        inner: module for [B, T, N, D]; None shifts only.
        share: of the channels that travel in one direction.
        cyclic: close the clip to a ring instead of zeros.
        causal: only forwards in time.
    Shape: [B, T, N, D] -> what `inner` makes of it.
    Source: Lin et al. 2018, arXiv 1811.08383; the residual form shifts inside the branch: x + shift(attention)(x).
    Example:
        >>> layer = TemporalShift(torch.nn.Linear(8, 8))
        >>> layer(torch.randn(2, 3, 5, 8)).shape
        torch.Size([2, 3, 5, 8])
    """

    def __init__(
        self, inner: nn.Module | None = None, *, share: float = 0.125, cyclic: bool = False, causal: bool = False
    ):
        super().__init__()
        self.inner = nn.Identity() if inner is None else inner
        self.share, self.cyclic, self.causal = share, cyclic, causal

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(temporal_shift(x, self.share, cyclic=self.cyclic, causal=self.causal))
