"""Plain torch, the oracle."""

from __future__ import annotations

import torch


def gather_tokens(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return torch.gather(tokens, 1, index.long()[..., None].expand(-1, -1, tokens.shape[2]))


def gather_tokens_backward(grad_out: torch.Tensor, index: torch.Tensor, length: int) -> torch.Tensor:
    wide = grad_out if grad_out.dtype is torch.float64 else grad_out.float()
    grad = wide.new_zeros(grad_out.shape[0], length, grad_out.shape[2])
    grad.scatter_add_(1, index.long()[..., None].expand_as(grad_out), wide)
    return grad.to(grad_out.dtype)
