"""A layer that sees a whole picture at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vidkernels import _check
from vidkernels.functional.nerv.spectral import fourier_layer

__all__ = ["FourierLayer"]


class FourierLayer(nn.Module):
    """Pictures convolved by a multiplication of their low frequencies, and enlarged on the way.

    The first weights are drawn such that kept frequencies keep their energy on average.
    Args:
        in_channels, out_channels: before and after.
        modes: (R, C) frequencies: rows of both signs together, columns from 0 up.
        scale: the factor by which height and width grow.
        generator: of the first weights.
    Shape: x [B, in_channels, H, W] -> [B, out_channels, H * scale, W * scale]; R <= H, C <= W // 2 + 1.
    Raises:
        ValueError: no frequency, or a scale below 1.
    Source: Li et al. 2020, arXiv 2010.08895, section 4; Kang et al. 2023, arXiv 2306.11305, section 3.
    Example:
        >>> FourierLayer(4, 3, (5, 3), 2)(torch.randn(1, 4, 6, 8)).shape
        torch.Size([1, 3, 12, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        modes: tuple[int, int],
        scale: int = 1,
        *,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if len(modes) != 2 or min(modes) < 1 or scale < 1:
            _check.fail("FourierLayer", "expected `modes` (rows, columns) and a `scale` of at least 1.",
                        modes=modes, scale=scale)  # fmt: skip
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(*modes, in_channels, out_channels, 2))
        nn.init.normal_(self.weight, std=1 / math.sqrt(2 * in_channels), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return fourier_layer(x, self.weight, self.scale)

    def extra_repr(self) -> str:
        rows, columns, inputs, outputs, _ = self.weight.shape
        return f"{inputs}, {outputs}, modes=({rows}, {columns}), scale={self.scale}"
