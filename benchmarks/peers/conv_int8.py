"""What people run instead of conv_int8: the same layer in floats, or torch's own 8-bit convolution.

The floats are those that the integers stand for: GELU of a convolution of dequantised inputs and weights.
"""

from __future__ import annotations

import warnings

import torch
from torch.nn import functional as F

from vidkernels.ops.conv_int8.cases import HIGH, LOW, OUT, ZERO
from vidkernels.ops.conv_int8.op import conv_int8

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
    warnings.simplefilter("ignore", UserWarning)  # that these types will go away
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


def _tail(x, args):
    """Input of the block in floats; weight, bias and scale of the block and of the head."""
    weight, bias, multiplier, shift, _, zero_point, scale = args[:7]
    x, weight, bias = _floats(x, weight, bias, multiplier, shift, zero_point)
    head, head_bias, multiplier, shift, _, zero_point, head_scale = args[7:]
    _, head, head_bias = _floats(x, head, head_bias, multiplier, shift, zero_point)
    return x, (weight, bias, scale), (head / OUT, head_bias, head_scale)


def usual_tail(x, *args):
    x, block, head = _tail(x, args)
    return lambda: _layer(_layer(x, *block)(), *head)()


def careful_tail(x, *args):
    x, *layers = _tail(x, args)
    last = torch.channels_last
    x = x.bfloat16().contiguous(memory_format=last)
    block, head = ((w.bfloat16().contiguous(memory_format=last), b.bfloat16(), scale) for w, b, scale in layers)
    return lambda: _layer(_layer(x, *block)(), *head)()


def two_calls(x, *args):
    """Ours, one layer after the other."""
    return lambda: conv_int8(conv_int8(x, *args[:7]), *args[7:])


def _same_tail(outputs, expected, args):
    """On average: between the layers there are bytes, which the floats do not round."""
    (got,), (wanted,) = outputs, expected
    if got.dtype is torch.uint8:
        return None if torch.equal(got, wanted) else "other bits"
    got = got.permute(0, 2, 3, 1).float().clamp(max=HIGH)
    apart = float((got - (wanted.float() - ZERO) * OUT).abs().mean())
    return None if apart <= OUT else f"{apart:.3f} from the layers in floats on average, allowed {OUT:.3f}"


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


PEERS = {
    "conv_int8": {"usual": usual, "careful": careful, "quantized": quantized},
    "decode_tail": {"usual": usual_tail, "careful": careful_tail, "two calls": two_calls},
}
SAME = {"conv_int8": _same, "decode_tail": _same_tail}
