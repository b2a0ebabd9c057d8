"""What people run instead of merge_tokens. Their indices come from the op's map, before the clock starts."""

from __future__ import annotations

import torch


def usual(tokens, source, size, count):
    """ToMe's way: split evens and odds, gather who stays and who joins, scatter_reduce, concatenate, divide."""
    batch, length, _ = tokens.shape
    stays = (length + 1) // 2 - (length - count)
    joins = (source[:, ::2] >= stays).long()
    order = joins.argsort(dim=1, stable=True)[..., None]
    stay, join = order[:, :stays], order[:, stays:]
    target = (source[:, ::2].long() - stays)[..., None].gather(1, join)

    def merge(x):
        c = x.shape[2]
        even, odd = x[:, ::2], x[:, 1::2]
        kept = even.gather(1, stay.expand(batch, -1, c))
        joined = even.gather(1, join.expand(batch, -1, c))
        return torch.cat([kept, odd.scatter_reduce(1, target.expand(batch, -1, c), joined, reduce="sum")], 1)

    weight = tokens.new_ones(batch, length, 1) if size is None else size[..., None].to(tokens.dtype)

    def run():
        total = merge(weight)
        return merge(tokens * weight) / total, total[..., 0]

    return run


def careful(tokens, source, size, count):
    """Select the first token of every place, add the shares of the few others to it."""
    batch, length, dim = tokens.shape
    flat = (source.long() + count * torch.arange(batch)[:, None]).flatten()
    weight = torch.ones(batch * length) if size is None else size.flatten()
    total = torch.zeros(batch * count).index_add_(0, flat, weight)
    share = (weight / total[flat]).to(tokens.dtype)[:, None]
    first = torch.full((batch * count,), batch * length).scatter_reduce_(
        0, flat, torch.arange(batch * length), reduce="amin"
    )
    others = torch.ones(batch * length, dtype=torch.bool).index_fill_(0, first, False).nonzero()[:, 0]
    place, part, own = flat[others], share[others], share[first]

    def run():
        rows = tokens.view(-1, dim)
        merged = rows.index_select(0, first).mul_(own).index_add_(0, place, rows.index_select(0, others) * part)
        return merged.view(batch, count, dim), total.view(batch, count)

    return run


PEERS = {"merge_tokens": {"usual": usual, "careful": careful}}
