"""The exact profile: pictures from integers alone, so that every machine draws the same bits.

Weights are the integers that the file holds (8 bits), activations are bytes, sums are 32 bits wide, and what follows a
sum is one multiplication, one shift and one table. Layer by layer, for inputs x with zero point z and weights k:

    sum    = bias + the sum of k (x - z), over what lies outside the picture z
    index  = (sum * multiplier + half) >> shift, held within 0 to 255
    output = table[index], the byte of GELU; in the last layer of the picture itself

An encoder chooses the ranges behind these numbers (`ranges`), then trains on with rounded activations (`simulated`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .._pool import empty
from ..functional.nerv.integer import Integers, decode_integers, folded_bias
from ..functional.nerv.upsample_conv import upsample_conv
from .entropy import decode_symbols, encode_symbols
from .nerv_bits import Quantised, join, split

ZERO = 128  # the byte of a latent of 0
MOST = 127  # of a latent, in units of its byte
_SPAN = 0.9999  # of the values before a GELU lie in the range of its table
_SAMPLES = 1 << 18
_PIECE = 1 << 17  # numbers that are worked on at a time
_FLAT = -3.2  # below, GELU is 0 as far as a byte goes
_DIP = 0.17  # GELU's least value is just above minus this
_MULTIPLIER_BITS = 15
_RATIO_BITS = 8  # behind the point of what one unit of a bias is worth
_FACTS = 6


@dataclass(frozen=True)
class Ranges:
    """What bytes mean: before a GELU `low + i * step`, behind it `(i - zero) * out`; and of each latent's byte."""

    low: tuple[float, ...]
    step: tuple[float, ...]
    out: tuple[float, ...]
    zero: tuple[int, ...]
    stretch: int  # bytes to a step of a latent

    @property
    def most(self) -> int:
        """The largest latent, in steps."""
        return MOST // self.stretch


@dataclass(frozen=True)
class Layer:
    """One convolution in integers. `offset` is in units of the sum, `ratio` those of a bias, in 256ths."""

    zero: int
    ratio: int
    offset: int
    multiplier: int
    shift: int
    table: np.ndarray  # [256] uint8


