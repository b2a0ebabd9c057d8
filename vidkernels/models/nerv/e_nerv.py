"""A video as a network whose space and time are apart until they are multiplied."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels.nn.nerv.block import NeRVBlock

from .frame_model import FrameModel, TimeEncoding, initialise, mlp

__all__ = ["ENeRV"]

_HEAD_WIDTH = 64


class _Transformer(nn.Module):
    """Attention and a perceptron over tokens [B, N, width], each added to its input; no norms."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * heads * _HEAD_WIDTH, bias=False)
        self.out = nn.Linear(heads * _HEAD_WIDTH, width)
        self.rise, self.fall = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, _HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fall(F.gelu(self.rise(x)))


def _normalised(x: Tensor) -> Tensor:
    """Each channel of each picture with mean 0 and variance 1 (0 where it is constant, also on a grid of one cell)."""
    variance, mean = torch.var_mean(x.float(), (2, 3), correction=0, keepdim=True)
    return ((x - mean) * (variance + 1e-5).rsqrt()).to(x.dtype)


class ENeRV(FrameModel):
    """Places and time encoded apart, fused by two transformers, then NeRV blocks that time modulates.

    grid = transformer(transformer(places) * perceptron(t)); before each block: gain(t) * normalised(x) + offset(t)
    Its embeddings are times.
    Args:
        frames: how many.
        size: (H, W) of a picture.
        width: channels of the first grid.
        hidden: of time's perceptron.
        fused: channels of the tokens in the transformers.
        perceptron: hidden width of theirs.
        modulation: width of the branch that modulates the blocks.
        strides: enlargement of each block; None: by size.
        expansion: channels of the first block over `width`.
        reduction: channels of a block over those of the next.
        lowest: channels of a block, at least.
        levels: of the encodings.
        generator: of the first weights.
    Shape:
        t [B], frame numbers or times -> [B, 3, H, W].
    Raises:
        ValueError: no frame, an empty picture, or a stride below 1.
    Source: Li et al. 2022, arXiv 2207.08132; sizes of its published Bunny configuration; differs: pictures whose size
        the strides do not divide.
    Example:
        >>> model = ENeRV(8, (45, 70), width=8, hidden=16, fused=16, expansion=1, lowest=8)
        >>> model(torch.tensor([0, 7])).shape
        torch.Size([2, 3, 45, 70])
    """

    width_step = 4

    def __init__(
        self,
        frames: int,
        size: tuple[int, int],
        *,
        width: int = 196,
        hidden: int = 512,
        fused: int = 256,
        perceptron: int = 128,
        modulation: int = 128,
        strides: Sequence[int] | None = None,
        expansion: int = 3,
        reduction: int = 2,
        lowest: int = 96,
        levels: int = 80,
        generator: torch.Generator | None = None,
    ):
        super().__init__(frames, size, strides)
        self.encoding = TimeEncoding(levels=levels)
        self.time = mlp([self.encoding.width, hidden, fused])
        self.places = mlp([2 * self.encoding.width, fused])
        self.space, self.fusion = _Transformer(fused, 1, perceptron), _Transformer(fused, 8, perceptron)
        self.to_grid = nn.Identity() if fused == width else mlp([fused, width])
        self.branch = mlp([self.encoding.width, modulation, modulation])
        widths = [width, width * expansion]
        for stride in self.strides[1:]:
            widths.append(max(widths[-1] // (1 if stride == 1 else reduction), lowest))
        pairs = list(itertools.pairwise(widths))
        self.modulations = nn.ModuleList(mlp([modulation, 2 * a]) for a, _ in pairs)
        self.blocks = nn.ModuleList(
            _first_block(a, b, s) if i == 0 else NeRVBlock(a, b, s)
            for i, ((a, b), s) in enumerate(zip(pairs, self.strides, strict=True))
        )
        self.head = nn.Conv2d(widths[-1], 3, 1)
        initialise(self, generator)

    def encode(self, t: Tensor) -> Tensor:
        """Times [B]."""
        return self.times(t)

    def features(self, embedding: Tensor) -> Tensor:
        """Of times [B]."""
        t = self.encoding(embedding)
        row, column = (self.encoding(torch.arange(n, device=t.device, dtype=torch.float64) / n) for n in self.grid)
        row, column = torch.broadcast_tensors(row.unsqueeze(1), column.unsqueeze(0))
        places = self.places(torch.cat([row, column], -1).flatten(0, 1))
        tokens = self.space(places.unsqueeze(0)) * self.time(t).unsqueeze(1)
        x = self.to_grid(self.fusion(tokens)).unflatten(1, self.grid).permute(0, 3, 1, 2)
        moment = self.branch(t)
        for modulate, block in zip(self.modulations, self.blocks):
            gain, offset = modulate(moment)[..., None, None].chunk(2, 1)
            x = block((_normalised(x) * gain + offset).contiguous(memory_format=torch.channels_last))
        return x


def _first_block(a: int, b: int, stride: int) -> nn.Sequential:
    """The first block in two convolutions, the enlarging one with the fewer channels, to save parameters."""
    if a <= b:
        return nn.Sequential(NeRVBlock(a, a // 4, stride, activation="none"), NeRVBlock(a // 4, b, 1))
    return nn.Sequential(NeRVBlock(a, b, 1, activation="none"), NeRVBlock(b, b, stride))
