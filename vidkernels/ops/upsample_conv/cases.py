"""Named inputs of upsample_conv and its backward."""

from __future__ import annotations

import math

import torch

from vidkernels._case import ROUNDING, Case
from vidkernels.ops.upsample_conv.reference import slope


def _numbers(batch, size, channels, out, scale, kernel, g, dtype, spread):
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    x = torch.randn(batch, channels, *size, generator=g).to(dtype)
    fan_in = channels * kernel[0] * kernel[1]
    weight = (spread * torch.randn(out * scale**2, channels, *kernel, generator=g) / math.sqrt(fan_in)).to(dtype)
    return x, weight, (0.5 * torch.randn(out * scale**2, generator=g)).to(dtype)


def _mixed(make, *sizes, **more):
    """Weight and bias in float32 beside half-precision images."""

    def args(g, dtype):
        return tuple(
            a.float() if isinstance(a, torch.Tensor) and a.dtype is not torch.float64 and fixed else a
            for a, fixed in zip(make(*sizes, **more)(g, dtype), _WEIGHTS[make])
        )

    return args


def _forward(batch, size, channels, out, scale, kernel=3, activation="gelu", bias=True, spread=1.0):
    def args(g, dtype):
        x, weight, b = _numbers(batch, size, channels, out, scale, kernel, g, dtype, spread)
        return x.contiguous(memory_format=torch.channels_last), weight, b if bias else None, scale, activation

    return args


def _backward(
    batch, size, channels, out, scale, kernel=3, activation="gelu", bias=True, stored=False, with_x=True, spread=1.0
):
    def args(g, dtype):
        x, weight, b = _numbers(batch, size, channels, out, scale, kernel, g, dtype, spread)
        shape = batch, out, size[0] * scale, size[1] * scale
        grad = torch.randn(shape, generator=g).to(dtype)
        derivative = slope(torch.randn(shape, generator=g), activation).to(dtype) if stored else None
        return grad, x, weight, b if bias else None, derivative, scale, activation, with_x

    return args


def _bytes(x, weight, bias, scale, activation):
    size = x.element_size()
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return (x.numel() + weight.numel() + weight.shape[0]) * size, pixels * weight.shape[0] * size


def _flops(x, weight, bias, scale, activation):
    return 2.0 * x.shape[0] * x.shape[2] * x.shape[3] * weight.numel()


def _bytes_backward(grad_out, x, weight, bias, derivative, scale, activation, with_x):
    size = x.element_size()
    read = grad_out.numel() + x.numel() + weight.numel() + (0 if derivative is None else derivative.numel())
    return read * size, (weight.numel() + weight.shape[0] + (x.numel() if with_x else 0)) * size


def _flops_backward(grad_out, x, weight, bias, derivative, scale, activation, with_x):
    products = 1 + with_x + (derivative is None and activation != "none")
    return 2.0 * products * x.shape[0] * x.shape[2] * x.shape[3] * weight.numel()


def _loss(batch, size, channels, scale, kernel=3, cut=(0, 0), weighted=False, squash=False, l1=0.0, l2=1.0):
    """`cut`: rows and columns that the target has fewer than the pictures."""

    def args(g, dtype):
        x, weight, bias = _numbers(batch, size, channels, 3, scale, kernel, g, dtype, 0.3)
        rows, columns = (n * scale - c for n, c in zip(size, cut))
        target = torch.randint(0, 256, (batch, rows, columns, 3), dtype=torch.uint8, generator=g)
        share = torch.rand(batch, rows, columns, generator=g) / (3 * batch * rows * columns) if weighted else None
        return x.contiguous(memory_format=torch.channels_last), weight, bias, target, share, scale, squash, l1, l2

    return args


def _bytes_loss(x, weight, bias, target, share, scale, *rest):
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return x.numel() * x.element_size() + target.numel(), pixels * weight.shape[0] * x.element_size()


def _flops_loss(x, weight, *rest):
    return 2.0 * x.shape[0] * x.shape[2] * x.shape[3] * weight.numel()


_WEIGHTS = {_forward: (0, 1, 1, 0, 0), _backward: (0, 0, 1, 1, 0, 0, 0, 0), _loss: (0, 1, 1, 0, 1, 0, 0, 0, 0)}
_GRAD = ("x", "weight", "bias")
# The stages of a small decoder at 160 x 320, two frames; the last layer of a middle-sized one at 640 x 1280.
_STAGES = {
    "stage1": (2, (2, 4), 48, 28, 5),
    "stage2": (2, (10, 20), 28, 20, 4),
    "stage3": (2, (40, 80), 20, 16, 2),
    "stage4": (2, (80, 160), 16, 12, 2),
    "last640": (1, (320, 640), 32, 16, 2),
}
_HEAD = (2, (160, 320), 12, 3, 1, 3, "none")


def _case(name, make, *sizes, **more):
    return Case(name, make(*sizes, **more), grad=_GRAD if make is _forward else (), rtol=ROUNDING)


_LOSS_TYPES = torch.float32, torch.float64, torch.bfloat16


