"""What people run instead of gather_tokens."""

from __future__ import annotations

import torch


def usual(tokens, index):
    """MAE's way: torch.gather with an index repeated along the features."""
    dim = tokens.shape[2]
    index = index.long()
    return lambda: torch.gather(tokens, 1, index.unsqueeze(-1).repeat(1, 1, dim))


def boolean_mask(tokens, index):
    """VideoMAE's way: a boolean mask picks the tokens, a reshape restores the batch; the order is the grid's.

    The op's case has its index in random order, so the rows are put into that order: by the index alone where the
    mask would have been given in the first place.
    """
    batch, length, dim = tokens.shape
    keep = torch.zeros(batch, length, dtype=torch.bool, device=tokens.device).scatter_(1, index.long(), True)
    rank = index.argsort(1).argsort(1)
    flat = (rank + index.shape[1] * torch.arange(batch, device=index.device)[:, None]).flatten()
    return lambda: tokens[keep].index_select(0, flat).view(batch, -1, dim)


class _Rows(torch.autograd.Function):
    """index_select copies whole rows; distinct rows need no addition on the way back, index_copy is enough."""

    @staticmethod
    def forward(ctx, rows, flat):
        ctx.save_for_backward(flat)
        ctx.shape = rows.shape
        return rows.index_select(0, flat)

    @staticmethod
    def backward(ctx, grad):
        (flat,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_copy_(0, flat, grad), None


def careful(tokens, index):
    batch, length, dim = tokens.shape
    flat = (index.long() + length * torch.arange(batch, device=index.device)[:, None]).flatten()
    return lambda: _Rows.apply(tokens.view(-1, dim), flat).view(batch, -1, dim)


PEERS = {"gather_tokens": {"usual": usual, "careful": careful, "boolean mask": boolean_mask}}
