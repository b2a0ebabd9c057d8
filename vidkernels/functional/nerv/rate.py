"""Quantisation that can be trained through, and the bits that its values will cost."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vidkernels import _check
from vidkernels.ops.fake_quantize_rate.op import fake_quantize_rate as _fake_quantize_rate

__all__ = ["QuantizedRate", "fake_quantize_rate"]

_MODES = ("noise", "round")


class QuantizedRate(NamedTuple):
    """Values on a grid and what they cost.

    Args:
        value: the shape and dtype of `x`.
        bits: [C] or [1] float32 (float64 for float64 `x`).
    Returns: a tuple of the two.
    Example:
        >>> from vidkernels.functional.nerv.rate import fake_quantize_rate
        >>> fake_quantize_rate(torch.zeros(2, 3), torch.ones(()), torch.ones(()), mode="round").value.shape
        torch.Size([2, 3])
    """

    value: Tensor
    bits: Tensor


def fake_quantize_rate(
    x: Tensor,
    step: Tensor,
    spread: Tensor,
    *,
    mode: str,
    prediction: Tensor | None = None,
    generator: torch.Generator | None = None,
    backend: str | None = None,
) -> QuantizedRate:
    """What entropy coding will make of numbers: their values on a grid, and the bits that a Laplace law gives them.

    p = round(prediction / step), 0 without one
    q = x / step - p + u, u uniform in (-1/2, 1/2) ("noise"), or round(x / step - p), ties to even ("round")
    value = step (p + q);  bits = sum of -log2 P(q),  P(q) = mass of Laplace(0, spread) within [q - 1/2, q + 1/2]
    Convention: `spread` is the mean magnitude of q under the law, so it counts steps. Channels are rows, the first
        axis. A decoder that knows the prediction adds it to the integers that it reads, so it is rounded, too.
    Args:
        x: [C, ...], float16/bfloat16/float32/float64. Half precision is computed in float32.
        step: [C] or one number, positive: the distance of the grid's points.
        spread: [C] or one number, positive. Where both are one number, all of x is one row.
        mode: "noise" while a fit is young (the noise has the variance of the rounding error and gradients are exact),
            "round" for what will be stored (the gradient of q is that of x / step - prediction / step).
        prediction: the shape of x, what a decoder knows already: numbers of the frame before, perhaps.
        generator: draws the noise, on the device of x; 16 bits of it make a number.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        QuantizedRate(value, bits): bits [C], or [1] where all of x is one row. Differentiable, once, in x, step and
        spread, and in the prediction, which costs or saves bits and leaves the value alone. Bits far from 0 come from a
        closed form in the log domain: they are large, never infinite.
    Raises:
        ValueError: another mode, or shapes that do not fit.
    Backends: reference, cpu, cuda (sm80+), triton. float64 runs on the reference. Deterministic: yes, sums too.
    Source: Balle, Laparra, Simoncelli 2016, arXiv 1611.01704, section 3 (noise, rate); Esser et al. 2019, arXiv
        1902.08153, section 2 (the gradient of the step); differs: a Laplace law.
    Example:
        >>> x = torch.tensor([[0.1, -0.9, 2.0]], requires_grad=True)
        >>> value, bits = fake_quantize_rate(x, torch.tensor(1.0), torch.tensor(1.0), mode="round")
        >>> value.detach()
        tensor([[ 0., -1.,  2.]])
        >>> bits
        tensor([7.5545], grad_fn=...)
        >>> known = torch.tensor([[0.0, -1.2, 2.3]])
        >>> fake_quantize_rate(x, torch.tensor(1.0), torch.tensor(1.0), mode="round", prediction=known).bits
        tensor([4.0370], grad_fn=...)
    """
    name = "fake_quantize_rate"
    if mode not in _MODES:
        _check.fail(name, f"expected `mode` to be one of {', '.join(_MODES)}.", mode=mode)
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() == 0:
        _check.fail(name, "expected a floating tensor `x` of shape [C, ...].", x=x)
    one = step.numel() == 1 and spread.numel() == 1
    rows = 1 if one else x.shape[0]
    for label, value in (("step", step), ("spread", spread)):
        if value.numel() != 1 and value.shape != (rows,):
            _check.fail(
                name, f"expected `{label}` of shape [C] = [{rows}], or one number.", x=x, step=step, spread=spread
            )
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    step, spread = (v.to(wide).reshape(-1).expand(rows) for v in (step, spread))
    flat = x.reshape(rows, -1) if x.numel() or one else x.reshape(rows, 0)
    known = None
    if prediction is not None:
        if prediction.shape != x.shape:
            _check.fail(name, "expected a `prediction` for every number of `x`.", x=x, prediction=prediction)
        known = _on_grid(prediction.reshape(flat.shape).to(wide), step[:, None])
        flat = flat.to(wide) - known
    noise = None
    if mode == "noise":
        noise = _uniform(flat, wide, generator)
    value, bits = _fake_quantize_rate(flat, step, spread, mode, noise, backend=backend)
    if known is not None:
        value = (value + known).to(x.dtype)
    return QuantizedRate(value.view(x.shape), bits)


def _on_grid(x: Tensor, step: Tensor) -> Tensor:
    """The nearest multiples of `step`, with the gradients of not being rounded."""
    k = x / step
    return (k + (k.round() - k).detach()) * step


def _uniform(like: Tensor, dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    """Middles of 2^16 parts of -1/2 to 1/2. Drawing costs more than what the op does, so four numbers share a draw."""
    drawn = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    drawn.random_(-(1 << 63), None, generator=generator)
    return drawn.view(torch.int16)[: like.numel()].view(like.shape).to(dtype).add_(0.5).mul_(2.0**-16)
