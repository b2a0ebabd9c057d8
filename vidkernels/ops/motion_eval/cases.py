"""Named inputs of motion_eval and its backward."""

from __future__ import annotations

import torch

from vidkernels._case import Case

_TYPES = (torch.float32, torch.float64)
_RTOL = {torch.float32: 1e-5, torch.float64: 1e-11}  # the gate of the splatting family
_ALL = ("coefficients", "times")


def _forward(count, terms, dim, moments, kind, low=0.0, high=1.0):
    def args(g, dtype):
        times = low + (high - low) * torch.rand(moments, generator=g)
        return torch.randn(count, terms, dim, generator=g).to(dtype), times.to(dtype), kind

    return args


def _backward(count, terms, dim, moments, kind, wanted=True):
    def args(g, dtype):
        inputs = _forward(count, terms, dim, moments, kind)(g, dtype)
        return torch.randn(moments, count, dim, generator=g).to(dtype), *inputs, wanted

    return args


def _extreme(g, dtype):
    """The ends of the curve and moments beyond them."""
    coefficients, _, kind = _forward(5, 6, 2, 0, "bspline")(g, dtype)
    times = torch.tensor([0.0, 1.0, -0.5, 1.5, float("inf"), float("nan"), 1 / 3], dtype=dtype)
    return coefficients, times, kind


def _strided(g, dtype):
    coefficients, times, kind = _forward(29, 12, 3, 10, "polynomial_fourier")(g, dtype)
    return coefficients.transpose(0, 2).contiguous().transpose(0, 2), times[::2], kind


def _bytes(coefficients, times, kind):
    size = coefficients.element_size()
    out = times.shape[0] * coefficients.shape[0] * coefficients.shape[2]
    return coefficients.numel() * size, out * size


def _bytes_backward(grad_out, coefficients, times, kind, moments):
    read = grad_out.numel() + (coefficients.numel() if moments else 0)
    return read * grad_out.element_size(), coefficients.numel() * grad_out.element_size()


def _case(name, args, **options):
    return Case(name, args, dtypes=_TYPES, rtol=_RTOL, **options)


CASES = {
    "motion_eval": [
        _case("tiny", _forward(4, 12, 3, 3, "polynomial_fourier"), grad=_ALL, bytes=_bytes),
        _case("tiny_bspline", _forward(4, 5, 2, 3, "bspline"), grad=_ALL, bytes=_bytes),
        _case("odd", _forward(131, 12, 7, 13, "polynomial_fourier", -1.0), grad=_ALL, bytes=_bytes),
        _case("odd_bspline", _forward(131, 23, 3, 17, "bspline"), grad=_ALL, bytes=_bytes),
        _case("odd_one_segment", _forward(67, 4, 1, 5, "bspline"), grad=_ALL),
        _case("empty", _forward(0, 12, 3, 3, "polynomial_fourier"), grad=_ALL),
        _case("empty_times", _forward(5, 6, 3, 0, "bspline"), grad=_ALL),
        _case("strided", _strided, grad=_ALL),
        _case("extreme", _extreme),
        _case("real_splatter", _forward(100_000, 12, 3, 8, "polynomial_fourier"), grad=_ALL, bytes=_bytes),
        _case("real_bspline", _forward(100_000, 16, 3, 8, "bspline"), grad=_ALL, bytes=_bytes),
    ],
    "motion_eval_backward": [
        _case("tiny", _backward(4, 12, 3, 3, "polynomial_fourier"), bytes=_bytes_backward),
        _case("odd", _backward(131, 12, 7, 13, "polynomial_fourier"), bytes=_bytes_backward),
        _case("odd_bspline", _backward(131, 23, 3, 17, "bspline"), bytes=_bytes_backward),
        _case("odd_fixed_times", _backward(67, 12, 3, 4, "polynomial_fourier", wanted=False)),
        _case("empty", _backward(0, 12, 3, 3, "polynomial_fourier")),
        _case("real_splatter", _backward(100_000, 12, 3, 8, "polynomial_fourier"), bytes=_bytes_backward),
    ],
}
