"""newton_schulz: many matrices of different shapes, one after the other in memory, made almost orthogonal."""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.newton_schulz import reference

LARGEST = 4096  # of the shorter side; beyond, torch's own product is as good


def _supports(backend, packed, rows, cols, *rest):
    if backend == "reference":
        return None
    if packed.dtype is torch.float64:
        return f"the {backend} kernel computes in float32"
    if max(map(min, zip(rows, cols)), default=0) > LARGEST:
        return f"the {backend} kernel takes matrices with a side of at most {LARGEST}"
    return None


def _native(kernel, packed, rows, cols, steps, coefficients, eps):
    wide = packed.detach().float().contiguous()
    out = empty(wide.shape, wide.dtype, wide.device)
    floats = sum(m * n + 5 * min(m, n) ** 2 for m, n in zip(rows, cols))  # as newton_schulz.h has it
    on_cpu = kernel.__name__.endswith("_cpu")  # that kernel has memory of its own
    workspace = empty((0 if on_cpu else floats,), wide.dtype, wide.device)
    kernel(wide, out, workspace, list(rows), list(cols), steps, *coefficients, eps)
    return out.to(packed.dtype)


newton_schulz = define(
    OpSpec(
        name="newton_schulz",
        schema="(Tensor packed, int[] rows, int[] cols, int steps, float[] coefficients, float eps) -> Tensor",
        reference=reference.newton_schulz,
        fake=lambda packed, *rest: packed.new_empty(packed.shape),
        native=_native,
        supports=_supports,
    )
)
