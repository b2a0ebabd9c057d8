"""Layers in integers: what they draw is the same to the bit on every machine, backend and number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vidkernels import _check
from vidkernels.ops.conv_int8.op import conv_int8 as _conv_int8
from vidkernels.ops.conv_int8.op import decode_tail as _decode_tail

__all__ = ["Integers", "conv_int8", "decode_integers", "decode_tail", "fixed_point", "folded_bias"]

_DTYPES = {
    "weight": torch.int8, "bias": torch.int32, "multiplier": torch.int32, "shift": torch.int32, "table": torch.uint8,
}  # fmt: skip


def conv_int8(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    table: Tensor,
    *,
    zero_point: int = 0,
    scale: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Convolution of bytes, requantisation, a table and pixel shuffle as one operation on integers.

    sum = bias[o] + sum over the taps of weight[o] * x, in 32 bits, which wrap
    index = (sum * multiplier[o] + 2^(shift[o] - 1)) >> shift[o], in 64 bits, held within 0 to 255
    out = pixel_shuffle(table[index], scale)
    Convention: [B, H, W, C]; filters ordered as torch's pixel_shuffle wants them, [C, scale, scale] flattened; outside
        of the picture x is `zero_point`, whose share of the sums is folded into `bias` (see `folded_bias`).
    Args:
        x: [B, H, W, I] uint8.
        weight: [O, kh, kw, I] int8, O = C * scale^2, odd kernel sizes.
        bias: [O] int32.
        multiplier, shift: [O] int32, shifts 1 to 31: the fixed-point factor from sums to indices (see `fixed_point`).
            A multiplier below 2^(shift - 1), not negative, is quickest.
        table: [256] uint8, an activation for example.
        zero_point: 0 to 255, the byte that stands for nothing.
        scale: the factor by which height and width grow.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        out: [B, H * scale, W * scale, C] uint8. Not differentiable: these are integers.
    Raises:
        ValueError: sizes that do not fit, an even kernel, no channel, other dtypes, a zero point that is no byte.
    Backends: reference, cpu (AMX or AVX-512 VNNI where present), cuda (sm80+). Equal bits on all of them.
    Source: Jacob et al. 2018, arXiv 1712.05877, section 2; differs: a table instead of a fused ReLU.
    Example:
        >>> x = torch.tensor([[[[3], [5]]]], dtype=torch.uint8)
        >>> weight, bias = torch.ones(4, 1, 1, 1, dtype=torch.int8), torch.arange(4, dtype=torch.int32)
        >>> half = torch.ones(4, dtype=torch.int32)
        >>> conv_int8(x, weight, bias, half, half, torch.arange(256, dtype=torch.uint8), scale=2)[0, ..., 0]
        tensor([[2, 2, 3, 3],
                [3, 3, 4, 4]], dtype=torch.uint8)
    """
    layer = Integers(weight, bias, multiplier, shift, table, zero_point, scale)
    _check_image("conv_int8", x)
    _check_layer("conv_int8", layer, x.shape[3])
    return _conv_int8(x, *layer, backend=backend)


class Integers(NamedTuple):
    """One layer of integers: the arguments of `conv_int8` behind x.

    Args:
        weight, bias, multiplier, shift, table, zero_point, scale: as there.
    Returns: a tuple of the seven.
    Example:
        >>> one = torch.ones(1, dtype=torch.int32)
        >>> weight, table = torch.ones(1, 1, 1, 2, dtype=torch.int8), torch.zeros(256, dtype=torch.uint8)
        >>> layer = vk.functional.Integers(weight, one, one, one, table)
        >>> layer.zero_point, layer.scale
        (0, 1)
    """

    weight: Tensor
    bias: Tensor
    multiplier: Tensor
    shift: Tensor
    table: Tensor
    zero_point: int = 0
    scale: int = 1


