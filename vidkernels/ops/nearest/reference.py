"""Plain torch, the oracle: every similarity of a few rows at a time, sorted."""

from __future__ import annotations

import torch

_ELEMENTS = 1 << 24  # of the largest temporary
_LARGE = 1 << 32  # differences; beyond, scores come from a product in float64


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Rows of length 1; a zero row stays zero. Scaled first, so that no square overflows or vanishes."""
    x = x / x.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    return x / x.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


def _scores(rows: torch.Tensor, codes: torch.Tensor, metric: str, large: bool) -> torch.Tensor:
    """What orders the codes, ascending: [B, n, K]. Only differences tell equal codes apart from nearly equal ones."""
    if large:
        product = rows.double() @ codes.double().transpose(1, 2)
        return -product if metric != "l2" else codes.double().square().sum(-1)[:, None] - 2 * product
    if metric == "l2":
        return (rows[:, :, None] - codes[:, None]).square().sum(-1)
    return -(rows[:, :, None] * codes[:, None]).sum(-1)


def _least(score: torch.Tensor, allowed: torch.Tensor, kept: int) -> torch.Tensor:
    """Positions of the smallest allowed scores, the lowest position first among equal ones."""
    score = score.masked_fill(~allowed, torch.inf)
    if kept == 1 and bool((score.isfinite().any(-1)).all()):
        return score.min(-1, keepdim=True).indices
    order = torch.argsort(score, dim=-1, stable=True)
    absent = ~allowed.gather(-1, order)  # an allowed candidate may itself be infinitely far
    return order.gather(-1, absent.to(torch.uint8).argsort(dim=-1, stable=True))[..., :kept]


def nearest(
    points: torch.Tensor, codes: torch.Tensor, k: int, metric: str, candidates: str, screen: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = torch.float64 if torch.float64 in (points.dtype, codes.dtype) else torch.float32
    points, codes = points.to(dtype), codes.to(dtype)
    batch, count, dim = points.shape
    length = codes.shape[1]
    if metric == "cosine":
        points, codes = _unit(points), _unit(codes)
    codes = codes.expand(batch, -1, -1)
    index = torch.full((batch, count, k), -1, dtype=torch.int64, device=points.device)
    value = points.new_full((batch, count, k), torch.inf if metric == "l2" else -torch.inf)
    kept = min(k, length)
    large = batch * count * length * dim > _LARGE
    step = max(1, _ELEMENTS // max(1, batch * length * (1 if large else dim)))
    column = torch.arange(length, device=points.device)
    for low in range(0, count if kept else 0, step):
        rows = points[:, low : low + step]
        row = torch.arange(low, low + rows.shape[1], device=points.device)[:, None]
        score = _scores(rows, codes, metric, large)
        allowed = ~score.isnan()
        if candidates == "others":
            allowed = allowed & (column != row)
        elif candidates == "before":
            allowed = allowed & (column < row)
        order = _least(score.detach(), allowed, kept)
        found = allowed.gather(-1, order)
        index[:, low : low + step, :kept] = order.where(found, -1)
        for j in range(kept):
            code = codes.gather(1, order[..., j : j + 1].expand(-1, -1, dim))
            exact = (rows - code).square().sum(-1) if metric == "l2" else (rows * code).sum(-1)
            value[:, low : low + step, j] = exact.where(found[..., j], value[:, low : low + step, j])
    broken = points.isnan().any(-1)[..., None]
    return value.masked_fill(broken, torch.nan), index.masked_fill(broken, -1)
