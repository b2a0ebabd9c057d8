"""Which tokens say nothing that others do not say."""

from __future__ import annotations

import torch
from torch import Tensor

from vidkernels import _check
from vidkernels.functional.tokens.density import finite_tokens, rows
from vidkernels.ops.nearest.op import nearest as _nearest

__all__ = ["prune_redundant_tokens"]


def prune_redundant_tokens(
    x: Tensor,
    keep: int,
    *,
    against: str = "before",
    importance: Tensor | None = None,
    mask: Tensor | None = None,
    protect: int = 0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Drop the tokens that say least that is new, and keep a fixed number of the others.

    redundancy_i = max over the more important tokens j of cos(x_i, x_j)     (against="before")
                 = cos(x_i, mean of the sample's tokens)                     (against="mean")
    The `keep` tokens of the lowest redundancy stay, in their order. Of several copies, one (the most important) counts
    as new and the others are dropped first.
    Convention: without `importance` earlier tokens are the more important: in a still clip the first frame stays. Of
        equally redundant tokens the more important stays, then the earlier. A zero token has cosine 0 with all.
    Args:
        x: [B, N, C], float16/bfloat16/float32/float64.
        keep: tokens that stay, at most N; protected ones included.
        against: "before" or "mean".
        importance: [B, N], floating point, higher = more important; or None.
        mask: [B, N] bool, True = a token; padding stays only where nothing else is left. None: all are tokens.
        protect: first tokens (a class token) that always stay; with "before" others are compared with them, too.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        index: [B, keep] int64, ascending: what `gather_tokens` takes. Not differentiable.
        redundancy: [B, N], float32 (float64 for float64); -inf for the most important token with "before" and for
            protected ones, inf for padding.
    Raises:
        ValueError: keep or protect out of range, shapes that do not fit, an unknown `against`; NaN or infinity in a
            token (found on the CPU in eager mode; elsewhere such tokens count as padding).
    Backends: those of `nearest`: reference, cpu, cuda (sm80+); never N x N. Deterministic: yes.
    Source: own; near-copies of earlier content as in Hwang et al. 2022, arXiv 2211.10636 (there: the same place in the
        frame before).
    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]]])
        >>> prune_redundant_tokens(x, 2)[0].tolist()
        [[0, 2]]
    """
    name = "prune_redundant_tokens"
    if against not in ("before", "mean"):
        _check.fail(name, f"expected `against` 'before' or 'mean', got {against!r}.")
    x, there, _ = finite_tokens(name, x, mask)
    batch, length, _ = x.shape
    if not 0 <= protect <= keep <= length:
        _check.fail(name, "expected 0 <= `protect` <= `keep` <= number of tokens.", x=x, protect=protect, keep=keep)
    if importance is not None and importance.shape != (batch, length):
        _check.fail(name, "expected `importance` [B, N].", x=x, importance=importance)
    first = torch.arange(length, device=x.device) < protect
    if importance is None:
        weight = x.new_zeros(batch, length, dtype=torch.float32)
    else:
        weight = importance.detach().nan_to_num(nan=-torch.inf).to(torch.promote_types(importance.dtype, torch.float32))
    # Protected tokens, then tokens by importance, then padding.
    weight = weight.masked_fill(~there, -torch.inf).masked_fill(first, torch.inf)
    order = weight.sort(dim=1, descending=True, stable=True).indices
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    if length == 0:
        value = x.new_zeros(batch, 0, dtype=wide)
    elif against == "before":
        ranked = rows(x, order, backend)
        value = _nearest(ranked, ranked, 1, "cosine", "before", True, backend=backend)[1][:, :, 0]
    else:
        value = _cosine_with_mean(x.to(wide), there).gather(1, order)
    value = value.masked_fill(~there.gather(1, order), torch.inf).masked_fill(
        first.expand(batch, -1).gather(1, order), -torch.inf
    )
    stay = order.gather(1, value.sort(dim=1, stable=True).indices[:, :keep])
    return stay.sort(dim=1).values, torch.zeros_like(value).scatter(1, order, value)


def _cosine_with_mean(x: Tensor, there: Tensor) -> Tensor:
    x = x.masked_fill(~there[:, :, None], 0)
    mean = x.sum(1, keepdim=True) / there.sum(1).clamp(min=1)[:, None, None]
    return torch.cosine_similarity(x, mean, dim=2)
