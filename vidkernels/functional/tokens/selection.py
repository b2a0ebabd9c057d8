"""Which tokens to keep: relevant and unlike each other, covering, not redundant."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vidkernels import _check

__all__ = ["maximal_marginal_relevance", "maximum_coverage"]

_BLOCK = 1 << 20  # elements of one comparison with the covered places, which torch widens before it adds


def maximal_marginal_relevance(
    relevance: Tensor, features: Tensor, count: int, *, trade_off: float = 0.7, mask: Tensor | None = None
) -> Tensor:
    """Choose items one by one that are relevant and unlike those already chosen.

    next = argmax over i not chosen of trade_off * relevance_i - (1 - trade_off) * max over chosen j of cos(x_i, x_j)
    Convention: the first is the most relevant one (nothing is chosen yet); of equal items the lowest index wins; the
        cosine with a zero vector is 0. `trade_off` 1 is the top `count` by relevance; 0, the least alike.
    Args:
        relevance: [B, N], floating point.
        features: [B, N, D], floating point.
        count: how many, at most N.
        trade_off: between 0 and 1.
        mask: [B, N] bool, True = may be chosen; None: all may.
    Returns:
        index: [B, count] int64 in the order of choice; -1 where the mask leaves fewer. Not differentiable.
    Raises:
        ValueError: shapes that do not fit, count outside 0 .. N, trade_off outside 0 .. 1; NaN (found on the CPU in
            eager mode; elsewhere such items are never chosen).
    Backends: reference (plain torch: one product with the chosen item a step, never N x N). Deterministic: yes.
    Source: Carbonell and Goldstein 1998, "The use of MMR, diversity-based reranking".
    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]]])
        >>> maximal_marginal_relevance(torch.tensor([[0.9, 0.8, 0.5]]), x, 2).tolist()
        [[0, 2]]
    """
    name = "maximal_marginal_relevance"
    _check.is_tensor(name, "features", features, "[B, N, D]")
    batch, length, _ = features.shape
    if relevance.shape != (batch, length) or (mask is not None and mask.shape != (batch, length)):
        _check.fail(name, "expected `relevance` (and `mask`) [B, N] for `features` [B, N, D].",
                    relevance=relevance, features=features, mask=mask)  # fmt: skip
    if not 0 <= count <= length or not 0 <= trade_off <= 1:
        _check.fail(name, "expected `count` between 0 and N, `trade_off` between 0 and 1.",
                    features=features, count=count, trade_off=trade_off)  # fmt: skip
    dtype = torch.promote_types(torch.promote_types(relevance.dtype, features.dtype), torch.float32)
    relevance, x = relevance.detach().to(dtype), features.detach().to(dtype)
    bad = relevance.isnan() | x.isnan().any(2)
    if not torch.compiler.is_compiling() and x.device.type == "cpu" and bool(bad.any()):
        _check.fail(name, f"expected numbers, got NaN at [batch, item] {bad.nonzero()[:5].tolist()}.",
                    relevance=relevance, features=features)  # fmt: skip
    # Scaling by the largest entry first: squares of huge and of tiny vectors stay in range.
    x = x.masked_fill(bad[:, :, None], 0)
    largest = x.abs().amax(2, keepdim=True) if x.shape[2] else x.new_zeros(batch, length, 1)
    x = F.normalize(x / torch.where(largest > 0, largest, 1), dim=2)
    free = ~bad if mask is None else mask & ~bad
    rows = torch.arange(batch, device=x.device)
    likeness = torch.zeros_like(relevance)
    chosen = []
    for step in range(count):
        score = trade_off * relevance - (1 - trade_off) * likeness
        best = score.masked_fill(~free, -torch.inf).argmax(1)
        chosen.append(torch.where(free[rows, best], best, -1))
        free = free.scatter(1, best[:, None], False)
        new = (x @ x[rows, best, :, None])[:, :, 0]
        likeness = new if step == 0 else torch.maximum(likeness, new)
    return torch.stack(chosen, 1) if chosen else torch.zeros(batch, 0, dtype=torch.int64, device=x.device)


def maximum_coverage(
    sets: Tensor, budget: int, *, target: float = 1.0, weight: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Choose sets one by one, each time the one that covers most of what is still uncovered.

    Greedy choice covers at least 1 - (1 - 1/K)^K > 1 - 1/e of the best K sets. It stops early once the share `target`
    of all that can be covered is reached, or nothing new is left.
    Convention: of sets that add equally much the lowest index wins.
    Args:
        sets: [B, N, V] bool, True = set n (a frame, say) has element v (a voxel, say).
        budget: K, at most N.
        target: share of the coverable weight at which to stop, 0 .. 1.
        weight: [B, V] or [V], worth of an element, >= 0; None: 1 each.
        mask: [B, N] bool, True = may be chosen; None: all may.
    Returns:
        index: [B, K] int64 in the order of choice, -1 after the stop.
        share: [B, K], float32 (float64 with a float64 weight), the covered share after each choice; 1 if there is
            nothing to cover. Not differentiable.
    Raises:
        ValueError: shapes that do not fit, `sets` not bool, budget outside 0 .. N, target outside 0 .. 1; negative or
            NaN weights (found on the CPU in eager mode).
    Backends: reference (plain torch: one pass over `sets` a step, in blocks; nothing of its size). Deterministic: yes.
    Source: Nemhauser, Wolsey and Fisher 1978; frames by voxels as in Zheng et al. 2024, arXiv 2412.00493, section 3.3.
    Example:
        >>> sets = torch.tensor([[[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]]).bool()
        >>> index, share = maximum_coverage(sets, 3)
        >>> index.tolist(), share.tolist()
        ([[1, 2, -1]], [[0.75, 1.0, 1.0]])
    """
    name = "maximum_coverage"
    _check.is_tensor(name, "sets", sets, "[B, N, V]")
    batch, length, places = sets.shape
    if sets.dtype is not torch.bool:
        _check.fail(name, "expected `sets` of bool.", sets=sets)
    if not 0 <= budget <= length or not 0 <= target <= 1:
        _check.fail(name, "expected `budget` between 0 and the number of sets, `target` between 0 and 1.",
                    sets=sets, budget=budget, target=target)  # fmt: skip
    if mask is not None and (mask.shape != (batch, length) or mask.dtype is not torch.bool):
        _check.fail(name, "expected `mask` [B, N] bool.", sets=sets, mask=mask)
    if weight is not None:
        weight = weight.expand(batch, places) if weight.dim() == 1 and len(weight) == places else weight
        if weight.shape != (batch, places):
            _check.fail(name, "expected `weight` [B, V] or [V].", sets=sets, weight=weight)
        known = not torch.compiler.is_compiling() and weight.device.type == "cpu"
        if known and not bool((weight >= 0).all()):
            _check.fail(name, "expected weights of 0 or more.", sets=sets, weight=weight)
    out_dtype = torch.float64 if weight is not None and weight.dtype is torch.float64 else torch.float32
    free = torch.ones(batch, length, dtype=torch.bool, device=sets.device) if mask is None else mask
    rows = torch.arange(batch, device=sets.device)
    usable = _union(sets, free)
    coverable = _worth(usable[:, None], weight)[:, 0]
    missing, left = usable, coverable
    done = left <= 0
    index, share = [], []
    for _ in range(budget):
        gain = _gains(sets, missing, weight).masked_fill(~free, -1)
        best = gain.argmax(1)
        take = ~done & (gain[rows, best] > 0)
        index.append(torch.where(take, best, -1))
        missing = missing & ~(sets[rows, best] & take[:, None])
        left = _worth(missing[:, None], weight)[:, 0]
        part = torch.where(coverable > 0, 1 - left / coverable.clamp(min=1e-300), 1)
        share.append(part.to(out_dtype))
        done = ~take | (part >= target)
    if not index:
        return (torch.zeros(batch, 0, dtype=torch.int64, device=sets.device), sets.new_zeros(batch, 0, dtype=out_dtype))
    return torch.stack(index, 1), torch.stack(share, 1)


