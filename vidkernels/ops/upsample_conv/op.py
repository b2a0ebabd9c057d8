"""upsample_conv: convolution, pixel shuffle and activation in one pass, and the gradients of all three.

Numbers lie in memory as [B, H, W, C] whatever the logical order says, so outputs are channels_last.

Two roads to the gradient:

    compiled, functorch, forced backends   upsample_conv, then upsample_conv_backward, which computes the
                                           pre-activation again
    plain eager calls on the CPU           the forward pass writes the activation's derivative beside the output
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from vidkernels._op import Op, OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.upsample_conv import reference

ACTIVATIONS = ("none", "gelu", "sine", "relu")
# Up to here the fused kernels are quicker than torch's convolution followed by shuffle and activation.
_FUSED_CHANNELS = 64


def _shape(x, weight, scale):
    """[B, H, W, C] of the output."""
    batch, _, height, width = x.shape
    return batch, height * scale, width * scale, weight.shape[0] // (scale * scale)


def _fake(x, weight, bias, scale, activation):
    return x.new_empty(_shape(x, weight, scale)).permute(0, 3, 1, 2)


def _supports(backend, x, weight, bias, scale, activation):
    if backend == "reference":
        return None
    if x.dtype is torch.float64:
        return "the kernels compute in float32"
    if backend == "cpu" and x.shape[1] > _FUSED_CHANNELS:
        return f"torch's convolution is quicker above {_FUSED_CHANNELS} channels"
    return None


def _rows(x):
    """[B, H, W, C] without gaps."""
    return x.permute(0, 2, 3, 1).contiguous()


def _scratch(kernel, like, floats):
    """The CUDA kernels' working memory; those of the CPU have their own."""
    return torch.empty(floats, dtype=torch.float32, device=like.device) if kernel.__name__.endswith("_cuda") else None


def _forward(kernel, x, weight, bias, scale, activation, with_derivative=False):
    out = empty(_shape(x, weight, scale), x.dtype, x.device)
    derivative = empty(out.shape, x.dtype, x.device) if with_derivative else None
    kernel(
        _rows(x), weight.contiguous(), None if bias is None else bias.contiguous(), out, derivative,
        _scratch(kernel, x, 0), scale, ACTIVATIONS.index(activation),
    )  # fmt: skip
    return out.permute(0, 3, 1, 2), derivative


def _native(kernel, *args):
    return _forward(kernel, *args)[0]


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.vk_rest = inputs[3:5]


def _backward(ctx, grad):
    x, weight, bias = ctx.saved_tensors
    with_x = ctx.needs_input_grad[0]
    grad_x, grad_weight, grad_bias = upsample_conv_backward(
        grad, x, weight, bias, None, *ctx.vk_rest, with_x, backend=ctx.vk_backend
    )
    return grad_x if with_x else None, grad_weight, None if bias is None else grad_bias, None, None


def _fake_backward(grad_out, x, weight, bias, derivative, scale, activation, with_x):
    batch, channels, height, width = x.shape
    grad_x = x.new_empty(batch if with_x else 0, height, width, channels).permute(0, 3, 1, 2)
    return grad_x, torch.empty_like(weight, memory_format=torch.contiguous_format), weight.new_empty(weight.shape[0])


def _supports_backward(backend, grad_out, x, weight, bias, derivative, scale, activation, with_x):
    return _supports(backend, x, weight, bias, scale, activation)


def _native_backward(kernel, grad_out, x, weight, bias, derivative, scale, activation, with_x):
    batch, channels, height, width = x.shape
    device, dtype = x.device, x.dtype
    grad_out = _rows(grad_out)
    grad_x = empty((batch if with_x else 0, height, width, channels), dtype, device)
    grad_weight = empty(tuple(weight.shape), dtype, device)
    grad_bias = empty((weight.shape[0],), dtype, device)
    derive = derivative is None and activation != "none"
    derivative = empty(grad_out.shape, dtype, device) if derive else None if derivative is None else _rows(derivative)
    kernel(
        grad_out, _rows(x), weight.contiguous(), None if bias is None else bias.contiguous(), derivative, derive,
        grad_x if with_x else None, grad_weight, grad_bias, _scratch(kernel, x, 0), scale,
        ACTIVATIONS.index(activation),
    )  # fmt: skip
    return grad_x.permute(0, 3, 1, 2), grad_weight, grad_bias


def _fused(op: Op, default: Callable) -> Callable:
    """Plain eager calls: the derivative is stored where the kernel runs, torch's autograd serves where torch does."""

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias, scale, activation, backend):
            out, derivative = _forward(op._native_cpu, x, weight, bias, scale, activation, activation != "none")
            ctx.save_for_backward(x, weight, derivative)
            ctx.vk_rest = bias is not None, scale, activation
            return out

        @staticmethod
        def backward(ctx, grad):
            x, weight, derivative = ctx.saved_tensors
            has_bias, scale, activation = ctx.vk_rest
            if derivative is not None:
                derivative = derivative.permute(0, 3, 1, 2)
            with_x = ctx.needs_input_grad[0]
            grad_x, grad_weight, grad_bias = upsample_conv_backward(
                grad.to(x.dtype), x, weight, None, derivative, scale, activation, with_x, backend="cpu"
            )
            return grad_x if with_x else None, grad_weight, grad_bias if has_bias else None, None, None, None

    def apply(*args):
        if args[0].is_cpu and args[5] in (None, "cpu"):
            reason = op.why_not("cpu", *args[:5])
            if reason is None:
                return Fused.apply(*args)
            if args[5] is None:
                return reference.upsample_conv(*args[:5])
        return default(*args)

    return apply


upsample_conv = define(
    OpSpec(
        name="upsample_conv",
        schema="(Tensor x, Tensor weight, Tensor? bias, int scale, str activation) -> Tensor",
        reference=reference.upsample_conv,
        fake=_fake,
        native=_native,
        supports=_supports,
        setup_context=_save,
        backward=_backward,
        autocast="lower",
        plain=_fused,
        batched=("x",),
    )
)

upsample_conv_backward = define(
    OpSpec(
        name="upsample_conv_backward",
        schema="(Tensor grad_out, Tensor x, Tensor weight, Tensor? bias, Tensor? derivative, int scale, "
        "str activation, bool with_x) -> (Tensor, Tensor, Tensor)",
        reference=reference.upsample_conv_backward,
        fake=_fake_backward,
        native=_native_backward,
        supports=_supports_backward,
        autocast="lower",
    )
)
