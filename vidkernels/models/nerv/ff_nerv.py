"""A video as grids in time, and frames that are partly made of their warped neighbours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from vidkernels import _check
from vidkernels.functional.nerv.grids import temporal_grid
from vidkernels.functional.nerv.warp import flow_warp_aggregate
from vidkernels.nn.nerv.block import NeRVBlock

from .frame_model import FrameModel, initialise, to_picture

__all__ = ["FFNeRV"]


class _Bounded(nn.Module):
    """Weights kept within -1..1 by tanh and cut to whole steps of 1 / (2^(bits-1) - 1); gradients pass the cut."""

    def __init__(self, bits: int):
        super().__init__()
        self.levels = 2 ** (bits - 1) - 1

    def forward(self, weight: Tensor) -> Tensor:
        bounded = torch.tanh(weight)
        return bounded + ((bounded * self.levels).trunc() / self.levels - bounded).detach()


class _Compact(nn.Module):
    """A block in two: a 3 x 3 convolution in groups, then 1 x 1 across them, shuffle and GELU."""

    def __init__(self, a: int, b: int, stride: int):
        super().__init__()
        filters = b * stride**2
        self.grouped = nn.Conv2d(a, filters, 3, padding=1, groups=math.gcd(8, math.gcd(a, filters)))
        self.across = NeRVBlock(filters, b, stride, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.across(self.grouped(x))


class FFNeRV(FrameModel):
    """Multi-resolution temporal grids, convolution blocks, and flow-guided aggregation of neighbouring frames.

    own = picture of the last block; aggregated = softmax-weighted sum of the neighbours' own pictures, warped by flows
    that a middle block reads; frame = softmax-weighted sum of own and aggregated, pixel by pixel.
    Its embeddings are times.
    Convention: flows in pixels (x, y); neighbours before the first and after the last frame are black.
    Gradient: neighbours are constants. A fit takes them from what earlier steps have decoded, as published; `forward`
        decodes them anew.
    Args:
        frames: how many.
        size: (H, W) of a picture.
        width: channels of the grids together, divided evenly among them.
        grids: entries in time of each grid; None: half as many as frames, and as many.
        neighbours: which frames are warped, relative to the present one.
        strides: enlargement of each block, three at least; None: by size.
        expansion: channels of the first block over `width`.
        reduction: channels of a block over those of the next.
        lowest: channels of a block, at least.
        compact: whether blocks after the first are factorised, in groups of 8 (or what of 8 divides the channels).
        bits: train with weights cut to so many bits and bounded by tanh; None: with plain ones.
        generator: of the first weights.
    Shape:
        t [B], frame numbers or times -> [B, 3, H, W].
    Raises:
        ValueError: no frame, an empty picture, a stride below 1, fewer than 3 strides, a width the grids do not share.
    Source: Lee et al. 2022, arXiv 2212.12294; its published training script; differs: flow 0 is exactly no motion.
    Example:
        >>> model = FFNeRV(8, (45, 70), width=8, lowest=8, expansion=2)
        >>> model(torch.tensor([0, 7])).shape
        torch.Size([2, 3, 45, 70])
    """

    width_step = 8

    def __init__(
        self,
        frames: int,
        size: tuple[int, int],
        *,
        width: int = 48,
        grids: Sequence[int] | None = None,
        neighbours: Sequence[int] = (-2, -1, 1, 2),
        strides: Sequence[int] | None = None,
        expansion: int = 8,
        reduction: int = 2,
        lowest: int = 24,
        compact: bool = True,
        bits: int | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__(frames, size, _three(size) if strides is None else strides)
        grids = (max(1, frames // 2), frames) if grids is None else tuple(grids)
        self.neighbours = tuple(neighbours)
        if len(self.strides) < 3 or width % len(grids) or min(grids) < 1 or not neighbours:
            _check.fail(
                "FFNeRV", "expected 3 strides, a neighbour, and channels that the grids share evenly.",
                strides=self.strides, width=width, grids=grids, neighbours=neighbours,
            )  # fmt: skip
        self.grids = nn.ParameterList(torch.empty(n, width // len(grids), *self.grid) for n in grids)
        widths = [width, width * expansion]
        for stride in self.strides[1:]:
            widths.append(max(widths[-1] // (1 if stride == 1 else reduction), lowest))
        self.blocks = nn.ModuleList(
            _Compact(a, b, s) if compact and i else NeRVBlock(a, b, s)
            for i, ((a, b), s) in enumerate(zip(itertools.pairwise(widths), self.strides, strict=True))
        )
        self.flow_scale = math.prod(self.strides[-2:])
        self.flow_head = nn.Conv2d(widths[-3], 3 * len(neighbours), 1)
        self.head = nn.Conv2d(widths[-1], 5, 1)
        initialise(self, generator)
        for grid in self.grids:
            nn.init.xavier_uniform_(grid, generator=generator)
            grid.data = grid.data.contiguous(memory_format=torch.channels_last)  # as temporal_grid reads it
        if bits is not None:
            self._bound(bits)
        self._seen: dict[int, Tensor] = {}  # own pictures of earlier steps of a fit

    def _bound(self, bits: int) -> None:
        if not 2 <= bits <= 16:
            _check.fail("FFNeRV", "expected 2 to 16 `bits`.", bits=bits)
        for layer in list(self.modules()):
            if isinstance(layer, nn.Conv2d):
                for name in ("weight", "bias"):
                    parametrize.register_parametrization(layer, name, _Bounded(bits))
        self.bounded = _Bounded(bits)

    def encode(self, t: Tensor) -> Tensor:
        """Times [B]."""
        return self.times(t)

    def decode(self, embedding: Tensor) -> Tensor:
        """Pictures at times [B], with neighbours decoded for them."""
        own, flows, weights = self._independent(embedding)
        return self._blended(own, flows, weights, self._decoded_around(embedding))[0]

    def outputs(self, *inputs: Tensor) -> list[tuple[float, Tensor]]:
        """The frame, and for a tenth each what was aggregated and the frame's own picture."""
        (numbers,) = inputs
        own, flows, weights = self._independent(self.times(numbers))
        around = self._remembered_around(numbers)
        self._seen.update(zip(numbers.tolist(), own.detach().to(torch.bfloat16)))
        frame, aggregated = self._blended(own, flows, weights, around)
        return [(1.0, frame), (0.1, aggregated), (0.1, self.crop(own))]

    def _independent(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What each moment says alone: own picture, flows and scores of the neighbours, scores of own and aggregated.

        Not cropped yet.
        """
        x = torch.cat([self._at(grid, t) for grid in self.grids], 1).contiguous(memory_format=torch.channels_last)
        flows = x
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == len(self.blocks) - 3:
                flows = self.flow_head(x).float()
        out = self.head(x).float()
        return to_picture(out[:, :3]), flows, out[:, 3:]

    def _at(self, grid: Tensor, t: Tensor) -> Tensor:
        """The grid between its entries, linearly; entry i belongs to time i / entries."""
        values = self.bounded(grid) if hasattr(self, "bounded") else grid
        return temporal_grid(values, t * (len(grid) / max(1, len(grid) - 1)))

    def _blended(self, own: Tensor, flows: Tensor, weights: Tensor, around: Tensor) -> tuple[Tensor, Tensor]:
        """Frame and aggregated picture; `around` [B, K, 3, H, W] are the neighbours."""
        count = len(self.neighbours)
        flow = flows[:, : 2 * count].reshape(-1, 2, *flows.shape[2:])
        flow = F.interpolate(flow, scale_factor=self.flow_scale, mode="bilinear") * self.flow_scale
        scores = F.interpolate(flows[:, 2 * count :], scale_factor=self.flow_scale)
        aggregated = flow_warp_aggregate(around, flow.unflatten(0, (-1, count)), scores)
        keep = weights.softmax(1)
        return self.crop(keep[:, :1] * own + keep[:, 1:] * aggregated), self.crop(aggregated)

    @torch.no_grad()
    def _decoded_around(self, t: Tensor) -> Tensor:
        """Own pictures [B, K, 3, H, W] of the neighbours of times [B], each distinct one decoded once."""
        numbers = t.unsqueeze(1) * self.frames + torch.tensor(self.neighbours, dtype=t.dtype, device=t.device)
        inside = (numbers > -1e-6) & (numbers < self.frames - 1 + 1e-6)
        distinct, where = numbers.clamp(0, self.frames - 1).flatten().unique(return_inverse=True)
        pictures = self._independent(distinct / self.frames)[0][where].unflatten(0, numbers.shape)
        return pictures * inside[:, :, None, None, None]

    @torch.no_grad()
    def _remembered_around(self, numbers: Tensor) -> Tensor:
        """The same from earlier steps; what none of them has shown is decoded, each time, for it changes."""
        wanted = [[n + k for k in self.neighbours] for n in numbers.tolist()]
        new = sorted({n for row in wanted for n in row if 0 <= n < self.frames} - set(self._seen))
        fresh = self._independent(self.times(torch.tensor(new, device=numbers.device)))[0] if new else ()
        known = self._seen | dict(zip(new, fresh))
        black = torch.zeros(3, *(n * self.scale for n in self.grid), device=numbers.device)
        rows = [torch.stack([known.get(n, black).float().permute(1, 2, 0) for n in row]) for row in wanted]
        return torch.stack(rows).permute(0, 1, 4, 2, 3)  # colours beside each other, as they will be read


def _three(size: tuple[int, int]) -> tuple[int, ...]:
    """Strides by size, three at least: flows are read before the last two."""
    side = min(size)
    for least, strides in ((600, (5, 2, 2, 2, 2)), (120, (5, 4, 2, 2)), (30, (5, 2, 2)), (12, (2, 2, 2))):
        if side >= least:
            return strides
    return (1, 2, 2)
