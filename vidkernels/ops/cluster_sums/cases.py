"""Named inputs of cluster_sums."""

from __future__ import annotations

import torch

from vidkernels._case import ROUNDING, Case


def _inputs(length: int, dim: int, k: int, used: int | None = None, left_out: float = 0.0):
    """Points in the first `used` clusters, a share of them in none."""

    def args(g, dtype):
        index = torch.randint(0, k if used is None else used, (length,), generator=g)
        index = torch.where(torch.rand(length, generator=g) < left_out, -1, index)
        return torch.randn(length, dim, generator=g).to(dtype), index, k

    return args


def _strided(g, dtype):
    points, index, k = _inputs(70, 34, 5)(g, dtype)
    return points.t().contiguous().t(), index.repeat_interleave(2)[::2], k


def _extreme(g, dtype):
    """Sums that cancel, signed zeros, an infinity and a NaN that stay in their clusters, an empty cluster."""
    big = float(torch.finfo(dtype).max) / 4
    values = [big, -big, -0.0, 1e-3, float("inf"), 1.0, float("nan"), 2.0, 0.0, torch.finfo(dtype).tiny]
    index = torch.tensor([0, 0, 1, 0, 2, 2, 3, 3, 1, 5])
    return torch.tensor(values, dtype=dtype)[:, None].expand(-1, 3).contiguous(), index, 7


def _bytes(points, index, k):
    read = points.numel() * points.element_size() + 8 * index.numel()
    return read, 4 * k * (points.shape[1] + 1)


# Sums are float32 whatever the points are, and the reference in float64 sees the same rounded points.
_RTOL = ROUNDING | {torch.float16: 2e-6, torch.bfloat16: 2e-6}


def _case(name, args, grad=True):
    return Case(name, args, grad=("points",) if grad else (), rtol=_RTOL, bytes=_bytes)


CASES = {
    "cluster_sums": [
        _case("tiny", _inputs(7, 3, 3)),
        _case("odd", _inputs(1009, 37, 61, left_out=0.1)),
        _case("odd_wide", _inputs(1301, 260, 11)),
        _case("odd_pairs", _inputs(997, 66, 127)),
        _case("odd_one_cluster", _inputs(2001, 67, 5, used=1)),
        _case("odd_many", _inputs(63, 5, 8191)),
        _case("empty", _inputs(0, 5, 3)),
        _case("empty_none", _inputs(9, 5, 3, left_out=1.0)),
        _case("empty_dim", _inputs(9, 0, 3)),
        _case("strided", _strided),
        _case("extreme", _extreme, grad=False),
        _case("real_kmeans_1000", _inputs(100_000, 256, 1000)),
        _case("real_codebook_8192", _inputs(100_000, 64, 8192)),
        _case("real_one_cluster", _inputs(100_000, 256, 1000, used=1)),
    ]
}
