"""Named inputs of slice_spacetime and its backward."""

from __future__ import annotations

import torch

from vidkernels._case import Case

_TYPES = (torch.float32, torch.float64)
_RTOL = {torch.float32: 1e-5, torch.float64: 1e-11}  # the gate of the splatting family
_ALL = ("means", "cholesky", "times")


def _forward(count, moments, size=64.0):
    def args(g, dtype):
        means = torch.rand(count, 3, generator=g) * torch.tensor([size, size, 1.0])
        cholesky = torch.randn(count, 6, generator=g) * torch.tensor([2.0, 2, 2, 0.1, 0.1, 0.1])
        cholesky[:, (0, 2)] += 3
        cholesky[:, 5] = 0.1 + cholesky[:, 5].abs()
        return means.to(dtype), cholesky.to(dtype), torch.rand(moments, generator=g).to(dtype)

    return args


def _backward(count, moments, size=64.0):
    def args(g, dtype):
        inputs = _forward(count, moments, size)(g, dtype)
        grads = (torch.randn(s, generator=g).to(dtype) for s in ((moments, count, 2), (count, 3), (moments, count)))
        return *grads, *inputs

    return args


def _extreme(g, dtype):
    """No extent in time at all, only a slanted one, not finite, far away in time."""
    means, cholesky, times = _forward(9, 3)(g, dtype)
    cholesky[0, 3:] = 0
    cholesky[1, 4:] = 0
    cholesky[2, 5] = 0
    cholesky[3, 5] = float("nan")
    cholesky[4, 3] = float("inf")
    cholesky[5, 5] *= -1
    means[6, 2] = 1e4
    means[7, 2] = float("nan")
    return means, cholesky, times


def _bytes(means, cholesky, times):
    size = means.element_size()
    return means.shape[0] * 9 * size, means.shape[0] * 3 * (1 + times.shape[0]) * size


def _bytes_backward(gm, gc, gw, means, cholesky, times):
    written, read = _bytes(means, cholesky, times)
    return read + written, written


def _case(name, args, **options):
    return Case(name, args, dtypes=_TYPES, rtol=_RTOL, **options)


CASES = {
    "slice_spacetime": [
        _case("tiny", _forward(5, 3, 4.0), grad=_ALL, bytes=_bytes),
        _case("odd", _forward(331, 7), grad=_ALL, bytes=_bytes),
        _case("empty", _forward(0, 3), grad=_ALL),
        _case("empty_times", _forward(5, 0), grad=_ALL),
        _case("extreme", _extreme),
        _case("real_clip", _forward(50_000, 20, 1280.0), grad=_ALL, bytes=_bytes),
    ],
    "slice_spacetime_backward": [
        _case("tiny", _backward(5, 3, 4.0), bytes=_bytes_backward),
        _case("odd", _backward(331, 7), bytes=_bytes_backward),
        _case("empty", _backward(0, 3)),
        _case("extreme", lambda g, d: (*_backward(9, 3)(g, d)[:3], *_extreme(g, d))),
        _case("real_clip", _backward(50_000, 20, 1280.0), bytes=_bytes_backward),
    ],
}
