"""Named inputs of nearest: metrics, candidates, data that is hard for a screen, and the sizes of real users."""

from __future__ import annotations

import torch

from vidkernels._case import Case

_CLOSE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-6, torch.bfloat16: 2e-6}  # values are float32
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def _given(batch, count, code_batch, length, dim, *, k=1, metric="l2", candidates="all", screen=True, offset=0.0):
    def args(g, dtype):
        points = torch.randn(batch, count, dim, generator=g) + offset
        codes = points if code_batch is None else torch.randn(code_batch, length, dim, generator=g) + offset
        return points.to(dtype), codes.to(dtype), k, metric, candidates, screen

    return args


def _grid(batch, count, code_batch, length, dim, **more):
    """Gaussian data in steps of 1/64: distances are exact in float32, so that every backend names the same code."""

    def args(g, dtype):
        points, codes, *rest = _given(batch, count, code_batch, length, dim, **more)(g, torch.float32)
        points, codes = ((64 * t).round() / 64 for t in (points, codes))
        return points.to(dtype), codes.to(dtype), *rest

    return args


def _strided(g, dtype):
    """Every second token against the others, as token merging asks."""
    tokens = torch.randn(2, 50, 24, generator=g).to(dtype)
    return tokens[:, ::2], tokens[:, 1::2], 1, "cosine", "all", True


def _ties(g, dtype):
    """Small integers: many codes at equal distance, the lowest index wins."""
    points = torch.randint(-1, 2, (1, 70, 5), generator=g).to(dtype)
    codes = torch.randint(-1, 2, (1, 90, 5), generator=g).to(dtype)
    return points, codes, 7, "l2", "all", True


def _zeros(g, dtype):
    """Zero rows on both sides have cosine 0 with everything."""
    points, codes = torch.randn(1, 9, 6, generator=g), torch.randn(1, 11, 6, generator=g)
    points[:, ::4] = 0
    codes[:, ::5] = 0
    return points.to(dtype), codes.to(dtype), 3, "cosine", "all", True


def _huge(g, dtype):
    """As large as the type goes: a direction has no length."""
    size = torch.finfo(dtype).max / 8
    points, codes = torch.randn(1, 20, 6, generator=g), torch.randn(1, 40, 6, generator=g)
    return (points * size).to(dtype), (codes * size).to(dtype), 2, "cosine", "all", True


def _broken(g, dtype):
    """NaN rows get -1 and NaN, NaN codes are never chosen, infinitely far codes come last."""
    points, codes = torch.randn(1, 21, 6, generator=g), torch.randn(1, 19, 6, generator=g)
    points[0, 3, 2] = points[0, 20, 0] = codes[0, 5, 1] = codes[0, 18, 5] = torch.nan
    codes[0, 7, 0] = torch.inf
    points[0, 11, 3] = -torch.inf
    return points.to(dtype), codes.to(dtype), 18, "l2", "all", True


def _read(points, codes, k, *rest):
    moved = points.numel() * points.element_size() + codes.numel() * codes.element_size()
    return moved, points.shape[0] * points.shape[1] * k * 12


def _flops(points, codes, *rest):
    return 2.0 * points.numel() * codes.shape[1]


def _case(name, args, **more):
    return Case(name, args, rtol=_CLOSE, bytes=_read, flops=_flops, **more)


_LEAVES = ("points", "codes")

CASES = {
    "nearest": [
        _case("tiny", _given(2, 5, 2, 4, 3, k=2), grad=_LEAVES),
        _case("odd_shared_codes", _given(3, 63, 1, 37, 17, k=3), grad=_LEAVES),
        _case("odd_unscreened", _given(2, 67, 2, 131, 37, k=5, screen=False), grad=_LEAVES),
        _case("odd_inner_product", _given(2, 33, 2, 101, 31, k=4, metric="ip"), grad=_LEAVES),
        _case("odd_cosine", _given(1, 131, 1, 67, 29, k=1, metric="cosine"), grad=_LEAVES),
        _case("odd_others", _given(2, 83, None, 83, 13, k=5, candidates="others"), grad=("points",)),
        _case("odd_before", _given(2, 83, None, 83, 13, k=5, candidates="before"), grad=("points",)),
        _case("odd_before_cosine", _given(1, 147, None, 147, 33, metric="cosine", candidates="before")),
        _case("odd_others_long_rows", _given(1, 83, None, 83, 147, k=3, candidates="others"), grad=("points",)),
        _case("odd_before_long_rows", _given(1, 83, None, 83, 147, candidates="before"), grad=("points",)),
        _case("odd_most", _given(1, 40, 1, 300, 5, k=32), grad=_LEAVES),
        _case("odd_more_than_there_are", _given(1, 7, 1, 3, 4, k=5), grad=_LEAVES),
        _case("odd_one_dimension", _given(1, 19, 1, 23, 1)),
        _case("empty", _given(2, 0, 2, 4, 3)),
        _case("empty_codes", _given(2, 3, 2, 0, 3, k=2), grad=_LEAVES),
        _case("empty_batch", _given(0, 3, 1, 4, 3)),
        _case("strided", _strided, grad=_LEAVES),
        _case("extreme_ties", _ties),
        _case("extreme_zeros", _zeros, grad=_LEAVES),
        _case("extreme_huge", _huge, dtypes=_FLOATS),
        _case("extreme_broken", _broken),
        _case("real_vq", _grid(1, 100_000, 1, 8192, 64), oracle=False, dtypes=_FLOATS),
        _case("real_vq_unscreened", _grid(1, 100_000, 1, 8192, 64, screen=False), oracle=False, dtypes=_FLOATS),
        _case("real_kmeans", _grid(1, 100_000, 1, 1000, 256), oracle=False, dtypes=_FLOATS),
        _case("real_token_merging", _given(8, 784, 8, 784, 64, metric="cosine"), dtypes=_FLOATS),
        _case("real_dpc_knn", _grid(8, 1568, None, 1568, 768, k=5, candidates="others"), oracle=False, dtypes=_FLOATS),
    ]
}
