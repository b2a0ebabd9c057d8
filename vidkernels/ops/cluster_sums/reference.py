"""Plain torch, the oracle."""

from __future__ import annotations

import torch


def cluster_sums(points: torch.Tensor, index: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    wide = points if points.dtype is torch.float64 else points.float()
    kept = index != -1
    sums = wide.new_zeros(k, points.shape[1]).index_add(0, index[kept], wide[kept])
    counts = wide.new_zeros(k).index_add(0, index[kept], wide.new_ones(int(kept.sum())))
    return sums, counts
