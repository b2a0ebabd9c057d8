"""Named inputs of adam_step."""

from __future__ import annotations

import torch

from vidkernels._case import Case

_DTYPES = (torch.float32, torch.float64)
# The update is a quotient of two sums of two terms: a few roundings.
_RTOL = {torch.float32: 1e-6, torch.float64: 1e-14}


def _args(*shape, visible=None, lr=1e-3, eps=1e-8, decay=0.0, decoupled=False, step=7, scale=1.0):
    """`visible`: the share of rows that move; None: no mask."""

    def args(g, dtype):
        param, grad, mean, square = torch.randn(4, *shape, generator=g, dtype=torch.float64)
        mask = None if visible is None else torch.rand(shape[0], generator=g) < visible
        tensors = param, grad * scale, mean * 0.1 * scale, square.square() * scale**2
        return *(t.to(dtype) for t in tensors), mask, lr, 0.9, 0.999, eps, decay, decoupled, step

    return args


def _strided(g, dtype):
    param, grad, mean, square, mask, *numbers = _args(13, 6, visible=0.5, decay=0.1)(g, dtype)
    apart = lambda t: t.t().contiguous().t()  # noqa: E731
    return apart(param), grad.flip(1), apart(mean), apart(square), mask.flip(0), *numbers


def _extreme(g, dtype):
    """No moments yet, gradients of 0, of 1e-12 and of 1e12, and 1e-15 for eps as in 3D Gaussian splatting."""
    param, grad, *_ = _args(8, 16)(g, dtype)
    grad[:2] = 0
    grad[2:4] *= 1e-12
    grad[4:6] *= 1e12
    return param, grad, *(torch.zeros_like(param) for _ in range(2)), None, 0.05, 0.9, 0.999, 1e-15, 0.0, False, 1


def _nan(g, dtype):
    """NaN gradients of rows that do not move change nothing; the others spoil their own elements."""
    param, grad, mean, square, mask, *numbers = _args(40, 3, visible=0.5)(g, dtype)
    grad[::2, 1] = float("nan")
    return param, grad, mean, square, mask, *numbers


def _bytes(param, grad, exp_avg, exp_avg_sq, visible, *rest):
    rows = 1 if visible is None else param.shape[0]
    share = 1.0 if visible is None else float(visible.sum()) / max(1, rows)
    moved = int(param.numel() * share) * param.element_size()
    return 4 * moved + (0 if visible is None else rows), 3 * moved


def _flops(param, *rest):
    return 16.0 * param.numel()


_INPUTS = {
    "tiny": _args(3, 4),
    "tiny_masked": _args(5, 3, visible=0.5),
    "tiny_adamw": _args(2, 3, decay=0.3, decoupled=True, step=1),
    "odd": _args(37, 7, decay=0.01),
    "odd_masked": _args(1031, 3, visible=0.6),
    "odd_rows": _args(997, visible=0.3, decay=0.2, decoupled=True),
    "odd_wide": _args(67, 5, 9, visible=0.5, step=100_000),
    "empty": _args(0, 3),
    "empty_masked": _args(0, 3, visible=0.5),
    "strided": _strided,
    "extreme": _extreme,
    "extreme_nan": _nan,
    "extreme_hidden": _args(50, 4, visible=0.0),
    "real_means": _args(500_000, 3),
    "real_harmonics": _args(200_000, 48, eps=1e-15),
    "real_selective": _args(200_000, 48, visible=0.3, eps=1e-15),
}
CASES = {
    "adam_step": [Case(name, args, (), _DTYPES, _RTOL, bytes=_bytes, flops=_flops) for name, args in _INPUTS.items()]
}