def _loss_case(name, *sizes, make=_loss, **more):
    args = _mixed(make, *sizes, **more) if "mixed" in name else make(*sizes, **more)
    real = {"bytes": _bytes_loss, "flops": _flops_loss} if name.startswith("real") else {}
    return Case(name, args, grad=_GRAD, dtypes=_LOSS_TYPES, rtol=ROUNDING, **real)


CASES = {
    "upsample_conv": [
        Case("tiny", _forward(2, (2, 3), 2, 1, 2), grad=_GRAD, rtol=ROUNDING, bytes=_bytes),
        _case("tiny_sine", _forward, 1, (3, 2), 3, 2, 1, activation="sine"),
        _case("odd", _forward, 2, (5, 37), 7, 3, 3),
        _case("odd_relu", _forward, 1, (9, 11), 16, 8, 2, activation="relu"),
        _case("odd_plain", _forward, 2, (13, 17), 12, 3, 1, activation="none"),
        _case("odd_five", _forward, 1, (7, 19), 5, 5, 2, 5, activation="sine"),
        _case("odd_point", _forward, 2, (6, 7), 63, 17, 1, 1),
        _case("odd_one", _forward, 1, (3, 5), 1, 1, 1, 1),
        _case("odd_column", _forward, 2, (1, 43), 6, 4, 2, (1, 3)),
        _case("odd_rows", _forward, 2, (47, 1), 6, 4, 2, (3, 1)),
        _case("odd_wide", _forward, 1, (9, 83), 20, 12, 2),
        _case("odd_small_frame", _forward, 3, (2, 4), 48, 7, 5),
        Case("odd_bare", _forward(1, (5, 6), 9, 2, 2, bias=False), grad=("x", "weight"), rtol=ROUNDING),
        Case("odd_mixed", _mixed(_forward, 2, (7, 12), 24, 6, 2), grad=_GRAD, rtol=ROUNDING),
        _case("empty", _forward, 0, (4, 5), 3, 2, 2),
        _case("extreme_steep", _forward, 1, (6, 9), 8, 6, 2, spread=40.0),
        *(
            Case(f"real_{name}", _forward(*sizes), grad=_GRAD, rtol=ROUNDING, bytes=_bytes, flops=_flops)
            for name, sizes in _STAGES.items()
        ),
        Case("real_head", _forward(*_HEAD), grad=_GRAD, rtol=ROUNDING, bytes=_bytes, flops=_flops),
    ],
    "upsample_conv_backward": [
        Case("tiny", _backward(2, (2, 3), 2, 1, 2), rtol=ROUNDING, bytes=_bytes_backward),
        _case("odd", _backward, 2, (5, 37), 7, 3, 3),
        _case("odd_stored", _backward, 2, (11, 29), 16, 12, 2, stored=True),
        _case("odd_stored_sine", _backward, 1, (9, 83), 20, 12, 2, activation="sine", stored=True),
        _case("odd_first", _backward, 2, (3, 4), 48, 5, 5, with_x=False),
        _case("odd_head", _backward, 2, (13, 17), 12, 3, 1, activation="none"),
        _case("odd_relu", _backward, 1, (9, 11), 10, 8, 2, 5, activation="relu"),
        _case("odd_point", _backward, 2, (6, 7), 33, 17, 1, 1),
        _case("odd_one", _backward, 1, (3, 5), 1, 1, 1, 1),
        _case("odd_rows", _backward, 2, (47, 1), 6, 4, 2, (3, 1)),
        _case("odd_bare", _backward, 1, (5, 6), 9, 2, 2, bias=False),
        Case("odd_mixed", _mixed(_backward, 2, (7, 12), 24, 6, 2), rtol=ROUNDING),
        _case("empty", _backward, 0, (4, 5), 3, 2, 2),
        *(
            Case(
                f"real_{name}", _backward(*sizes, stored=True), rtol=ROUNDING, bytes=_bytes_backward,
                flops=_flops_backward,
            )
            for name, sizes in _STAGES.items()
        ),
        Case("real_head", _backward(*_HEAD), rtol=ROUNDING, bytes=_bytes_backward, flops=_flops_backward),
    ],
    "upsample_conv_loss": [
        _loss_case("tiny", 2, (2, 3), 2, 2),
        _loss_case("tiny_squash", 1, (3, 2), 3, 1, squash=True, l1=0.5),
        _loss_case("odd", 2, (5, 37), 7, 3, cut=(2, 5), l1=0.7, l2=0.3),
        _loss_case("odd_weighted", 2, (11, 29), 12, 2, cut=(1, 0), weighted=True, l1=0.5),
        _loss_case("odd_squash", 2, (13, 17), 12, 1, squash=True, weighted=True),
        _loss_case("odd_point", 1, (9, 83), 20, 1, 1, squash=True),
        _loss_case("odd_mixed", 2, (7, 12), 24, 2, cut=(3, 1), weighted=True),
        _loss_case("odd_cut", 1, (6, 7), 5, 2, cut=(11, 13)),
        _loss_case("empty", 0, (4, 5), 3, 2),
        _loss_case("real_head", 2, (160, 320), 12, 1),
        _loss_case("real_twice", 2, (80, 160), 16, 2),
        _loss_case("real_squash", 1, (320, 640), 12, 1, squash=True),
    ],
}  # fmt: skip
