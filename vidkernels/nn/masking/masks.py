"""Masking strategies as modules: their settings, and one call per batch."""

from __future__ import annotations

import torch
from torch import nn

from vidkernels.functional.masking.masks import (
    Ratio,
    TokenMask,
    block_mask,
    random_mask,
    running_cell_mask,
    tube_mask,
)


class _Masking(nn.Module):
    """Settings of a masking strategy; `_make` turns them into a TokenMask."""

    _default_ratio: float | None = None

    def __init__(self, grid: tuple[int, int, int] = (8, 14, 14), ratio: Ratio | None = None):
        super().__init__()
        self.grid = tuple(grid)
        self.ratio = self._default_ratio if ratio is None else ratio

    def forward(
        self, batch: int | torch.Tensor, generator: torch.Generator | None = None, seed: torch.Tensor | None = None
    ) -> TokenMask:
        """A mask for `batch` clips, or for the clips (or tokens) of a tensor, on its device."""
        device = None
        if isinstance(batch, torch.Tensor):
            batch, device = batch.shape[0], batch.device
        return self._make(batch, generator=generator, device=device, seed=seed)

    def _make(self, batch: int, **how) -> TokenMask:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"grid={self.grid}, ratio={self.ratio}"


class TubeMasking(_Masking):
    """Random cells, the same in every frame: see `vidkernels.functional.tube_mask`.

    Args:     grid: (T, H, W) of the tokens. ratio: masked share (default 0.9).
    Example:
        >>> TubeMasking((8, 14, 14), 0.9)(2).visible_index.shape
        torch.Size([2, 160])
    """

    _default_ratio = 0.9

    def _make(self, batch, **how):
        return tube_mask(batch, self.grid, self.ratio, **how)


class RandomMasking(_Masking):
    """Random tokens of space and time: see `vidkernels.functional.random_mask`.

    Args:     grid: (T, H, W) of the tokens. ratio: masked share (default 0.9).
    Example:
        >>> RandomMasking((8, 14, 14), 0.9)(2).masked_index.shape
        torch.Size([2, 1412])
    """

    _default_ratio = 0.9

    def _make(self, batch, **how):
        return random_mask(batch, self.grid, self.ratio, **how)


class RunningCellMasking(_Masking):
    """2 x 2 cells whose masked places advance each frame: see `vidkernels.functional.running_cell_mask`.

    Args:     grid: (T, H, W) of the tokens. ratio: masked share (default 0.5).
    Example:
        >>> RunningCellMasking((8, 14, 14))(2).masked_index.shape
        torch.Size([2, 784])
    """

    _default_ratio = 0.5

    def _make(self, batch, **how):
        return running_cell_mask(batch, self.grid, self.ratio, **how)


class BlockMasking(_Masking):
    """The union of random rectangles over all frames: see `vidkernels.functional.block_mask`.

    Args:     grid: (T, H, W) of the tokens. blocks, scale, aspect: number, share of the frame and height / width of the
        rectangles. ratio: masked share; None takes the expected size of the union.
    Example:
        >>> BlockMasking((8, 14, 14), blocks=2, scale=0.7)(2).masked_index.shape
        torch.Size([2, 1320])
    """

    def __init__(
        self,
        grid: tuple[int, int, int] = (8, 14, 14),
        blocks: int = 8,
        scale: float = 0.15,
        aspect: tuple[float, float] = (0.75, 1.5),
        ratio: Ratio | None = None,
    ):
        super().__init__(grid, ratio)
        self.blocks, self.scale, self.aspect = blocks, scale, tuple(aspect)

    def _make(self, batch, **how):
        return block_mask(batch, self.grid, self.blocks, self.scale, self.aspect, self.ratio, **how)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, blocks={self.blocks}, scale={self.scale}, aspect={self.aspect}"
