"""fake_quantize_rate: values on a noisy or rounded grid, the bits that they cost, and the gradients of both."""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.fake_quantize_rate import reference

CHUNK = 4096  # numbers of a row that the GPU kernels sum at a time; fake_quantize_rate.h says the same


def _fake(x, step, spread, mode, noise):
    return x.new_empty(x.shape), spread.new_empty(spread.shape)


def _supports(backend, x, *rest):
    if backend != "reference" and x.dtype is torch.float64:
        return f"the {backend} kernel computes in float32"
    return None


def _sums(x: torch.Tensor, count: int) -> torch.Tensor:
    """Room for what the pieces of the rows add up to."""
    return torch.empty(count, x.shape[0], -(-x.shape[1] // CHUNK), dtype=torch.float64, device=x.device)


def _native(kernel, x, step, spread, mode, noise):
    value = empty(x.shape, x.dtype, x.device)
    bits = torch.empty(spread.shape, dtype=spread.dtype, device=x.device)
    kernel(x.contiguous(), step.contiguous(), spread.contiguous(), None if noise is None else noise.contiguous(),
           value, bits, _sums(x, 1), mode == "round")  # fmt: skip
    return value, bits


def _save_inputs(ctx, inputs, output):
    x, step, spread, ctx.vk_mode, noise = inputs[:5]
    ctx.save_for_backward(x, step, spread, noise)


def _backward(ctx, grad_value, grad_bits):
    x, step, spread, noise = ctx.saved_tensors
    gradients = fake_quantize_rate_backward(
        grad_value, grad_bits, x, step, spread, ctx.vk_mode, noise, backend=ctx.vk_backend
    )
    return *gradients, None, None


def _fake_backward(grad_value, grad_bits, x, step, spread, mode, noise):
    return x.new_empty(x.shape), spread.new_empty(spread.shape), spread.new_empty(spread.shape)


def _native_backward(kernel, grad_value, grad_bits, x, step, spread, mode, noise):
    grad_x = empty(x.shape, x.dtype, x.device)
    grad_step, grad_spread = torch.empty_like(step), torch.empty_like(spread)
    kernel(grad_value.contiguous(), grad_bits.contiguous(), x.contiguous(), step.contiguous(), spread.contiguous(),
           None if noise is None else noise.contiguous(), grad_x, grad_step, grad_spread, _sums(x, 2),
           mode == "round")  # fmt: skip
    return grad_x, grad_step, grad_spread


fake_quantize_rate = define(
    OpSpec(
        name="fake_quantize_rate",
        schema="(Tensor x, Tensor step, Tensor spread, str mode, Tensor? noise) -> (Tensor, Tensor)",
        reference=reference.fake_quantize_rate,
        triton="vidkernels.ops.fake_quantize_rate.triton:fake_quantize_rate",
        fake=_fake,
        native=_native,
        supports=_supports,
        setup_context=_save_inputs,
        backward=_backward,
    )
)

fake_quantize_rate_backward = define(
    OpSpec(
        name="fake_quantize_rate_backward",
        schema="(Tensor grad_value, Tensor grad_bits, Tensor x, Tensor step, Tensor spread, str mode, Tensor? noise) "
        "-> (Tensor, Tensor, Tensor)",
        reference=reference.fake_quantize_rate_backward,
        triton="vidkernels.ops.fake_quantize_rate.triton:fake_quantize_rate_backward",
        fake=_fake_backward,
        native=_native_backward,
        supports=lambda backend, grad_value, grad_bits, x, *rest: _supports(backend, x),
    )
)
