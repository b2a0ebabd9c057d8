"""What people run instead of composite."""

from __future__ import annotations

import torch


def usual(values, alpha):
    """The way of NeRF's code: an exclusive cumprod, then a weighted sum."""

    def run():
        ones = torch.ones_like(alpha[:, :1])
        before = torch.cumprod(torch.cat([ones, 1 - alpha], 1), 1)
        weights = alpha * before[:, :-1]
        return (weights[..., None] * values).sum(1), weights, before[:, -1]

    return run


def careful(values, alpha):
    """The same without the product of the values' size: a batch of small matrix products."""

    def run():
        ones = torch.ones_like(alpha[:, :1])
        before = torch.cumprod(torch.cat([ones, 1 - alpha], 1), 1)
        weights = alpha * before[:, :-1]
        return torch.bmm(weights[:, None], values)[:, 0], weights, before[:, -1]

    return run


PEERS = {"composite": {"usual": usual, "careful": careful}}
