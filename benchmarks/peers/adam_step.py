"""What people run instead of adam_step. Every variant moves copies of its own, further with each call."""

from __future__ import annotations

import torch

from vidkernels._case import ROUNDING
from vidkernels.ops.adam_step.op import adam_step
from vidkernels.testing import assert_close, results, to_float64


def ours(*args):
    copies = tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in args)
    return lambda: adam_step(*copies)


def _optimizer(**options):
    def make(param, grad, exp_avg, exp_avg_sq, visible, lr, beta1, beta2, eps, weight_decay, decoupled, step):
        if visible is not None:
            return None  # it would move every row
        kind = torch.optim.AdamW if decoupled else torch.optim.Adam
        leaf = torch.nn.Parameter(param.clone())
        leaf.grad = grad
        optimizer = kind([leaf], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, **options)
        state = {"step": torch.tensor(float(step - 1)), "exp_avg": exp_avg.clone(), "exp_avg_sq": exp_avg_sq.clone()}
        optimizer.state[leaf] = state

        def run():
            optimizer.step()
            return leaf.detach(), state["exp_avg"], state["exp_avg_sq"]

        return run

    return make


def usual(*args):
    """torch's default for many tensors; selective Adam without a kernel of its own."""
    return (_optimizer(foreach=True) if args[4] is None else _picked_rows)(*args)


def _picked_rows(param, grad, exp_avg, exp_avg_sq, visible, lr, beta1, beta2, eps, weight_decay, decoupled, step):
    """Visible rows are picked, moved and put back."""
    if weight_decay:
        return None
    param, mean, square = param.clone(), exp_avg.clone(), exp_avg_sq.clone()
    unbias1, unbias2 = 1 - beta1**step, (1 - beta2**step) ** 0.5

    def run():
        rows = visible.nonzero()[:, 0]
        g = grad[rows]
        m = mean[rows].lerp_(g, 1 - beta1)
        v = square[rows].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        p = param[rows].addcdiv_(m, v.sqrt().div_(unbias2).add_(eps), value=-lr / unbias1)
        param.index_copy_(0, rows, p)
        mean.index_copy_(0, rows, m)
        square.index_copy_(0, rows, v)
        return param, mean, square

    return run


def same(outputs, expected, args) -> str | None:
    """Why the first step of a peer is another one, or None."""
    exact = results(adam_step, to_float64(args), adam_step.spec.reference)
    try:
        for o, e in zip(outputs, exact, strict=True):
            assert_close(o, e, 3 * ROUNDING[o.dtype])
    except AssertionError as error:
        return str(error)
    return None


PEERS = {"adam_step": {"ours": ours, "usual": usual, "careful": _optimizer(fused=True)}}
SAME = {"adam_step": same}
