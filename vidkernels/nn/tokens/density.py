"""Merging tokens by density peaks clustering."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vidkernels import _check
from vidkernels.functional.tokens.density import dpc_knn_cluster
from vidkernels.functional.tokens.merging import merge_tokens
from vidkernels.functional.tokens.plan import MergePlan

__all__ = ["DPCKNNMerging"]


class DPCKNNMerging(nn.Module):
    """Cluster the tokens of every sample by density peaks and make one token of each cluster.

    merged = sum of w_i x_i / sum of w_i over a cluster; w = 1, or exp of a learned linear score of the token.
    Args:
        dim: channels C.
        clusters: how many (int), or their share of the tokens (float, rounded up).
        k: neighbours that make the density.
        weight: "uniform" or "learned".
    Shape: tokens [B, N, C], mask [B, N] bool (True = a token) or None -> merged [B, K, C]; size [B, K] float32, tokens
        of each cluster (0 where a sample has fewer tokens than clusters; `merged` is 0 there); the MergePlan. Gradients
        reach tokens and scores through the means, not through who joins whom.
    Source: Zeng et al. 2022, arXiv 2204.08680, section 3.2; Jin et al. 2023, arXiv 2303.14369, section 3.3.
    Example:
        >>> merged, size, plan = DPCKNNMerging(8, 0.25)(torch.randn(2, 20, 8))
        >>> merged.shape, size.sum(1).tolist()
        (torch.Size([2, 5, 8]), [20.0, 20.0])
    """

    def __init__(self, dim: int, clusters: int | float, *, k: int = 5, weight: str = "learned"):
        super().__init__()
        if weight not in ("uniform", "learned"):
            _check.fail("DPCKNNMerging", f"expected `weight` 'uniform' or 'learned', got {weight!r}.")
        if clusters <= 0 or (isinstance(clusters, float) and clusters > 1):
            _check.fail("DPCKNNMerging", "expected a number of `clusters` or a share in (0, 1].", clusters=clusters)
        self.clusters, self.k = clusters, k
        self.score = nn.Linear(dim, 1) if weight == "learned" else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, MergePlan]:
        count = math.ceil(self.clusters * x.shape[1]) if isinstance(self.clusters, float) else self.clusters
        plan, _ = dpc_knn_cluster(x, count, k=self.k, mask=mask)
        size = None if mask is None else mask.to(torch.float32)
        if mask is not None:  # 0 * NaN is NaN, and padding may hold anything
            x = x.masked_fill(~mask[:, :, None], 0)
        if self.score is None:
            return *merge_tokens(x, plan, size), plan
        logit = self.score(x).float()
        place = plan.source.long()
        rivals = logit.detach()[:, :, 0] if mask is None else logit.detach()[:, :, 0].masked_fill(~mask, -torch.inf)
        top = rivals.new_full((x.shape[0], count), -torch.inf).scatter_reduce(1, place, rivals, "amax")
        # Relative to the largest of its cluster, so that no exponential overflows; at most 1 also for padding.
        weight = (logit - top.gather(1, place)[:, :, None]).clamp(max=0).exp()
        both, size = merge_tokens(torch.cat([x.float() * weight, weight], 2), plan, size)
        merged = both[:, :, :-1] / torch.where(size > 0, both[:, :, -1], 1)[:, :, None]
        return merged.to(x.dtype), size, plan

    def extra_repr(self) -> str:
        return f"clusters={self.clusters}, k={self.k}, weight={'uniform' if self.score is None else 'learned'}"
