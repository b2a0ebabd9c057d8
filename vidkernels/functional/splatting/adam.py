"""A step of Adam over the attributes of Gaussians."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidkernels import _check
from vidkernels.ops.adam_step.op import adam_step as _adam_step

__all__ = ["adam_step"]

_Tensors = torch.Tensor | Sequence[torch.Tensor]


@torch.no_grad()
def adam_step(
    params: _Tensors,
    grads: torch.Tensor | Sequence[torch.Tensor | None],
    exp_avgs: _Tensors,
    exp_avg_sqs: _Tensors,
    *,
    step: int,
    lr: float | Sequence[float],
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    visible: torch.Tensor | None = None,
    backend: str | None = None,
) -> None:
    """One step of Adam or AdamW, in place, with every array read and written once.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p -= lr / (1 - b1^step) m / (sqrt(v / (1 - b2^step)) + eps)
    Weight decay is added to the gradient, g + weight_decay p (Adam), or shrinks p by 1 - lr weight_decay (AdamW).
    Convention: rows, the first axis, are Gaussians. A row outside `visible` keeps its parameters and moments to the
        bit: they neither move nor decay. `step` counts all rows alike.
    Args:
        params: one tensor or several, any shape, float32 (other floating types go to the reference); changed in place.
        grads: their gradients; a None leaves its parameter alone.
        exp_avgs: first moments, changed in place.
        exp_avg_sqs: second moments, changed in place.
        step: how many steps there are with this one, from 1.
        lr: learning rate, or one for each tensor.
        betas: decay of the two moments, in [0, 1).
        eps: added to the root; 3D Gaussian splatting takes 1e-15.
        weight_decay: 0 for none.
        decoupled_weight_decay: AdamW instead of Adam.
        visible: [N] bool, the rows that move, of parameters with N rows; None: all.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        None. Not differentiable: it moves leaves, outside autograd.
    Raises:
        ValueError: lists of different lengths, shapes that do not fit, or numbers out of range.
    Backends: reference, cpu, cuda (sm80+). Deterministic: yes; a row's bits do not depend on which others move.
    Source: Kingma, Ba 2014, arXiv 1412.6980, algorithm 1; Loshchilov, Hutter 2017, arXiv 1711.05101, algorithm 2; rows
        by visibility as in Mallick et al. 2024, arXiv 2406.15643; differs: that one leaves out the bias correction.
    Example:
        >>> param, grad = torch.zeros(2, 3), torch.ones(2, 3)
        >>> moments = torch.zeros(2, 3), torch.zeros(2, 3)
        >>> adam_step(param, grad, *moments, step=1, lr=0.5, visible=torch.tensor([True, False]))
        >>> param
        tensor([[-0.5000, -0.5000, -0.5000],
                [ 0.0000,  0.0000,  0.0000]])
    """
    name = "adam_step"
    columns = [_listed(t) for t in (params, grads, exp_avgs, exp_avg_sqs)]
    count = len(columns[0])
    rates = list(lr) if isinstance(lr, Sequence) else [lr] * count
    if any(len(c) != count for c in (*columns, rates)):
        _check.fail(
            name, "expected as many gradients, moments and rates as parameters.",
            params=count, grads=len(columns[1]), exp_avgs=len(columns[2]), exp_avg_sqs=len(columns[3]), lr=len(rates),
        )  # fmt: skip
    beta1, beta2 = betas
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1) or step < 1 or eps < 0 or weight_decay < 0:
        _check.fail(
            name, "expected betas in [0, 1), step of 1 or more, eps and weight_decay of 0 or more.",
            betas=betas, step=step, eps=eps, weight_decay=weight_decay,
        )  # fmt: skip
    if visible is not None and (visible.dim() != 1 or visible.dtype is not torch.bool):
        _check.fail(name, "expected `visible` of shape [N], bool.", "a visible radius: radii > 0", visible=visible)
    for param, grad, mean, square in zip(*columns, strict=True):
        if grad is not None and not param.shape == grad.shape == mean.shape == square.shape:
            _check.fail(
                name, "expected a parameter, its gradient and its moments of one shape.",
                param=param, grad=grad, exp_avg=mean, exp_avg_sq=square,
            )  # fmt: skip
        if visible is not None and param.shape[:1] != visible.shape:
            _check.fail(
                name, "expected `visible` to have an entry for every row.",
                "parameters that are not per Gaussian take a step of their own, without `visible`",
                param=param, visible=visible,
            )  # fmt: skip
    for param, grad, mean, square, rate in zip(*columns, rates, strict=True):
        if grad is not None:
            _adam_step(
                param, grad, mean, square, visible, float(rate), float(beta1), float(beta2), float(eps),
                float(weight_decay), bool(decoupled_weight_decay), int(step), backend=backend,
            )  # fmt: skip


def _listed(tensors) -> list:
    return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
