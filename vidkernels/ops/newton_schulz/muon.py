"""A step of Muon for many matrices: one native call on the CPU, else torch around newton_schulz."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch

from vidkernels import _backend, _native
from vidkernels.ops.newton_schulz.op import LARGEST, newton_schulz


@torch.no_grad()
def muon_step(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    momenta: list[torch.Tensor],
    settings: list[tuple[float, bool, float, float]],
    steps: int,
    coefficients: Sequence[float],
    eps: float,
    backend: str | None = None,
) -> None:
    """settings: (mu, nesterov, keep, rate) of each: param = keep param + rate X(update). Changed in place."""
    if not params:
        return
    name = backend or _backend.forced or params[0].device.type
    shapes = [(p.shape[0], math.prod(p.shape[1:])) for p in params]
    small = max(min(shape) for shape in shapes) <= LARGEST
    if name == "cpu" and small and newton_schulz.why_not("cpu") is None:
        kernel = _native.module("_C").muon_step_cpu
        if kernel(params, grads, momenta, shapes, settings, steps, *coefficients, eps):
            torch.autograd.graph.increment_version([*params, *momenta])
            return
    updates = []
    for grad, momentum, (mu, nesterov, _, _) in zip(grads, momenta, settings, strict=True):
        momentum.lerp_(grad, 1 - mu)
        updates.append(grad.lerp(momentum, mu) if nesterov else momentum)
    for same in _alike(updates):
        packed = torch.cat([updates[i].reshape(-1) for i in same])
        rows, cols = zip(*(shapes[i] for i in same))
        moved = newton_schulz(packed, list(rows), list(cols), steps, list(coefficients), eps, backend=backend)
        bounds = pairwise(accumulate((m * n for m, n in zip(rows, cols)), initial=0))
        for i, (start, end) in zip(same, bounds):
            _, _, keep, rate = settings[i]
            params[i].mul_(keep).add_(moved[start:end].view(params[i].shape), alpha=rate)


def _alike(tensors: list[torch.Tensor]) -> list[list[int]]:
    """Places of the tensors of one dtype and device."""
    kinds: dict[tuple, list[int]] = {}
    for i, tensor in enumerate(tensors):
        kinds.setdefault((tensor.dtype, tensor.device), []).append(i)
    return list(kinds.values())
