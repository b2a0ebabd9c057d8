"""What people run instead of scatter_tokens."""

from __future__ import annotations

import torch


def _restore(visible_index, length):
    """Where each token of the grid lies in [visible, masked]: the argsort that MAE keeps from its shuffle."""
    batch = visible_index.shape[0]
    masked = torch.ones(batch, length, dtype=torch.bool).scatter_(1, visible_index.long(), False)
    rest = masked.nonzero()[:, 1].view(batch, -1)
    return torch.cat([visible_index.long(), rest], 1).argsort(1)


def usual(visible, visible_index, length, mask_token, position):
    """MAE's way: repeat the mask token, concatenate, unshuffle with a gather, add the position."""
    restore = _restore(visible_index, length)
    batch, count, dim = visible.shape

    def run():
        tokens = torch.cat([visible, mask_token.to(visible.dtype).view(1, 1, -1).repeat(batch, length - count, 1)], 1)
        tokens = torch.gather(tokens, 1, restore.unsqueeze(-1).repeat(1, 1, dim))
        return tokens if position is None else (tokens + position).to(visible.dtype)

    return run


def boolean_mask(visible, visible_index, length, mask_token, position):
    """VideoMAE's way: boolean masks pick the positions of both sets; its decoder order is [visible, masked], so the
    rows are put back on the grid to give the same output."""
    if position is None:
        return usual(visible, visible_index, length, mask_token, position)
    batch, count, dim = visible.shape
    order = visible_index.long().argsort(1)
    masked = torch.ones(batch, length, dtype=torch.bool).scatter_(1, visible_index.long(), False)
    flat_order = (order + count * torch.arange(batch)[:, None]).flatten()

    def run():
        places = position.expand(batch, -1, -1)
        seen = visible.reshape(-1, dim).index_select(0, flat_order) + places[~masked]
        hidden = mask_token + places[masked]
        out = torch.empty(batch, length, dim, dtype=visible.dtype)
        return out.masked_scatter(~masked[..., None], seen.to(out.dtype)).masked_scatter(
            masked[..., None], hidden.to(out.dtype)
        )

    return run


def careful(visible, visible_index, length, mask_token, position):
    """Start from mask token + position and write the visible rows into it by index."""
    batch, _, dim = visible.shape
    flat = (visible_index.long() + length * torch.arange(batch)[:, None]).flatten()
    place = visible_index.long().flatten()

    def run():
        if position is None:
            base, rows = mask_token.expand(length, dim), visible.reshape(-1, dim)
        else:
            base, rows = mask_token + position, visible.reshape(-1, dim) + position.index_select(0, place)
        out = base.to(visible.dtype).repeat(batch, 1)
        return out.index_copy(0, flat, rows.to(visible.dtype)).view(batch, length, dim)

    return run


PEERS = {"scatter_tokens": {"usual": usual, "careful": careful, "boolean mask": boolean_mask}}
