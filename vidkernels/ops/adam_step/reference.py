"""Plain torch, the oracle."""

from __future__ import annotations

import torch


@torch.no_grad()
def adam_step(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    visible: torch.Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    step: int,
) -> None:
    new = param
    if weight_decay and decoupled:
        new = param * (1 - lr * weight_decay)
    elif weight_decay:
        grad = grad + weight_decay * param
    mean = beta1 * exp_avg + (1 - beta1) * grad
    square = beta2 * exp_avg_sq + (1 - beta2) * grad * grad
    unbiased_mean = mean / (1 - beta1**step)
    unbiased_square = square / (1 - beta2**step)
    new = new - lr * unbiased_mean / (unbiased_square.sqrt() + eps)
    for old, value in ((param, new), (exp_avg, mean), (exp_avg_sq, square)):
        if visible is None:
            old.copy_(value)
        else:
            old.copy_(torch.where(visible.view(-1, *[1] * (old.dim() - 1)), value, old))
