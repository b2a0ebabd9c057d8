"""adam_step: one step of Adam or AdamW on the rows of a tensor, in place."""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels.ops.adam_step import reference


def _supports(backend, param, grad, exp_avg, exp_avg_sq, *rest):
    if backend != "reference" and any(t.dtype is not torch.float32 for t in (param, grad, exp_avg, exp_avg_sq)):
        return f"the {backend} kernel computes in float32"
    return None


def _native(kernel, param, grad, exp_avg, exp_avg_sq, visible, *numbers):
    changed = (param, exp_avg, exp_avg_sq)
    p, m, v = dense = [t.detach().contiguous() for t in changed]
    kernel(p, grad.detach().contiguous(), m, v, None if visible is None else visible.contiguous(), *numbers)
    for old, new in zip(changed, dense):
        if not old.is_contiguous():
            old.detach().copy_(new)


adam_step = define(
    OpSpec(
        name="adam_step",
        schema="(Tensor(a!) param, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor? visible, float lr, "
        "float beta1, float beta2, float eps, float weight_decay, bool decoupled, int step) -> ()",
        reference=reference.adam_step,
        fake=lambda *args: None,
        native=_native,
        supports=_supports,
    )
)
