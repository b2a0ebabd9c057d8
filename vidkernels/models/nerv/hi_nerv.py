"""A video as grids that are enlarged bilinearly, with finer encodings added at each enlargement."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels import _check
from vidkernels.functional.nerv.grids import temporal_grid

from .frame_model import FrameModel, initialise

__all__ = ["HiNeRV"]

_GRID_REACH = 1e-3


def _normed(x: Tensor) -> Tensor:
    """Layer normalisation over channels of [B, H, W, C], without gains."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _at(grid: Tensor, t: Tensor) -> Tensor:
    """A grid [N, C, h, w] at times t [B], linearly; entry i is the middle of the i-th part of the video."""
    return temporal_grid(grid, (t * len(grid) - 0.5) / max(1, len(grid) - 1))


class _LocalGrid(nn.Module):
    """What is added to each pixel after an enlargement: depends on time and on where in its cell the pixel is."""

    def __init__(self, frames: int, stride: int, channels: int, width: int):
        super().__init__()
        self.stride = stride
        self.grids = nn.ParameterList(
            torch.empty(max(1, frames // 2**i), stride, stride, channels * 2**i) for i in range(3)
        )
        self.mix = nn.Linear(7 * channels, width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        cell = self.mix(torch.cat([_at(grid.permute(0, 3, 1, 2), t) for grid in self.grids], 1).permute(0, 2, 3, 1))
        cells = x.unflatten(1, (-1, self.stride)).unflatten(3, (-1, self.stride))
        return (cells + cell[:, None, :, None]).flatten(3, 4).flatten(1, 2)


class _Block(nn.Module):
    """Depthwise convolution, norm, perceptron over channels; added to the input where the widths agree."""

    def __init__(self, a: int, b: int, expansion: int):
        super().__init__()
        self.spread = nn.Conv2d(a, a, 3, padding=1, groups=a, bias=False)
        self.rise, self.fall = nn.Linear(a, expansion * b, bias=False), nn.Linear(expansion * b, b, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = _normed(self.spread(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        y = self.fall(F.gelu(self.rise(y)))
        return x + y if x.shape[-1] == y.shape[-1] else y


class HiNeRV(FrameModel):
    """Grids in time and space, then stages: norm, bilinear enlargement, local encoding, ConvNeXt-like blocks.

    Its embeddings are times.
    Args:
        frames: how many.
        size: (H, W) of a picture.
        width: channels of the first stages; halved from stage to stage after the first.
        strides: enlargement of each stage; None: by size.
        depth: blocks of each stage; the last stage has one.
        expansion: of the perceptrons; 1 in the last stage.
        base: channels of the finest base grid; the one half as long has twice as many.
        base_frames: its entries in time; None: 0.3 of the frames.
        local: channels of the finest local grid of the first stage, halved from stage to stage.
        generator: of the first weights.
    Shape:
        t [B], frame numbers or times -> [B, 3, H, W].
    Raises:
        ValueError: no frame, an empty picture, a stride below 1, an empty grid.
    Source: Kwan et al. 2023, arXiv 2306.09818; its published Bunny configurations; differs: whole frames only (the
        publication trains on patches, padded so that they equal whole frames); no pruning.
    Example:
        >>> model = HiNeRV(8, (45, 70), width=16)
        >>> model(torch.tensor([0, 7])).shape
        torch.Size([2, 3, 45, 70])
    """

    def __init__(
        self,
        frames: int,
        size: tuple[int, int],
        *,
        width: int = 136,
        strides: Sequence[int] | None = None,
        depth: int = 3,
        expansion: int = 4,
        base: int = 2,
        base_frames: int | None = None,
        local: int = 4,
        generator: torch.Generator | None = None,
    ):
        super().__init__(frames, size, _fine(size) if strides is None else strides)
        base_frames = max(1, round(0.3 * frames)) if base_frames is None else base_frames
        if min(width, depth, expansion, base, base_frames, local) < 1:
            _check.fail(
                "HiNeRV", "expected at least one channel, block and entry.", width=width, depth=depth,
                expansion=expansion, base=base, base_frames=base_frames, local=local,
            )  # fmt: skip
        self.base = nn.ParameterList(
            torch.empty(max(1, base_frames // 2**i), base * 2**i, *self.grid) for i in range(2)
        )
        self.stem = nn.Conv2d(3 * base, width, 3, padding=1)
        self.locals, self.stages = nn.ModuleList(), nn.ModuleList()
        before = width
        for i, stride in enumerate(self.strides):
            after = before if i == 0 else max(before // 2, 1)
            last = i > 0 and i == len(self.strides) - 1
            blocks = 1 if last else depth
            self.locals.append(_LocalGrid(frames, stride, max(local // 2**i, 1), before))
            self.stages.append(
                nn.Sequential(*(_Block(after if j else before, after, 1 if last else expansion) for j in range(blocks)))
            )
            before = after
        self.head = nn.Linear(before, 3)
        initialise(self, generator)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for grid in (*self.base, *(g for part in self.locals for g in part.grids)):
            nn.init.uniform_(grid, -_GRID_REACH, _GRID_REACH, generator=generator)

    def encode(self, t: Tensor) -> Tensor:
        """Times [B]."""
        return self.times(t)

    def decode(self, embedding: Tensor) -> Tensor:
        """Pictures at times [B]."""
        t = embedding + 0.5 / self.frames  # grids have their entries in the middle of what they stand for
        x = self.stem(torch.cat([_at(grid, t) for grid in self.base], 1)).permute(0, 2, 3, 1)
        for stride, local, stage in zip(self.strides, self.locals, self.stages):
            x = F.interpolate(_normed(x).permute(0, 3, 1, 2), scale_factor=stride, mode="bilinear").permute(0, 2, 3, 1)
            x = stage(local(x, t))
        return self.crop(torch.sigmoid(self.head(x).float()).permute(0, 3, 1, 2))


def _fine(size: tuple[int, int]) -> tuple[int, ...]:
    """Strides by size; the first grid is finer than that of the other networks, since it is all there is of space."""
    side = min(size)
    for least, strides in ((900, (5, 3, 2, 2)), (60, (5, 2, 2, 2)), (20, (5, 2)), (8, (2, 2))):
        if side >= least:
            return strides
    return (2,)
