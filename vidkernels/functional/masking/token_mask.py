"""The result of every masking strategy: which tokens are visible and which are masked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from vidkernels import _check
from vidkernels.ops.token_mask.op import score_mask


@dataclass(frozen=True)
class TokenMask:
    """Which tokens of each clip are masked, as two lists of indices.

    Convention: tokens count in (t, h, w) raster order; masked = hidden from the encoder.
    Args:
        visible_index, masked_index: [B, Nv] and [B, Nm] int32, ascending. Where samples differ in number, rows are
            padded with -1 at the end and the counts are given.
        grid: (T, H, W) of the tokens.
        visible_count, masked_count: [B] int32, or None if every sample has the same number.
    Returns:
        mask: frozen; `to_bool`, `flat` and `from_bool` convert it.
    Example:
        >>> mask = TokenMask.from_bool(torch.tensor([[True, False, True, False]]), (2, 1, 2))
        >>> mask.visible_index.tolist(), mask.masked_index.tolist()
        ([[1, 3]], [[0, 2]])
        >>> mask.to_bool().tolist()
        [[True, False, True, False]]
    """

    visible_index: torch.Tensor
    masked_index: torch.Tensor
    grid: tuple[int, int, int]
    visible_count: torch.Tensor | None = None
    masked_count: torch.Tensor | None = None

    def to_bool(self) -> torch.Tensor:
        """[B, N] bool, True = masked."""
        tokens, batch = math.prod(self.grid), self.masked_index.shape[0]
        out = torch.zeros(batch, tokens, dtype=torch.bool, device=self.masked_index.device)
        index = self.masked_index.long()
        if self.masked_count is None:
            return out.scatter_(1, index, True)
        return out.scatter_add_(1, index.clamp(min=0), index >= 0)  # padding (-1) adds nothing to the first token

    def flat(self, which: str = "visible") -> tuple[torch.Tensor, torch.Tensor]:
        """Indices of all samples one after the other and their offsets [B + 1], as variable-length attention takes
        them. Waits for the device where counts differ."""
        index = self.visible_index if which == "visible" else self.masked_index
        count = self.visible_count if which == "visible" else self.masked_count
        batch, width = index.shape
        if count is None:
            return index.flatten(), torch.arange(batch + 1, dtype=torch.int32, device=index.device) * width
        offsets = torch.zeros(batch + 1, dtype=torch.int32, device=index.device)
        offsets[1:] = count.cumsum(0)
        return index[index >= 0], offsets

    @staticmethod
    def from_bool(
        mask: torch.Tensor, grid: tuple[int, int, int] | None = None, *, backend: str | None = None
    ) -> TokenMask:
        """The TokenMask of a [B, N] bool mask (True = masked). Waits for the device: shapes follow the counts."""
        _check.is_tensor("TokenMask.from_bool", "mask", mask, "[B, N]")
        if mask.dtype is not torch.bool:
            _check.fail("TokenMask.from_bool", "expected a bool mask (True = masked).", mask=mask)
        counts = mask.sum(1, dtype=torch.int32)
        low, high = (0, 0) if mask.shape[0] == 0 else torch.stack(counts.aminmax()).tolist()
        grid = check_grid("TokenMask.from_bool", mask, grid)
        visible, masked = score_mask(mask.float(), None if low == high else counts, 1, low, high, True, backend=backend)
        if low == high:
            return TokenMask(visible, masked, grid)
        return TokenMask(visible, masked, grid, mask.shape[1] - counts, counts)


def check_grid(name: str, tokens: torch.Tensor, grid: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """The grid of these [B, N] tokens; None is one row."""
    if grid is None:
        return 1, 1, tokens.shape[1]
    if len(grid) != 3 or math.prod(grid) != tokens.shape[1]:
        _check.fail(name, f"expected a `grid` (T, H, W) of {tokens.shape[1]} tokens.", grid=grid)
    return grid
