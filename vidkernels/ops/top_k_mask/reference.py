"""Plain torch, the oracle."""

from __future__ import annotations

import torch


def top_k_mask(scores: torch.Tensor, count: int) -> torch.Tensor:
    order = scores.abs().sort(descending=True, stable=True).indices
    return torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, order[:count], True)