def decode_tail(x: Tensor, layer: Integers, head: Integers, *, backend: str | None = None) -> Tensor:
    """A decoder's last block and its RGB head: conv_int8 twice, the same bits, without the image in between.

    out = conv_int8(conv_int8(x, *layer), *head), some rows at a time
    Convention: as `conv_int8`.
    Args:
        x: [B, H, W, I] uint8.
        layer: the block.
        head: what comes behind it.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        out: [B, H * s, W * s, C] uint8, s the product of both scales. Not differentiable: these are integers.
    Raises:
        ValueError: as `conv_int8`, for either layer.
    Backends: reference, cpu, cuda (sm80+, two kernels and the image in between). Equal bits on all of them.
    Source: ours.
    Example:
        >>> one, plain = torch.ones(4, dtype=torch.int32), torch.arange(256, dtype=torch.uint8)
        >>> block, filters = torch.ones(4, 1, 1, 2, dtype=torch.int8), torch.ones(1, 3, 3, 1, dtype=torch.int8)
        >>> layer = vk.functional.Integers(block, 0 * one, 2 * one, one, plain, scale=2)
        >>> head = vk.functional.Integers(filters, 0 * one[:1], 2 * one[:1], one[:1], plain)
        >>> decode_tail(torch.ones(1, 1, 2, 2, dtype=torch.uint8), layer, head)[0, ..., 0]
        tensor([[ 8, 12, 12,  8],
                [ 8, 12, 12,  8]], dtype=torch.uint8)
    """
    _check_image("decode_tail", x)
    _check_layer("decode_tail", layer, x.shape[3])
    _check_layer("decode_tail", head, layer.weight.shape[0] // layer.scale**2)
    return _decode_tail(x, *layer, *head, backend=backend)


def decode_integers(x: Tensor, layers: Sequence[Integers], *, backend: str | None = None) -> Tensor:
    """All layers of a decoder, one after another, the last two by `decode_tail`.

    Args:
        x: [B, H, W, I] uint8.
        layers: at least one.
        backend: as of `conv_int8`.
    Returns:
        out: [B, H * s, W * s, C] uint8, s the product of all scales. Not differentiable: these are integers.
    Raises:
        ValueError: no layer; else as `conv_int8`.
    Backends: as `decode_tail`. Equal bits on all of them.
    Source: ours.
    Example:
        >>> one, plain = torch.ones(4, dtype=torch.int32), torch.arange(256, dtype=torch.uint8)
        >>> layer = vk.functional.Integers(torch.ones(4, 1, 1, 1, dtype=torch.int8), one, 2 * one, one, plain, scale=2)
        >>> decode_integers(torch.zeros(1, 1, 2, 1, dtype=torch.uint8), [layer] * 3).shape
        torch.Size([1, 8, 16, 1])
    """
    if not layers:
        _check.fail("decode_integers", "expected at least one layer.")
    for layer in layers[:-2] if len(layers) > 1 else layers:
        *numbers, zero_point, scale = layer
        x = conv_int8(x, *numbers, zero_point=zero_point, scale=scale, backend=backend)
    return decode_tail(x, *layers[-2:], backend=backend) if len(layers) > 1 else x


def _check_image(name: str, x: Tensor) -> None:
    _check.is_tensor(name, "x", x, "[B, H, W, I]")
    if x.dtype is not torch.uint8:
        _check.fail(name, "expected `x` of dtype uint8.", x=x)


def _check_layer(name: str, layer: Integers, channels: int) -> None:
    weight, zero_point, scale = layer.weight, layer.zero_point, layer.scale
    _check.is_tensor(name, "weight", weight, "[O, kh, kw, I]")
    given = {key: getattr(layer, key) for key in _DTYPES}
    for key, dtype in _DTYPES.items():
        if given[key].dtype is not dtype:
            _check.fail(name, f"expected `{key}` of dtype {str(dtype)[6:]}.", **given)
    filters, kh, kw, wanted = weight.shape
    if wanted != channels or channels == 0:
        _check.fail(name, "expected `weight` to have the channels of `x`, at least one.", channels=channels, **given)
    if kh % 2 == 0 or kw % 2 == 0:
        _check.fail(name, "expected odd kernel sizes.", weight=weight)
    if scale < 1 or filters % (scale * scale):
        _check.fail(name, "expected `weight` to have C * scale^2 filters, scale >= 1.", weight=weight, scale=scale)
    if any(given[key].shape != (filters,) for key in ("bias", "multiplier", "shift")) or layer.table.shape != (256,):
        _check.fail(name, "expected one bias, multiplier and shift per filter, and 256 bytes of `table`.", **given)
    if not 0 <= zero_point <= 255:
        _check.fail(name, "expected `zero_point` to be a byte.", zero_point=zero_point)


def fixed_point(ratio: Tensor, *, bits: int = 16) -> tuple[Tensor, Tensor]:
    """The fixed-point number, multiplier / 2^shift, that is nearest to `ratio`.

    Multipliers have `bits` bits; ratios below 2^(bits - 32) have fewer, because shifts end at 31.
    Args:
        ratio: any shape, floating, positive and below 2^(bits - 1).
        bits: 2 to 30.
    Returns:
        multiplier, shift: like `ratio`, int32. Not differentiable.
    Raises:
        ValueError: a ratio that is not positive, or too large.
    Backends: torch. Deterministic.
    Source: Jacob et al. 2018, arXiv 1712.05877, section 2.2.
    Example:
        >>> fixed_point(torch.tensor([0.75, 0.001]), bits=8)
        (tensor([192, 131], dtype=torch.int32), tensor([ 8, 17], dtype=torch.int32))
    """
    ratio = ratio.double()
    if not bool(((ratio > 0) & (ratio < 2.0 ** (bits - 1))).all()):
        _check.fail("fixed_point", f"expected ratios above 0 and below 2^{bits - 1}.", ratio=ratio)
    shift = (bits - torch.frexp(ratio).exponent).clamp(1, 31)
    return torch.ldexp(ratio, shift).round().int(), shift.int()


def folded_bias(bias: Tensor, weight: Tensor, zero_point: int) -> Tensor:
    """The bias [O] int32 for bytes instead of (byte - zero_point): bias - zero_point * the sum of each filter.

    Args:
        bias: [O], integers, for sums over weight * (x - zero_point).
        weight: [O, kh, kw, I] int8.
        zero_point: of x.
    Returns:
        folded: [O] int32. Not differentiable.
    Raises:
        ValueError: one that needs more than 32 bits.
    Backends: torch. Deterministic.
    Source: Jacob et al. 2018, arXiv 1712.05877, section 2.3.
    Example:
        >>> folded_bias(torch.tensor([5]), torch.full((1, 1, 1, 2), 3, dtype=torch.int8), 10)
        tensor([-55], dtype=torch.int32)
    """
    folded = bias.long() - zero_point * weight.long().sum((1, 2, 3))
    if folded.numel() and bool(((folded < -(1 << 31)) | (folded >= 1 << 31)).any()):
        _check.fail("folded_bias", "a bias needs more than 32 bits.", bias=bias, weight=weight, zero_point=zero_point)
    return folded.int()
