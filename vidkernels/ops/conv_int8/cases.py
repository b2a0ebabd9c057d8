"""Named inputs of conv_int8."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from vidkernels._case import Case

LOW, HIGH = -3.2, 6.0  # what the real layers' indices 0 and 255 mean before their GELU
OUT = (HIGH + 0.17) / 255  # and what a step of their output means
ZERO = round(0.17 / OUT)


def _bytes_of(shape, g):
    return torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)


def _args(batch, size, channels, out, scale, kernel=3, zero=7, spread=1.0):
    """Weights and biases whose indices fill the table; `spread` times that, most lie outside."""

    def args(g, dtype):
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        x = _bytes_of((batch, *size, channels), g)
        filters, taps = out * scale**2, channels * kh * kw
        weight = torch.randint(-127, 128, (filters, kh, kw, channels), generator=g, dtype=torch.int8)
        reach = 73 * 74 * math.sqrt(taps)  # a sum's spread around the middle byte's
        bias = (reach * torch.randn(filters, generator=g)).round()
        bias = (bias - 127 * weight.double().sum((1, 2, 3)) + 2 * reach).int()
        shift = torch.randint(24, 32, (filters,), generator=g, dtype=torch.int32)
        multiplier = (torch.ldexp(spread * 64 / reach * torch.rand(filters, generator=g), shift)).round().int()
        return x, weight, bias, multiplier, shift, _bytes_of((256,), g), zero, scale

    return args


def _layer(grid, channels, out, scale, kernel):
    """A layer of a network: GELU in the table, few values outside of it."""

    def args(g, dtype):
        x, weight, bias, multiplier, shift, *_ = _args(1, grid, channels, out, scale, kernel)(g, dtype)
        x = (255 * torch.rand(x.shape, generator=g) ** 4).to(torch.uint8)  # many small ones
        spread = 57.0 * 74 * math.sqrt(weight[0].numel())
        ratio = 24 / spread  # indices to a unit of a sum
        bias = (89 / ratio - ZERO * weight.double().sum((1, 2, 3))).round().int()
        shift.fill_(14 - math.ceil(math.log2(ratio)))
        multiplier.fill_(round(ratio * 2 ** int(shift[0])))
        z = LOW + (HIGH - LOW) / 255 * torch.arange(256, dtype=torch.float64)
        table = (F.gelu(z) / OUT).round().add(ZERO).clamp(0, 255).to(torch.uint8)
        return x, weight, bias, multiplier, shift, table, ZERO, scale

    return args


def _tail(make, head):
    """A layer of `make` and a head (channels, scale, kernel) on what it draws."""

    def args(g, dtype):
        first = make(g, dtype)
        channels = first[1].shape[0] // first[7] ** 2
        return *first, *_args(0, (1, 1), channels, *head)(g, dtype)[1:]

    return args


def _last_two(layers):
    def args(g, dtype):
        _, channels, out, scale, kernel = layers[-1]
        return *_layer(*layers[-2])(g, dtype), *_layer((1, 1), channels, out, scale, kernel)(g, dtype)[1:]

    return args


def _strided(g, dtype):
    x, *rest = _args(2, (5, 6), 9, 3, 2)(g, dtype)
    return x.transpose(1, 2).contiguous().transpose(1, 2), *rest


def _wrapping(g, dtype):
    """Sums beyond 32 bits, any multipliers (also negative ones) and any shifts (also outside of 0 to 31)."""
    x, weight, bias, multiplier, _, table, _, scale = _args(2, (4, 9), 20, 5, 2)(g, dtype)
    low, high = -(1 << 31), 1 << 31
    bias = torch.randint(low, high, bias.shape, generator=g).int()
    multiplier = torch.randint(low, high, bias.shape, generator=g).int()
    multiplier[:4] = torch.tensor([low, high - 1, 0, -1])
    return x, weight, bias, multiplier, torch.randint(-40, 80, bias.shape, generator=g).int(), table, 255, scale


def _full(g, dtype):
    """The largest bytes and weights of both signs: sums of pairs that do not fit into 16 bits."""
    x, weight, bias, multiplier, shift, table, _, scale = _args(1, (5, 17), 36, 7, 2)(g, dtype)
    weight = torch.where(weight > 0, 127, -128).to(torch.int8)
    weight[::3] = -128
    return torch.full_like(x, 255), weight, bias, multiplier, shift, table, 255, scale


def _coarse(g, dtype):
    """Multipliers that are large beside their shifts: one unit of a sum is many indices."""
    x, weight, bias, _, _, table, zero, scale = _args(1, (3, 8), 4, 6, 2)(g, dtype)
    shift = torch.randint(1, 5, bias.shape, generator=g).int()
    return x, weight, bias, torch.randint(1, 99, bias.shape, generator=g).int(), shift, table, zero, scale


def _bytes(x, weight, bias, multiplier, shift, table, zero_point, scale):
    pixels = x.shape[0] * x.shape[1] * x.shape[2]
    return x.numel() + weight.numel() + 12 * len(bias) + 256, pixels * weight.shape[0]


def _flops(x, weight, bias, multiplier, shift, table, zero_point, scale):
    return 2.0 * x.shape[0] * x.shape[1] * x.shape[2] * weight.numel()


def _tail_bytes(*args):
    between = _bytes(*args[:8])[1]
    read, written = _bytes(args[0].new_empty(1, 1, between // args[8].shape[3], args[8].shape[3]), *args[8:])
    return _bytes(*args[:8])[0] + read - between, written


def _tail_flops(*args):
    between = args[0].shape[0] * args[0].shape[1] * args[0].shape[2] * args[7] ** 2
    return _flops(*args[:8]) + 2.0 * between * args[8].numel()


# HNeRV's decoders of 1.5 and 0.35 million parameters for 640 x 1280: (grid, in, out, enlargement, kernel) of a layer.
LAYERS = {
    "1500k": (
        ((2, 4), 16, 68, 1, 1), ((2, 4), 68, 57, 5, 1), ((10, 20), 57, 48, 4, 3), ((40, 80), 48, 40, 4, 5),
        ((160, 320), 40, 33, 2, 5), ((320, 640), 33, 28, 2, 5), ((640, 1280), 28, 3, 1, 3),
    ),
    "350k": (
        ((2, 4), 16, 32, 1, 1), ((2, 4), 32, 27, 5, 1), ((10, 20), 27, 22, 4, 3), ((40, 80), 22, 18, 4, 5),
        ((160, 320), 18, 15, 2, 5), ((320, 640), 15, 12, 2, 5), ((640, 1280), 12, 3, 1, 3),
    ),
}  # fmt: skip


def _case(name, make):
    return Case(name, make, dtypes=(torch.float32,), bytes=_bytes, flops=_flops)


def _tail_case(name, args):
    return Case(name, args, dtypes=(torch.float32,), bytes=_tail_bytes, flops=_tail_flops)


CASES = {
    "conv_int8": [
        _case("tiny", _args(2, (2, 3), 2, 1, 2)),
        _case("odd", _args(2, (5, 37), 7, 3, 3)),
        _case("odd_plain", _args(2, (13, 17), 12, 3, 1)),
        _case("odd_five", _args(1, (7, 19), 5, 5, 2, 5)),
        _case("odd_point", _args(2, (6, 7), 63, 17, 1, 1)),
        _case("odd_one", _args(1, (3, 5), 1, 1, 1, 1)),
        _case("odd_column", _args(2, (1, 43), 6, 4, 2, (1, 3))),
        _case("odd_rows", _args(2, (47, 1), 6, 4, 2, (3, 1))),
        _case("odd_wide", _args(1, (9, 83), 21, 12, 2)),
        _case("odd_pairs", _args(1, (9, 31), 11, 7, 2)),
        _case("odd_many_channels", _args(1, (3, 5), 131, 9, 3)),
        _case("odd_small_frame", _args(3, (2, 4), 48, 7, 5)),
        _case("odd_saturated", _args(1, (6, 9), 8, 6, 2, spread=300.0)),
        _case("empty", _args(0, (4, 5), 3, 2, 2)),
        _case("empty_picture", _args(2, (0, 5), 3, 2, 2)),
        _case("strided", _strided),
        _case("extreme_wrapping", _wrapping),
        _case("extreme_full", _full),
        _case("extreme_coarse", _coarse),
        *(
            _case(f"real_{size}_layer{i}", _layer(*layer))
            for size, layers in LAYERS.items()
            for i, layer in enumerate(layers)
        ),
    ],
    "decode_tail": [
        _tail_case("tiny", _tail(_args(2, (2, 3), 2, 2, 2), (3, 1, 3))),
        _tail_case("odd", _tail(_args(2, (5, 37), 7, 4, 3), (3, 1, 3))),
        _tail_case("odd_shuffled_head", _tail(_args(1, (9, 11), 6, 5, 2), (3, 2, 3))),
        _tail_case("odd_wide_head", _tail(_args(1, (13, 9), 6, 5, 1), (2, 1, 7))),
        _tail_case("odd_point_head", _tail(_args(3, (3, 5), 16, 8, 2, 1), (3, 1, 1))),
        _tail_case("odd_tiles", _tail(_args(1, (17, 150), 2, 64, 2), (3, 1, 3))),
        _tail_case("empty", _tail(_args(0, (4, 5), 3, 2, 2), (3, 1, 3))),
        _tail_case("strided", _tail(_strided, (3, 1, 3))),
        _tail_case("extreme_wrapping", _tail(_wrapping, (3, 1, 3))),
        *(_tail_case(f"real_{size}", _last_two(layers)) for size, layers in LAYERS.items()),
    ],
}
