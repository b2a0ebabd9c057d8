"""What people run instead of conv_int8: the same layer in floats, or torch's own 8-bit convolution.

The floats are those that the integers stand for: GELU of a convolution of dequantised inputs and weights.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from vidkernels.ops.conv_int8.cases import HIGH, LOW, OUT, ZERO

_STEP = (HIGH - LOW) / 255


def _floats(x, weight, bias, multiplier, shift, zero_point):
    """Input, weight and bias of the layer before its GELU, in torch's order."""
    ratio = _STEP * torch.ldexp(multiplier.double(), -shift)
    offset = (bias + zero_point * weight.double().sum((1, 2, 3))) * ratio + LOW
    weight = weight.double() * ratio.view(-1, 1, 1, 1)
    return (x.float() - zero_point).permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2).float(), offset.float()


def _layer(x, weight, bias, scale):
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    return lambda: F.gelu(F.pixel_shuffle(F.conv2d(x, weight, bias, padding=padding), scale))


def usual(x, weight, bias, multiplier, shift, table, zero_point, scale):
    """float32 in torch's usual order."""
    x, weight, bias = _floats(x, weight, bias, multiplier, shift, zero_point)
    return _layer(x.contiguous(), weight.contiguous(), bias, scale)


def careful(x, weight, bias, multiplier, shift, table, zero_point, scale):
    """bfloat16 in channels_last, which oneDNN gives to the matrix unit where there is one."""
    x, weight, bias = _floats(x, weight, bias, multiplier, shift, zero_point)
    last = torch.channels_last
    x, weight = x.bfloat16().contiguous(memory_format=last), weight.bfloat16().contiguous(memory_format=last)
    return _layer(x, weight, bias.bfloat16(), scale)


def quantized(x, weight, bias, multiplier, shift, table, zero_point, scale):
    """torch's quantised convolution, the table by indexing, and pixel shuffle."""
    ratio = torch.ldexp(multiplier.double(), -shift)
    x = torch._make_per_tensor_quantized_tensor(x.permute(0, 3, 1, 2), 1.0, zero_point)
    packed_weight = torch._make_per_channel_quantized_tensor(
        weight.permute(0, 3, 1, 2).contiguous(), ratio, torch.zeros_like(shift).long(), 0
    )
    offset = (bias + zero_point * weight.double().sum((1, 2, 3))) * ratio
    padding = [weight.shape[1] // 2, weight.shape[2] // 2]
    packed = torch.ops.quantized.conv2d_prepack(packed_weight, offset.float(), [1, 1], padding, [1, 1], 1)

    def run():
        index = torch.ops.quantized.conv2d(x, packed, 1.0, 0).int_repr()
        return F.pixel_shuffle(table[index.int()], scale)

    return run


def _same(outputs, expected, args):
    """A reason where a peer is not the layer that the bytes stand for, to within their steps."""
    (got,), (wanted,) = outputs, expected
    got = got.permute(0, 2, 3, 1)
    tolerance = 0.6 * OUT + 0.6 * _STEP
    if got.dtype is torch.uint8:
        got, tolerance = (got.float() - ZERO) * OUT, OUT + 2 * _STEP
    if got.dtype is torch.bfloat16:
        tolerance += 0.02 * HIGH
    apart = float((got.float().clamp(max=HIGH) - (wanted.float() - ZERO) * OUT).abs().max())
    return None if apart <= tolerance else f"{apart:.3f} from the layer in floats, allowed {tolerance:.3f}"


PEERS = {"conv_int8": {"usual": usual, "careful": careful, "quantized": quantized}}
SAME = {"conv_int8": _same}
