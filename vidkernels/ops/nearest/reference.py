"""Plain torch, the oracle: every similarity of a few rows at a time, sorted."""

from __future__ import annotations

import torch

_ELEMENTS = 1 << 24  # of the largest temporary


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Rows of length 1; a zero row stays zero. Scaled first, so that no square overflows or vanishes."""
    x = x / x.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    return x / x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def nearest(
    points: torch.Tensor, codes: torch.Tensor, k: int, metric: str, candidates: str, screen: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = torch.float64 if torch.float64 in (points.dtype, codes.dtype) else torch.float32
    points, codes = points.to(dtype), codes.to(dtype)
    batch, count, dim = points.shape
    length = codes.shape[1]
    if metric == "cosine":
        points, codes = _unit(points), _unit(codes)
    worst = float("inf") if metric == "l2" else float("-inf")
    index = torch.full((batch, count, k), -1, dtype=torch.int64, device=points.device)
    value = points.new_full((batch, count, k), worst)
    kept = min(k, length)
    step = max(1, _ELEMENTS // max(1, batch * length * dim))
    column = torch.arange(length, device=points.device)
    for low in range(0, count if kept else 0, step):
        rows = points[:, low : low + step]
        if metric == "l2":
            score = (rows[:, :, None] - codes[:, None]).square().sum(-1)
        else:
            score = (rows[:, :, None] * codes[:, None]).sum(-1)
        row = torch.arange(low, low + rows.shape[1], device=points.device)[:, None]
        allowed = ~score.isnan()
        if candidates == "others":
            allowed = allowed & (column != row)
        elif candidates == "before":
            allowed = allowed & (column < row)
        # Sort by (not allowed, value): an allowed candidate may itself be infinitely far.
        score = score.masked_fill(~allowed, worst)
        order = score.argsort(dim=-1, stable=True, descending=metric != "l2")
        absent = ~allowed.gather(-1, order)
        order = order.gather(-1, absent.to(torch.uint8).argsort(dim=-1, stable=True))
        order = order[..., :kept]
        found = allowed.gather(-1, order)
        index[:, low : low + step, :kept] = order.where(found, -1)
        value[:, low : low + step, :kept] = score.gather(-1, order)
    broken = points.isnan().any(-1)[..., None]
    return value.masked_fill(broken, float("nan")), index.masked_fill(broken, -1)
