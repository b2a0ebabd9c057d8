"""cluster_sums: the sum of the points of each cluster, and how many there are. Index -1 leaves a point out."""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.cluster_sums import reference

_BLOCK = 256  # kClusterBlock of cluster_sums.h


def _sum_dtype(points):
    return torch.float64 if points.dtype is torch.float64 else torch.float32


def _fake(points, index, k):
    dtype = _sum_dtype(points)
    return points.new_empty(k, points.shape[1], dtype=dtype), points.new_empty(k, dtype=dtype)


def _native(kernel, points, index, k):
    length, dim = points.shape
    dtype, device = _sum_dtype(points), points.device
    sums, counts = empty((k, dim), dtype, device), empty((k,), dtype, device)
    if kernel.__name__.endswith("_cuda"):
        cluster, order = torch.where((index >= 0) & (index < k), index, k).int().sort(stable=True)
        plan = empty((2 * k + 2 + length // _BLOCK,), torch.int32, device)
        partial = empty((length // (_BLOCK // 2) + 2, dim), dtype, device)
        kernel(points.contiguous(), cluster, order, sums, counts, plan, partial)
    else:
        kernel(points.contiguous(), index.contiguous(), sums, counts)
    return sums, counts


def _save_index(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])
    ctx.mark_non_differentiable(output[1])
    ctx.vk_points = inputs[0].dtype


def _backward(ctx, grad_sums, _):
    (index,) = ctx.saved_tensors
    k, dim = grad_sums.shape
    rows = torch.cat((grad_sums, grad_sums.new_zeros(1, dim))).to(ctx.vk_points)  # the last one for those left out
    return rows.index_select(0, torch.where((index >= 0) & (index < k), index, k)), None, None


cluster_sums = define(
    OpSpec(
        name="cluster_sums",
        schema="(Tensor points, Tensor index, SymInt k) -> (Tensor, Tensor)",
        reference=reference.cluster_sums,
        fake=_fake,
        native=_native,
        setup_context=_save_index,
        backward=_backward,
    )
)
