"""upsample_conv: convolution, pixel shuffle and activation in one pass, and the gradients of all three.
upsample_conv_loss: the last layer of a decoder and the loss of its pictures, which are never written.

Beside half-precision images, weight and bias may be float32: they are rounded as autocast would, and their gradients
stay in float32. Numbers lie in memory as [B, H, W, C] whatever the logical order says, so outputs are channels_last.

Two roads to the gradient:

    compiled, functorch, forced backends   upsample_conv, then upsample_conv_backward, which computes the
                                           pre-activation again
    plain eager calls on the CPU           the forward pass writes the activation's derivative beside the output, which
                                           takes 0.77-0.84 of the time of computing it again
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from vidkernels._op import Op, OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.upsample_conv import reference

ACTIVATIONS = ("none", "gelu", "sine", "relu")
# Up to here the fused kernels are quicker than torch's convolution, shuffle and activation: measured on Sapphire
# Rapids, 1.10-1.35x at 64 channels and 0.84-0.97x at 96 to 192 in float32. Where there are bfloat16 tiles, a forward
# pass with its gradients takes 0.55 of torch's time at 96 channels and 0.80 at 128, a forward pass alone 1.1 to 1.5.
_FUSED_CHANNELS, _FUSED_TILES = 64, 128


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
    if weight.dtype not in (x.dtype, torch.float32) or (bias is not None and bias.dtype != weight.dtype):
        return "weight and bias must be of one dtype, that of x or float32"
    if backend == "cpu" and x.shape[1] > (most := _most_channels(x.dtype)):
        return f"torch's convolution is quicker above {most} channels"
    return None


def _most_channels(dtype):
    return _FUSED_TILES if dtype is torch.bfloat16 and torch.cpu._is_amx_tile_supported() else _FUSED_CHANNELS


def _rows(x):
    """[B, H, W, C] without gaps."""
    return x.permute(0, 2, 3, 1).contiguous()


def _scratch(kernel, x, weight, backward, loss=False):
    """The CUDA kernels' working memory, as upsample_conv_scratch in csrc/ops/upsample_conv/upsample_conv.h has it."""
    if not kernel.__name__.endswith("_cuda"):
        return None
    filters, channels, kh, kw = weight.shape
    floats = kh * kw * filters * -(-channels // 16) * 16
    if backward:
        sums = filters * (kh * kw * channels + 1)
        chunks = min(64, -(-x.shape[0] * x.shape[2] * x.shape[3] // 1024), (1 << 23) // max(1, sums))
        floats = max(floats, kh * kw * channels * -(-filters // 16) * 16, max(1, chunks) * sums)
    if loss:
        blocks = -(-x.shape[0] * x.shape[2] * x.shape[3] // 64) * -(-filters // 64)
        floats = -(-floats // 2) * 2 + 2 * blocks
    return torch.empty(floats, dtype=torch.float32, device=x.device)


def _forward(kernel, x, weight, bias, scale, activation, with_derivative=False):
    out = empty(_shape(x, weight, scale), x.dtype, x.device)
    derivative = empty(out.shape, x.dtype, x.device) if with_derivative else None
    kernel(
        _rows(x), weight.contiguous(), None if bias is None else bias.contiguous(), out, derivative,
        _scratch(kernel, x, weight, False), scale, ACTIVATIONS.index(activation),
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
    grad_weight = empty(tuple(weight.shape), weight.dtype, device)
    grad_bias = empty((weight.shape[0],), weight.dtype, device)
    derive = derivative is None and activation != "none"
    derivative = empty(grad_out.shape, dtype, device) if derive else None if derivative is None else _rows(derivative)
    kernel(
        grad_out, _rows(x), weight.contiguous(), None if bias is None else bias.contiguous(), derivative, derive,
        grad_x if with_x else None, grad_weight, grad_bias, _scratch(kernel, x, weight, True), scale,
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
            learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in args[:3])
            if args[5] is None and (reason is not None or (args[0].shape[1] > _FUSED_CHANNELS and not learns)):
                return reference.upsample_conv(*args[:5])
            if reason is None:
                return Fused.apply(*args)
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
    )
)


def _fake_loss(x, weight, bias, target, share, scale, squash, l1, l2):
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    return x.new_empty((), dtype=dtype), x.new_empty(_shape(x, weight, scale)).permute(0, 3, 1, 2)


def _supports_loss(backend, x, weight, bias, target, share, scale, squash, l1, l2):
    if backend != "reference" and x.dtype is torch.float16:
        return "the gradient of a mean over a picture leaves the range of float16"
    return _supports(backend, x, weight, bias, scale, "none")


def _native_loss(kernel, x, weight, bias, target, share, scale, squash, l1, l2):
    loss = torch.empty((), dtype=torch.float32, device=x.device)
    grad = empty(_shape(x, weight, scale), x.dtype, x.device)
    kernel(
        _rows(x), weight.contiguous(), None if bias is None else bias.contiguous(), target.contiguous(),
        None if share is None else share.contiguous(), loss, grad, _scratch(kernel, x, weight, False, True), scale,
        squash, l1, l2,
    )  # fmt: skip
    return loss, grad.permute(0, 3, 1, 2)


def _save_loss(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:3], output[1])
    ctx.vk_scale = inputs[5]


def _backward_loss(ctx, grad_loss, _):
    x, weight, bias, grad_z = ctx.saved_tensors
    return _loss_gradients(ctx, grad_z * grad_loss.to(grad_z.dtype), x, weight, bias is not None, ctx.vk_backend)


def _loss_gradients(ctx, grad_z, x, weight, has_bias, backend):
    with_x = ctx.needs_input_grad[0]
    grad_x, grad_weight, grad_bias = upsample_conv_backward(
        grad_z, x, weight, None, None, ctx.vk_scale, "none", with_x, backend=backend
    )
    return grad_x if with_x else None, grad_weight, grad_bias if has_bias else None, *(None,) * 6


def _loss_beside(op: Op, default: Callable) -> Callable:
    """Plain eager calls on the CPU do not multiply by an upstream gradient of 1."""

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            loss, grad_z = _native_loss(op._native_cpu, *args[:9])
            ctx.save_for_backward(args[0], args[1], grad_z)
            ctx.vk_scale, ctx.vk_bias = args[5], args[2] is not None
            ctx.mark_non_differentiable(grad_z)
            return loss, grad_z

        @staticmethod
        def backward(ctx, upstream, _):
            x, weight, grad_z = ctx.saved_tensors
            if upstream.item() != 1.0:
                grad_z = grad_z * upstream.to(grad_z.dtype)
            return *_loss_gradients(ctx, grad_z, x, weight, ctx.vk_bias, "cpu"), None

    def apply(*args):
        suits = args[0].is_cpu and args[9] in (None, "cpu") and op.why_not("cpu", *args[:9]) is None
        return (Loss.apply if suits else default)(*args)

    return apply


upsample_conv_loss = define(
    OpSpec(
        name="upsample_conv_loss",
        schema="(Tensor x, Tensor weight, Tensor? bias, Tensor target, Tensor? share, int scale, bool squash, "
        "float l1, float l2) -> (Tensor, Tensor)",
        reference=reference.upsample_conv_loss,
        fake=_fake_loss,
        native=_native_loss,
        supports=_supports_loss,
        setup_context=_save_loss,
        backward=_backward_loss,
        plain=_loss_beside,
    )
)
