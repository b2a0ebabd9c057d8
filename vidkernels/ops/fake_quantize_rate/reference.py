"""Plain torch, the oracle."""

from __future__ import annotations

import math

import torch


def fake_quantize_rate(
    x: torch.Tensor, step: torch.Tensor, spread: torch.Tensor, mode: str, noise: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    step, rate = step[:, None], 1 / spread[:, None]
    _, q = _scaled(x, step, mode, noise)
    magnitude = q.abs()
    tail = rate * (magnitude - 0.5) - (-torch.expm1(-rate) / 2).log()
    miss, mass, _, _ = _centre(magnitude, rate)
    centre = torch.where(miss < 0.5, -torch.log1p(-miss), -mass.log())
    bits = torch.where(magnitude < 0.5, centre, tail).double().sum(1) / math.log(2)
    return (q * step).to(x.dtype), bits.to(spread.dtype)


def fake_quantize_rate_backward(
    grad_value: torch.Tensor,
    grad_bits: torch.Tensor,
    x: torch.Tensor,
    step: torch.Tensor,
    spread: torch.Tensor,
    mode: str,
    noise: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    step, rate = step[:, None], 1 / spread[:, None]
    z, q = _scaled(x, step, mode, noise)
    magnitude, inside = q.abs(), q.abs() < 0.5
    _, mass, near, far = _centre(magnitude, rate)
    slope = torch.where(inside, (near - far) / (2 * mass), 1.0) * rate * q.sign()
    by_rate = torch.where(
        inside,
        -(near * (0.5 - magnitude) + far * (0.5 + magnitude)) / (2 * mass),
        magnitude - 0.5 - 1 / torch.expm1(rate),
    )
    grad_value, scale = grad_value.to(z.dtype), grad_bits[:, None].to(z.dtype) / math.log(2)
    grad_x = grad_value + scale * slope / step
    grad_step = (grad_value * (q - z) - scale * slope * z / step).double().sum(1)
    grad_spread = (scale * by_rate * -rate.square()).double().sum(1)
    return grad_x.to(x.dtype), grad_step.to(spread.dtype), grad_spread.to(spread.dtype)


def _scaled(x, step, mode, noise) -> tuple[torch.Tensor, torch.Tensor]:
    """x in steps, before and after its quantisation."""
    z = x.to(step.dtype) / step
    return z, z.round() if mode == "round" else z + noise


def _centre(magnitude, rate) -> tuple[torch.Tensor, ...]:
    """For an interval that holds 0: the mass outside and inside of it, and twice the mass beyond either end."""
    near, far = rate * (magnitude.clamp(max=0.5) - 0.5), rate * (-0.5 - magnitude)
    mass = -(torch.expm1(near) + torch.expm1(far)) / 2
    return (near.exp() + far.exp()) / 2, mass, near.exp(), far.exp()
