"""Named inputs of fake_quantize_rate and its backward."""

from __future__ import annotations

import torch

from vidkernels._case import ROUNDING, Case

_GRADIENTS = ("x", "step", "spread")


def _wide(dtype):
    return torch.float64 if dtype is torch.float64 else torch.float32


def inputs(rows: int, count: int, mode: str = "noise", low: float = 0.2, high: float = 3.0):
    """Laplace numbers, twice as wide as the law says: at the best spread its gradient would be a sum that cancels.

    Steps about 0.1, spreads of `low` to `high` steps.
    """

    def args(g, dtype):
        uniform = torch.rand(rows, 2, generator=g, dtype=torch.float64)
        step, spread = 0.05 + 0.1 * uniform[:, 0], low * (high / low) ** uniform[:, 1]
        sign = torch.randint(0, 2, (rows, count), generator=g) * 2.0 - 1
        laplace = sign * torch.empty(rows, count, dtype=torch.float64).exponential_(generator=g)
        x = (laplace * (2 * step * spread)[:, None]).to(dtype)
        noise = torch.rand(rows, count, generator=g).to(_wide(dtype)) - 0.5 if mode == "noise" else None
        return x, step.to(_wide(dtype)), spread.to(_wide(dtype)), mode, noise

    return args


def _strided(g, dtype):
    x, step, spread, mode, noise = inputs(12, 37)(g, dtype)
    return x.t().contiguous().t(), step.flip(0), spread, mode, noise.flip(1)


def _edges(mode: str):
    """Huge, tiny and exact values; spreads of a thousandth and of a thousand steps."""

    def args(g, dtype):
        row = torch.tensor([0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 0.25, 1e-3, 1.0, -7.0, 60.0, -800.0, 30000.0, 4.0])
        x = row.expand(6, 15).to(dtype).contiguous()
        spread = torch.tensor([1e-3, 0.01, 0.5, 4.0, 100.0, 1000.0], dtype=_wide(dtype))
        noise = torch.rand(6, 15, generator=g).to(_wide(dtype)) - 0.5 if mode == "noise" else None
        return x, torch.full_like(spread, 0.5), spread, mode, noise

    return args


def _certain(g, dtype):
    """All numbers are in the middle, where a narrow spread makes them cost next to nothing, and not nothing."""
    x, step, _spread, mode, noise = inputs(3, 50)(g, dtype)
    return x * 0, step, torch.tensor([0.02, 0.03, 0.05], dtype=_wide(dtype)), mode, noise * 0.5


def _upstream(make):
    def args(g, dtype):
        rest = make(g, dtype)
        grad_value = torch.randn(rest[0].shape, generator=g).to(dtype)
        return grad_value, torch.randn(rest[1].shape, generator=g).to(_wide(dtype)), *rest

    return args


def _bytes(x, step, spread, mode, noise):
    moved = x.numel() * x.element_size()
    return moved + (0 if noise is None else noise.numel() * noise.element_size()), moved


def _bytes_backward(grad_value, grad_bits, x, step, spread, mode, noise):
    read, written = _bytes(x, step, spread, mode, noise)
    return read + written, written


_INPUTS = {
    "tiny": inputs(3, 5),
    "odd": inputs(7, 63),
    "odd_round": inputs(7, 61, "round"),
    "odd_long": inputs(2, 9001),
    "odd_one_row_round": inputs(1, 10007, "round"),
    "odd_wide": inputs(5, 130, low=20.0, high=200.0),
    "empty": inputs(3, 0),
    "empty_rows": inputs(0, 5, "round"),
    "strided": _strided,
    "extreme": _edges("noise"),
    "extreme_round": _edges("round"),
    "extreme_certain": _certain,
    "real_decoder": inputs(96, 3 * 3 * 480),
    "real_decoder_round": inputs(96, 3 * 3 * 480, "round"),
    "real_latents": inputs(1, 132 * 48 * 8),
}
_FLAT = ("empty", "extreme")  # nothing to differentiate, or gradients of rounded halves that are far apart

CASES = {
    "fake_quantize_rate": [
        Case(name, args, () if name.startswith(_FLAT) else _GRADIENTS, rtol=ROUNDING, bytes=_bytes)
        for name, args in _INPUTS.items()
    ],
    "fake_quantize_rate_backward": [
        # Gradients of the form e^-t have t times the rounding of t, so not where all there is are t around 12.
        Case(name, _upstream(args), rtol=ROUNDING, bytes=_bytes_backward)
        for name, args in _INPUTS.items()
        if name != "extreme_certain"
    ],
}
