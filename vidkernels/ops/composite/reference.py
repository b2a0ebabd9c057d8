"""Plain torch, the oracle."""

from __future__ import annotations

import torch


def _before(alpha: torch.Tensor) -> torch.Tensor:
    """T_s for s = 0 .. S: [R, S + 1]."""
    ones = alpha.new_ones(alpha.shape[0], 1)
    return torch.cat([ones, torch.cumprod(1 - alpha, 1)], 1)


def composite(values: torch.Tensor, alpha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    transmittance = _before(alpha)
    weights = alpha * transmittance[:, :-1]
    return (weights[..., None] * values).sum(1), weights, transmittance[:, -1].clone()


def composite_backward(
    grad_out: torch.Tensor | None,
    grad_weights: torch.Tensor | None,
    grad_transmittance: torch.Tensor | None,
    values: torch.Tensor,
    alpha: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    rays, samples, _ = values.shape
    before = _before(alpha)[:, :-1]
    worth = torch.zeros_like(alpha) if grad_weights is None else grad_weights
    if grad_out is None:
        grad_values = torch.zeros_like(values, memory_format=torch.contiguous_format)
    else:
        worth = worth + (grad_out[:, None] * values).sum(2)
        grad_values = (alpha * before)[..., None] * grad_out[:, None]
    behind = alpha.new_zeros(rays) if grad_transmittance is None else grad_transmittance
    grad_alpha = torch.empty_like(alpha, memory_format=torch.contiguous_format)
    for s in reversed(range(samples)):
        grad_alpha[:, s] = before[:, s] * (worth[:, s] - behind)
        behind = alpha[:, s] * worth[:, s] + (1 - alpha[:, s]) * behind
    return grad_values, grad_alpha
