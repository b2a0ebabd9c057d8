"""Plain torch, the oracle."""

from __future__ import annotations

import torch


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype is torch.float64 else x.float()


def _shares(source: torch.Tensor, size: torch.Tensor | None, total: torch.Tensor) -> torch.Tensor:
    """[B, N]: what part of its merged token each token is; nothing of a token whose sizes are all zero."""
    whole = total.gather(1, source.long())
    own = torch.ones_like(whole) if size is None else size.to(total.dtype)
    return torch.where(whole > 0, own / whole, 0)


def _part(rows: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Nothing of nothing, whatever the row holds."""
    return torch.where(share[..., None] > 0, rows * share[..., None], 0)


def merge_tokens(
    tokens: torch.Tensor, source: torch.Tensor, size: torch.Tensor | None, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    wide, place = _wide(tokens), source.long()
    total = wide.new_zeros(tokens.shape[0], count)
    total = total.scatter_add(1, place, wide.new_ones(place.shape) if size is None else size.to(wide.dtype))
    merged = wide.new_zeros(tokens.shape[0], count, tokens.shape[2])
    parts = _part(wide, _shares(source, size, total))
    return merged.scatter_add(1, place[..., None].expand_as(parts), parts).to(tokens.dtype), total


def merge_tokens_backward(
    grad_merged: torch.Tensor, source: torch.Tensor, size: torch.Tensor | None, total: torch.Tensor
) -> torch.Tensor:
    rows = _wide(grad_merged).gather(1, source.long()[..., None].expand(-1, -1, grad_merged.shape[2]))
    return _part(rows, _shares(source, size, total)).to(grad_merged.dtype)
