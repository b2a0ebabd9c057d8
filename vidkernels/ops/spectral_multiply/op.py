"""spectral_multiply: a matrix of complex numbers for each low frequency of a spectrum, zeros at the others.

Complex numbers cross the schema as pairs of reals, [..., 2]: the kernels' views know no complex type, and neither does
autocast. Numbers of one frequency's matrix lie together, [R, C, I, O, 2], because a kernel reads a matrix at a time; a
published weight [I, O, R, C] is torch.view_as_real(it.permute(2, 3, 0, 1)).
"""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.spectral_multiply import reference


def _pairs(x):
    """A spectrum whose numbers' parts lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _fake(x, weight, mask, height, width):
    return x.new_empty(x.shape[0], weight.shape[3], height, width, 2)


def _supports(backend, x, weight, mask, height, width):
    if backend != "reference" and x.dtype is torch.float64:
        return f"the {backend} kernel computes in float32"
    return None


def _native(kernel, x, weight, mask, height, width):
    out = empty((x.shape[0], weight.shape[3], height, width, 2), x.dtype, x.device)
    kernel(_pairs(x), weight.contiguous(), None if mask is None else mask.contiguous(), out)
    return out


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])


def _backward(ctx, grad):
    x, weight, mask = ctx.saved_tensors
    return *spectral_multiply_backward(grad, x, weight, mask, backend=ctx.vk_backend), None, None, None


def _fake_backward(grad, x, weight, mask):
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(
        weight, memory_format=torch.contiguous_format
    )


def _supports_backward(backend, grad, x, weight, mask):
    return _supports(backend, x, weight, mask, 0, 0)


def _native_backward(kernel, grad, x, weight, mask):
    grad_x, grad_weight = (empty(tuple(t.shape), t.dtype, t.device) for t in (x, weight))
    scratch = None
    if kernel.__name__.endswith("_cuda"):
        shape = (*weight.shape[:2], x.shape[0], *weight.shape[3:])
        scratch = torch.empty(shape, dtype=torch.float32, device=x.device)
    mask = None if mask is None else mask.contiguous()
    kernel(_pairs(grad), _pairs(x), weight.contiguous(), mask, grad_x, grad_weight, scratch)
    return grad_x, grad_weight


spectral_multiply = define(
    OpSpec(
        name="spectral_multiply",
        schema="(Tensor x, Tensor weight, Tensor? mask, SymInt height, SymInt width) -> Tensor",
        reference=reference.spectral_multiply,
        fake=_fake,
        native=_native,
        supports=_supports,
        setup_context=_save,
        backward=_backward,
        autocast="float32",
        batched=("x",),
    )
)

spectral_multiply_backward = define(
    OpSpec(
        name="spectral_multiply_backward",
        schema="(Tensor grad, Tensor x, Tensor weight, Tensor? mask) -> (Tensor, Tensor)",
        reference=reference.spectral_multiply_backward,
        fake=_fake_backward,
        native=_native_backward,
        supports=_supports_backward,
    )
)
