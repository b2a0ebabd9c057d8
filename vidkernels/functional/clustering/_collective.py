"""Sums whose order is fixed, and the few collectives that clustering over several processes needs."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

_ROW = 1024


def ordered_sum(values: Tensor) -> Tensor:
    """Sum of a vector in float64 whose bits do not depend on the number of threads.

    torch splits one long sum among its threads, but never the sum of one row of a matrix.
    """
    rows = values.numel() // _ROW
    head = values[: rows * _ROW].view(rows, _ROW).sum(1, dtype=torch.float64)
    tail = values[rows * _ROW :].sum(dtype=torch.float64)
    return (ordered_sum(head) if rows > _ROW else head.sum()) + tail


def all_reduce(*tensors: Tensor, group=None) -> None:
    """Add tensors of one dtype up over the processes of `group`, in place and in one message; alone: nothing."""
    if group is None:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat, group=group)
    for t, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        t.copy_(total.view(t.shape))


def broadcast(tensor: Tensor, group=None) -> Tensor:
    """The tensor of the group's first process."""
    if group is not None:
        tensor = tensor.contiguous()
        dist.broadcast(tensor, src=dist.get_global_rank(group, 0), group=group)
    return tensor


def row_counts(rows: Tensor, group) -> tuple[Tensor, int]:
    """How many rows every process of the group has, [world] int64, and this process' place among them."""
    rank = dist.get_rank(group)
    counts = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=rows.device)
    counts[rank] = rows.shape[0]
    all_reduce(counts, group=group)
    return counts, rank


def gather_rows(rows: Tensor, group=None) -> tuple[Tensor, int]:
    """Rows of all processes in the order of their ranks, and where this process' begin."""
    if group is None:
        return rows, 0
    counts, rank = row_counts(rows, group)
    sizes = counts.tolist()
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)]), sum(sizes[:rank])