def _union(sets: Tensor, free: Tensor) -> Tensor:
    """[B, N, V] and who counts, [B, N] -> what any of them has, [B, V]."""
    rows = max(1, _BLOCK // max(1, sets.shape[2]))
    out = sets.new_zeros(len(sets), sets.shape[2])
    for b in range(len(sets)):
        for part, own in zip(sets[b].split(rows), free[b].split(rows)):
            out[b] |= (part & own[:, None]).any(0)
    return out


def _gains(sets: Tensor, missing: Tensor, weight: Tensor | None) -> Tensor:
    """[B, N, V] and what is uncovered, [B, V] -> what each set would add, [B, N], float64."""
    rows = max(1, _BLOCK // max(1, sets.shape[2]))
    out = []
    for b in range(len(sets)):
        worth = None if weight is None else weight[b : b + 1]
        out.append(torch.cat([_worth(part & missing[b], worth) for part in sets[b].split(rows)]))
    return torch.stack(out) if out else sets.new_zeros(sets.shape[:2], dtype=torch.float64)


def _worth(elements: Tensor, weight: Tensor | None) -> Tensor:
    """[..., V] bool -> [...]: how many, or their weight; counts and small sums of weights are exact in float64."""
    if weight is None:
        # Summed as bytes: torch would first copy bool to int64.
        return elements.view(torch.uint8).sum(-1, dtype=torch.int32).double()
    weight = weight[:, None] if elements.dim() == 3 else weight
    return (elements * weight.double()).sum(-1)
