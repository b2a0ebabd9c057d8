"""Plain torch, the oracle. Sums are taken in float32 (float64 for float64) and rounded once."""

from __future__ import annotations

import torch


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype is torch.float64 else x.float()


def _sources(visible_index: torch.Tensor, length: int) -> torch.Tensor:
    """[B, N]: the visible row that lands on each token (the first of several), or K where none does."""
    batch, count = visible_index.shape
    if visible_index.device.type == "cpu" and count:
        ordered = visible_index.sort(1).values
        if int(visible_index.amin() if batch else 0) < 0 or int(visible_index.amax() if batch else 0) >= length:
            raise ValueError(f"scatter_tokens: `visible_index` leaves the {length} tokens.")
        if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
            raise ValueError("scatter_tokens: `visible_index` names a token twice.")
    index = visible_index.long()
    index = torch.where((index < 0) | (index >= length), length, index)
    rank = torch.arange(count, device=index.device).expand(batch, count)
    sources = index.new_full((batch, length + 1), count)
    return sources.scatter_reduce_(1, index, rank, "amin")[:, :length]


def scatter_tokens(
    visible: torch.Tensor,
    visible_index: torch.Tensor,
    length: int,
    mask_token: torch.Tensor,
    position: torch.Tensor | None,
) -> torch.Tensor:
    sources = _sources(visible_index, length)
    batch, _, dim = visible.shape
    filler = _wide(mask_token).expand(batch, 1, dim).to(_wide(visible).dtype)
    rows = torch.cat([_wide(visible), filler], 1)
    out = rows.gather(1, sources[..., None].expand(-1, -1, dim))
    if position is not None:
        out = out + _wide(position)
    return out.to(visible.dtype)


def scatter_tokens_backward(
    grad_out: torch.Tensor, visible_index: torch.Tensor, param_dtype: torch.dtype, with_position: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, length, dim = grad_out.shape
    count = visible_index.shape[1]
    wide = _wide(grad_out)
    sources = _sources(visible_index, length)
    rows = wide.new_zeros(batch, count + 1, dim)
    rows.scatter_add_(1, sources[..., None].expand(-1, -1, dim), wide)
    position = wide.sum(0) if with_position else wide.new_empty(0, dim)
    return rows[:, :count].to(grad_out.dtype), rows[:, count].sum(0).to(param_dtype), position.to(param_dtype)
