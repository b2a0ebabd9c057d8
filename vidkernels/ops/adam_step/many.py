"""One native call for the steps of many tensors; what it cannot take goes to adam_step, one by one."""

from __future__ import annotations

import torch

from vidkernels import _backend, _native
from vidkernels.ops.adam_step.op import adam_step

_MODULES = {"cpu": "_C", "cuda": "_C", "simt": "_simt", "simt_trace": "_simt_trace"}


@torch.no_grad()
def adam_step_many(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    exp_avgs: list[torch.Tensor],
    exp_avg_sqs: list[torch.Tensor],
    settings: list[tuple],
    backend: str | None = None,
) -> None:
    """settings: (lr, beta1, beta2, eps, weight_decay, decoupled, step) of each tensor. All changed in place."""
    name = backend or _backend.forced
    groups: dict[tuple, tuple[list, ...]] = {}
    runs: dict[tuple, bool] = {}
    for row in zip(params, grads, exp_avgs, exp_avg_sqs, settings, strict=True):
        device = row[0].device
        chosen = name or device.type
        if (chosen, device) not in runs:
            fits = device.type == ("cuda" if chosen == "cuda" else "cpu")
            runs[chosen, device] = chosen in _MODULES and fits and adam_step.why_not(chosen) is None
        views = _dense(row[:4]) if runs[chosen, device] and row[0].dtype is torch.float32 else None
        if views is None or any(v.dtype is not torch.float32 for v in views):
            adam_step(*row[:4], None, *row[4], backend=name)
            continue
        columns = groups.setdefault((chosen, device), ([], [], [], [], []))
        for column, value in zip(columns, (*views, row[4])):
            column.append(value)
    for (chosen, _), columns in groups.items():
        kernel = getattr(_native.module(_MODULES[chosen]), f"adam_step_many_{'cpu' if chosen == 'cpu' else 'cuda'}")
        kernel(*columns)
        torch.autograd.graph.increment_version([*columns[0], *columns[2], *columns[3]])


def _dense(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    """Contiguous views of parameter, gradient and moments with their elements in one order, or None."""
    param, grad, mean, square = (t.detach() for t in tensors)
    if param.is_contiguous() and mean.is_contiguous() and square.is_contiguous():
        return param, grad.contiguous(), mean, square
    order = sorted(range(param.dim()), key=param.stride, reverse=True)
    views = param.permute(order), grad.permute(order).contiguous(), mean.permute(order), square.permute(order)
    return views if all(v.is_contiguous() for v in views) else None
