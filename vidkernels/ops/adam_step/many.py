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
    if not params:
        return
    name, device = backend or _backend.forced, params[0].device
    columns = params, grads, exp_avgs, exp_avg_sqs
    if _runs(name or device.type, device) and _call(name or device.type, *columns, settings):
        return
    groups: dict[torch.device, tuple[list, ...]] = {}
    for row in zip(*columns, settings, strict=True):
        device = row[0].device
        views = _dense(row[:4]) if _runs(name or device.type, device) else None
        if views is None or any(v.dtype is not torch.float32 for v in views):
            adam_step(*row[:4], None, *row[4], backend=name)
            continue
        for column, value in zip(groups.setdefault(device, ([], [], [], [], [])), (*views, row[4])):
            column.append(value)
    for device, some in groups.items():
        _call(name or device.type, *some)


def _runs(name: str, device: torch.device) -> bool:
    fits = device.type == ("cuda" if name == "cuda" else "cpu")
    return name in _MODULES and fits and adam_step.why_not(name) is None


def _call(name: str, params: list, grads: list, exp_avgs: list, exp_avg_sqs: list, settings: list) -> bool:
    """False, and nothing done, if a tensor is not contiguous float32, or they lie on several devices."""
    kernel = getattr(_native.module(_MODULES[name]), f"adam_step_many_{'cpu' if name == 'cpu' else 'cuda'}")
    done = kernel(params, grads, exp_avgs, exp_avg_sqs, settings)
    if done:
        torch.autograd.graph.increment_version([*params, *exp_avgs, *exp_avg_sqs])
    return done


def _dense(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    """Contiguous views of parameter, gradient and moments with their elements in one order, or None."""
    param, grad, mean, square = tensors
    if param.is_contiguous() and mean.is_contiguous() and square.is_contiguous():
        return tensors if grad.is_contiguous() else (param, grad.contiguous(), mean, square)
    order = sorted(range(param.dim()), key=param.stride, reverse=True)
    views = param.permute(order), grad.permute(order).contiguous(), mean.permute(order), square.permute(order)
    return views if all(v.is_contiguous() for v in views) else None
