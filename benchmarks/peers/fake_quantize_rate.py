"""What people run instead of fake_quantize_rate."""

from __future__ import annotations

import math

import torch


def _grid(x, step, mode, noise):
    z = x / step[:, None]
    return z + noise if mode == "noise" else z + (z.round() - z).detach()


def _cumulative(q, spread):
    """Of a Laplace law, as torch.distributions has it."""
    return 0.5 - 0.5 * q.sign() * torch.expm1(-q.abs() / spread)


def usual(x, step, spread, mode, noise):
    """A difference of two cumulative distributions, kept away from 0, as in libraries of learned compression."""

    def run():
        q, wide = _grid(x, step, mode, noise), spread[:, None]
        likelihood = _cumulative(q + 0.5, wide) - _cumulative(q - 0.5, wide)
        return q * step[:, None], -likelihood.clamp(min=1e-9).log2().sum(1)

    return run


def _closed_form(x, step, spread, mode, noise):
    q, rate = _grid(x, step, mode, noise), 1 / spread[:, None]
    magnitude = q.abs()
    tail = rate * (magnitude - 0.5) - (-torch.expm1(-rate) / 2).log()
    inside = magnitude.clamp(max=0.5)
    mass = -(torch.expm1(rate * (inside - 0.5)) + torch.expm1(-rate * (inside + 0.5))) / 2
    nats = torch.where(magnitude < 0.5, -mass.log(), tail)
    return q * step[:, None], nats.sum(1) / math.log(2)


def careful(*args):
    """Our formula in torch."""
    return lambda: _closed_form(*args)


def compiled(*args):
    """The same under torch.compile."""
    function = torch.compile(_closed_form, dynamic=False)
    return lambda: function(*args)


def same(outputs, expected, args) -> str | None:
    """The difference of two distributions loses digits, and what is kept away from 0 costs 30 bits at most."""
    for got, want, tolerance in zip(outputs, expected, (1e-6, 2e-3), strict=True):
        error = float((got.detach().double() - want.double()).abs().max() / want.double().abs().max())
        if not error < tolerance:
            return f"relative error {error:.1e}"
    return None


PEERS = {"fake_quantize_rate": {"usual": usual, "careful": careful, "careful, compiled": compiled}}
SAME = {"fake_quantize_rate": same}
