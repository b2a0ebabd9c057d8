"""What people run instead of top_k_mask."""

from __future__ import annotations

import torch


def usual(scores, count):
    """torch.topk, its indices scattered."""
    return lambda: torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, scores.abs().topk(count).indices, True)


def careful(scores, count):
    """A threshold by kthvalue, then comparisons; ties at the threshold would all be taken."""

    def run():
        magnitude = scores.abs()
        return magnitude >= magnitude.kthvalue(magnitude.numel() - count + 1).values

    return run if count > 0 else None


def same(outputs, expected, args) -> str | None:
    """The peers take other ones of equal scores, or more of them: the least score that is in must be the same."""
    magnitude = args[0].abs()
    got, want = (mask[0] if isinstance(mask, tuple | list) else mask for mask in (outputs, expected))
    if not bool(want.any()):
        return None if not bool(got.any()) else "a mask of no scores has some"
    return None if magnitude[got].min() == magnitude[want].min() else "another threshold"


PEERS = {"top_k_mask": {"usual": usual, "careful": careful}}
SAME = {"top_k_mask": same}
