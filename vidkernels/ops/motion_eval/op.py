"""motion_eval: every Gaussian's curve at every moment: out[t, n, d] = sum over k of basis[t, k] c[n, k, d]."""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.motion_eval import reference


def _fake(coefficients, times, kind):
    return coefficients.new_empty(times.shape[0], coefficients.shape[0], coefficients.shape[2])


def _tables(coefficients, times, kind):
    """A few hundred numbers: torch makes them, on the device."""
    value, slope, first = reference.basis(times, kind, coefficients.shape[1])
    return value.to(coefficients.dtype), slope.to(coefficients.dtype), first


def _native(kernel, coefficients, times, kind):
    value, _, first = _tables(coefficients, times, kind)
    shape = (times.shape[0], coefficients.shape[0], coefficients.shape[2])
    out = empty(shape, coefficients.dtype, coefficients.device)
    kernel(coefficients.contiguous(), value, first, out)
    return out


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.vk_kind = inputs[2]


def _backward(ctx, grad):
    moments = ctx.needs_input_grad[1]
    coefficients, times = motion_eval_backward(grad, *ctx.saved_tensors, ctx.vk_kind, moments, backend=ctx.vk_backend)
    return coefficients, times if moments else None, None


def _fake_backward(grad_out, coefficients, times, kind, moments):
    return coefficients.new_empty(coefficients.shape), times.new_empty(times.shape)


def _native_backward(kernel, grad_out, coefficients, times, kind, moments):
    value, slope, first = _tables(coefficients, times, kind)
    grad = empty(coefficients.shape, coefficients.dtype, coefficients.device)
    if not moments:
        kernel(grad_out.contiguous(), coefficients.contiguous(), value, slope, first, grad, None, None)
        return grad, torch.zeros_like(times, memory_format=torch.contiguous_format)
    grad_times = empty(times.shape, times.dtype, times.device)
    partial = empty((-(-coefficients.shape[0] // 64), times.shape[0]), torch.float64, times.device)
    kernel(grad_out.contiguous(), coefficients.contiguous(), value, slope, first, grad, grad_times, partial)
    return grad, grad_times


motion_eval = define(
    OpSpec(
        name="motion_eval",
        schema="(Tensor coefficients, Tensor times, str kind) -> Tensor",
        reference=reference.motion_eval,
        fake=_fake,
        native=_native,
        setup_context=_save,
        backward=_backward,
        autocast="float32",
    )
)

motion_eval_backward = define(
    OpSpec(
        name="motion_eval_backward",
        schema="(Tensor grad_out, Tensor coefficients, Tensor times, str kind, bool moments) -> (Tensor, Tensor)",
        reference=reference.motion_eval_backward,
        fake=_fake_backward,
        native=_native_backward,
        autocast="float32",
    )
)