def ranges(layers, weights: dict[str, Tensor], latents: Tensor, most: int) -> Ranges:
    """From the values that some latents [B, C, h, w] give; `most`: the largest latent of all, in steps."""
    found = ([], [], [], [])
    x = latents
    for name, scale in layers[:-1]:
        x = upsample_conv(x, weights[f"{name}.weight"], weights[f"{name}.bias"], scale, "none")
        values = x.flatten()[:: 1 + x.numel() // _SAMPLES].sort().values
        cut = round((1 - _SPAN) * (len(values) - 1))
        low, high = max(float(values[cut]), _FLAT), max(float(values[len(values) - 1 - cut]), 0.1)
        out = (float(F.gelu(torch.tensor(high))) + _DIP) / 255
        for row, value in zip(found, (low, (high - low) / 255, out, round(_DIP / out)), strict=True):
            row.append(value)
        x = F.gelu(x)
    return Ranges(*map(tuple, found), stretch=max(1, MOST // max(1, most)))


def simulated(layers, weights: dict[str, Tensor], latents: Tensor, r: Ranges) -> Tensor:
    """Pictures [B, 3, H, W] as the integers will draw them, nearly; gradients pass through the rounding."""
    x = latents.contiguous(memory_format=torch.channels_last)
    for (name, scale), low, step, out, zero in zip(layers[:-1], r.low, r.step, r.out, r.zero, strict=True):
        z = upsample_conv(x, weights[f"{name}.weight"], weights[f"{name}.bias"], scale, "none")
        x = _Activated.apply(z, low, step, out, zero)
    name, scale = layers[-1]
    return upsample_conv(x, weights[f"{name}.weight"], weights[f"{name}.bias"], scale, "none") + 0.5


class _Activated(torch.autograd.Function):
    """GELU of z [B, C, h, w] as the table of a layer has it: of the nearest of 256 values, as the nearest byte's worth.

    The gradient passes as if nothing were rounded, but not where z leaves the table. All is done in pieces that stay in
    the processor's caches, in float32.
    """

    @staticmethod
    def forward(ctx, z: Tensor, low: float, step: float, out: float, zero: int) -> Tensor:
        z = z.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(z)
        ctx.numbers = low, step
        found = _like(z)
        for part, into in zip(_pieces(z), _pieces(found), strict=True):
            y = F.gelu(_indices(part, low, step).clamp_(0, 255).round_().mul_(step).add_(low))
            into.copy_(y.div_(out).add_(zero).round_().clamp_(0, 255).sub_(zero).mul_(out))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (z,), (low, step) = ctx.saved_tensors, ctx.numbers
        grad = grad.contiguous(memory_format=torch.channels_last)
        found = _like(z)
        for part, along, into in zip(_pieces(z), _pieces(grad), _pieces(found), strict=True):
            index = _indices(part, low, step)
            along = torch.ops.aten.hardtanh_backward(along.float(), index, 0, 255)  # 0 outside
            into.copy_(torch.ops.aten.gelu_backward(along, index.clamp_(0, 255).round_().mul_(step).add_(low)))
        return found, None, None, None, None


def _like(z: Tensor) -> Tensor:
    batch, channels, height, width = z.shape
    return empty((batch, height, width, channels), z.dtype, z.device).permute(0, 3, 1, 2)


def _indices(z: Tensor, low: float, step: float) -> Tensor:
    return z.to(torch.float32, copy=True).sub_(low).div_(step)


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    return x.permute(0, 2, 3, 1).reshape(-1).split(_PIECE)


def integers(layers, weights: dict[str, Quantised], latent_step: float, r: Ranges) -> list[Layer]:
    """The layers that draw what `simulated` shows."""
    out = []
    worth, zero = latent_step / r.stretch, ZERO
    for i, (name, _) in enumerate(layers):
        unit = worth * weights[f"{name}.weight"].step  # of the sum
        last = i + 1 == len(layers)
        low, step = (-0.5, 1 / 255) if last else (r.low[i], r.step[i])
        shift = _MULTIPLIER_BITS - math.ceil(math.log2(unit / step))
        table = np.arange(256)
        if not last:
            z = torch.tensor(low + step * table, dtype=torch.float64)
            table = (F.gelu(z) / r.out[i]).round().add(r.zero[i]).clamp(0, 255).numpy()
        out.append(
            Layer(zero, round(weights[f"{name}.bias"].step / unit * 2**_RATIO_BITS), round(-low / unit),
                  round(unit / step * 2**shift), shift, table.astype(np.uint8))
        )  # fmt: skip
        if not last:
            worth, zero = r.out[i], r.zero[i]
    return out


def encode_layers(layers: Sequence[Layer], stretch: int) -> bytes:
    facts = np.array([[x.zero, x.ratio, x.offset, x.multiplier, x.shift, stretch] for x in layers], np.int64)
    tables = np.stack([x.table.astype(np.int32) for x in layers])
    bends = np.diff(tables, 2, 1, prepend=np.zeros((len(tables), 2), np.int32))  # a table is almost straight
    return join(encode_symbols(facts.reshape(-1)), encode_symbols(bends.reshape(-1)))


def decode_layers(data: memoryview, count: int) -> tuple[list[Layer], int]:
    """(layers, stretch); ValueError where the bytes cannot be `count` layers."""
    facts, bends = split(data, 2)
    facts = decode_symbols(facts, _FACTS * count).reshape(count, _FACTS).astype(np.int64)
    bends = decode_symbols(bends, 256 * count).reshape(count, 256).astype(np.int64)
    tables = bends.cumsum(1).cumsum(1)
    if tables.min() < 0 or tables.max() > 255:
        raise ValueError("a table holds no bytes")
    zero, ratio, _, multiplier, shift, stretch = facts.T
    if not ((zero >= 0) & (zero <= 255) & (ratio >= 0) & (multiplier > 0) & (shift >= 1) & (shift <= 31)).all():
        raise ValueError("a number of an integer layer is out of range")
    if (stretch != stretch[0]).any() or not 1 <= stretch[0] <= MOST:
        raise ValueError("the latents' bytes have no worth")
    rows = zip(facts[:, :5].tolist(), tables.astype(np.uint8), strict=True)
    return [Layer(*numbers, table) for numbers, table in rows], int(stretch[0])


class IntegerDrawer:
    """Pictures [H, W, 3] uint8 of latents [C, h, w] in steps, from integers alone."""

    def __init__(self, names, weights: dict[str, Quantised], layers: Sequence[Layer], stretch: int, size):
        self.size, self._stretch, self._stages = size, stretch, []
        for (name, scale), layer in zip(names, layers, strict=True):
            k = weights[f"{name}.weight"].values.astype(np.int64)
            bias = weights[f"{name}.bias"].values.astype(np.int64) * layer.ratio
            bias = (bias + (1 << _RATIO_BITS - 1) >> _RATIO_BITS) + layer.offset
            rows = np.abs(k).reshape(len(k), -1)
            if rows.max() > 127 or (rows.sum(1) * 255 + np.abs(bias)).max() >> 31:
                raise ValueError("the sums of a layer need more than 32 bits")
            weight = torch.from_numpy(k.astype(np.int8)).permute(0, 2, 3, 1).contiguous()
            facts = (torch.full((len(k),), fact, dtype=torch.int32) for fact in (layer.multiplier, layer.shift))
            bias = folded_bias(torch.from_numpy(bias), weight, layer.zero)
            self._stages.append(Integers(weight, bias, *facts, torch.from_numpy(layer.table), layer.zero, scale))

    def draw(self, latents: Tensor, time: float = 0.0) -> Tensor:
        x = (latents.double() * self._stretch).round_().clamp_(-MOST, MOST).add_(ZERO).to(torch.uint8)
        x = decode_integers(x.permute(1, 2, 0)[None].contiguous(), self._stages)
        return x[0, : self.size[0], : self.size[1]].contiguous()
