"""A video as a network from frame numbers to frames."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidkernels.nn.nerv.block import NeRVBlock

from .frame_model import FrameModel, TimeEncoding, initialise, mlp

__all__ = ["NeRV"]


class NeRV(FrameModel):
    """Time encoding, a perceptron to a first grid of features, blocks of convolution and pixel shuffle, an RGB head.

    Its embeddings are times: a frame between two others is the network's answer to a time it has never seen.
    Args:
        frames: how many.
        size: (H, W) of a picture.
        width: channels of the first grid. 26, 58 and 112 are NeRV-S, -M and -L (with 720 x 1280 and strides 5 2 2 2 2).
        hidden: width of the perceptron's hidden layer; 0 for none, as in the baseline that HNeRV is compared with.
        strides: enlargement of each block; None: by size.
        expansion: channels of the first block over `width`.
        reduction: channels of a block over those of the next.
        lowest: channels of a block, at least.
        levels: of the time encoding.
        generator: of the first weights.
    Shape:
        t [B], frame numbers or times -> [B, 3, H, W].
    Raises:
        ValueError: no frame, an empty picture, or a stride below 1.
    Source: Chen et al. 2021, arXiv 2110.13903; differs: pictures whose size the strides do not divide.
    Example:
        >>> model = NeRV(8, (45, 70), width=8, lowest=8, hidden=16)
        >>> model(torch.tensor([0, 7])).shape, model(torch.tensor([0.55])).shape
        (torch.Size([2, 3, 45, 70]), torch.Size([1, 3, 45, 70]))
    """

    def __init__(
        self,
        frames: int,
        size: tuple[int, int],
        *,
        width: int = 26,
        hidden: int = 512,
        strides: Sequence[int] | None = None,
        expansion: float = 1.0,
        reduction: int = 2,
        lowest: int = 96,
        levels: int = 80,
        generator: torch.Generator | None = None,
    ):
        super().__init__(frames, size, strides)
        self.width = width
        self.time = TimeEncoding(levels=levels)
        cells = self.grid[0] * self.grid[1]
        self.stem = mlp([self.time.width, *([hidden] if hidden else []), width * cells])
        widths = [width, int(width * expansion)]
        for stride in self.strides[1:]:
            widths.append(max(widths[-1] // (1 if stride == 1 else reduction), lowest))
        self.blocks = nn.ModuleList(
            NeRVBlock(a, b, s) for (a, b), s in zip(itertools.pairwise(widths), self.strides, strict=True)
        )
        self.head = nn.Conv2d(widths[-1], 3, 1)
        initialise(self, generator)

    def encode(self, t: Tensor) -> Tensor:
        """Times [B]."""
        return self.times(t)

    def features(self, embedding: Tensor) -> Tensor:
        """Of times [B]."""
        x = self.stem(self.time(embedding)).view(-1, self.width, *self.grid)
        x = x.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x)
        return x
