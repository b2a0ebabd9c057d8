"""masked_patch_loss: mean squared error of predicted tubes against normalised pixels, and its gradient.

Two roads to the gradient:

    compiled, functorch, CUDA, forced backends   masked_patch_loss, then masked_patch_loss_backward, which reads pred
                                                 and video again: nothing of their size is kept between the two
    plain eager calls on the CPU, or `grad_out`  one pass writes the gradient for an upstream gradient of 1 beside the
                                                 loss; backward hands it out as it is, or scaled
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from vidkernels import _backend, _native
from vidkernels._op import Op, OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.masked_patch_loss import reference

_ARGUMENTS = (
    "Tensor pred, Tensor video, Tensor masked_index, int pt, int ph, int pw, str convention, float[] mean, float[] std"
)
_CONSTANTS = (None,) * 8  # no gradient for video, index and the rest


def _loss_dtype(pred: torch.Tensor) -> torch.dtype:
    return torch.float64 if pred.dtype is torch.float64 else torch.float32


def _fake(pred, video, masked_index, *rest):
    return pred.new_empty((), dtype=_loss_dtype(pred))


def _call(kernel, pred, video, masked_index, pt, ph, pw, convention, mean, std, grad=None):
    dtype = _loss_dtype(pred)
    loss = torch.empty((), dtype=dtype, device=pred.device)
    partial = torch.empty(masked_index.shape, dtype=torch.float64, device=pred.device)
    kernel(pred.contiguous(), video, masked_index.contiguous(), loss, partial, grad, pt, ph, pw, convention == "mae_st",
           mean, std)  # fmt: skip
    return loss


def _supports(backend, pred, video, masked_index, pt, ph, pw, convention, mean, std):
    if backend in ("reference", "cpu"):
        return None
    doubles = torch.float64 in (pred.dtype, video.dtype)
    channels, itemsize = _channels(video), 8 if doubles else 4
    if backend == "triton":
        if doubles:
            return "the Triton kernel computes in float32"
        padded = _power_of_2(pt * ph * pw) * _power_of_2(channels)
        return "the Triton kernel holds a tube in one block of at most 32768 elements" if padded > 1 << 15 else None
    if video.dtype is torch.float64 and pred.dtype is not torch.float64:
        return "the CUDA kernel reads a float64 video for a float64 pred only"
    if channels > 128 or len(mean) > 32:
        return "the CUDA kernel takes at most 128 channels (32 with mean and std)"
    if pt * ph * pw * channels * (1 if video.dtype is torch.uint8 else itemsize) > 1 << 16:
        return "the CUDA kernel keeps a tube in 64 KiB of shared memory"
    return None


def _power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _channels(video: torch.Tensor) -> int:
    return video.shape[4] if video.dtype is torch.uint8 else video.shape[1]


def _save_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.vk_rest = inputs[3:9]


def _backward(ctx, grad):
    return masked_patch_loss_backward(grad, *ctx.saved_tensors, *ctx.vk_rest, backend=ctx.vk_backend), *_CONSTANTS


def _fake_backward(grad_loss, pred, *rest):
    return torch.empty_like(pred, memory_format=torch.contiguous_format)


def _call_backward(kernel, grad_loss, pred, video, masked_index, pt, ph, pw, convention, mean, std):
    grad = empty(pred.shape, pred.dtype, pred.device)
    kernel(grad_loss.to(_loss_dtype(pred)), pred.contiguous(), video, masked_index.contiguous(), grad, pt, ph, pw,
           convention == "mae_st", mean, std)  # fmt: skip
    return grad


def _save_all(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.vk_rest = inputs[4:10]


def _double_backward(ctx, grad):
    """The gradient is linear in grad_loss and in pred."""
    grad_loss, pred, video, masked_index = ctx.saved_tensors
    wide = grad.to(_loss_dtype(pred))
    unit = masked_patch_loss_backward(  # in the wide type: a sum of rounded halves would be far off
        torch.ones_like(grad_loss), pred.to(wide.dtype), video, masked_index, *ctx.vk_rest, backend=ctx.vk_backend
    )
    to_grad_loss = (wide * unit).sum().to(grad_loss.dtype)
    to_pred = (wide * (grad_loss * (2 / max(1, pred.numel())))).to(pred.dtype)
    return to_grad_loss, to_pred, *_CONSTANTS


def _one_pass(op: Op, default: Callable) -> Callable:
    """Plain eager calls on the CPU keep the gradient that they computed beside the loss."""

    class OnePass(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            grad = empty(args[0].shape, args[0].dtype, args[0].device)
            loss = _call(op._native_cpu, *args[:9], grad=grad)
            ctx.save_for_backward(grad)
            return loss

        @staticmethod
        def backward(ctx, upstream):
            (grad,) = ctx.saved_tensors
            return _scaled(grad, upstream), *_CONSTANTS, None

    def apply(*args):
        pred = args[0]
        on_cpu = args[9] in (None, "cpu") and pred.is_cpu and op._native_cpu is not None
        # A loss scale comes too late for a float16 gradient that was rounded without it.
        suits = on_cpu and pred.requires_grad and pred.dtype is not torch.float16
        return (OnePass.apply if suits else default)(*args)

    return apply


def _scaled(grad: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    """The alias may become a leaf's .grad without a copy; if that is written to, the version check of the saved
    tensor stops a second backward pass."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "masked_patch_loss: its gradient was computed in the forward pass and cannot be differentiated again.\n"
            "HINT: use backend='reference' or torch.func for second derivatives."
        )
    return grad.detach() if upstream.item() == 1.0 else grad * upstream.to(grad.dtype)


class _IntoBuffer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pred, grad_out, rest, backend):
        loss, ctx.vk_scale = _fill(pred, grad_out, rest, backend)
        ctx.save_for_backward(grad_out)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        (grad,) = ctx.saved_tensors
        if ctx.vk_scale is None:
            return _scaled(grad, upstream), None, None, None
        ctx.vk_scale(grad, upstream)  # on the device: a look at `upstream` would stall the stream
        torch.autograd.graph.increment_version(grad)
        return grad.detach(), None, None, None


def loss_into(pred: torch.Tensor, grad_out: torch.Tensor, rest: tuple, backend: str | None) -> torch.Tensor:
    """The loss; `grad_out` receives the gradient before this returns. `rest`: the op's arguments behind pred."""
    if pred.requires_grad and torch.is_grad_enabled():
        return _IntoBuffer.apply(pred, grad_out.detach(), rest, backend)
    return _fill(pred, grad_out, rest, backend)[0]


def _fill(
    pred: torch.Tensor, grad_out: torch.Tensor, rest: tuple, backend: str | None
) -> tuple[torch.Tensor, Callable | None]:
    """Loss, and what multiplies `grad_out` by a device scalar in place (None: read the scalar and decide)."""
    op, args, scale = masked_patch_loss, (pred.detach(), *rest), None
    name = backend or _backend.forced or op.choose(*args)
    if name in ("cpu", "cuda", "simt", "simt_trace"):
        reason = op.why_not(_backend.checked(name), *args)
        if reason is not None:
            op._refuse(name, args)
        loss = op._implementation(name)(*args, grad_out)
        if name != "cpu":
            scale = _native.module(
                {"cuda": "_C", "simt": "_simt", "simt_trace": "_simt_trace"}[name]
            ).masked_patch_loss_scale_cuda
    else:
        loss = op.run(args, name)
        unit = torch.ones((), dtype=loss.dtype, device=loss.device)
        grad_out.detach().copy_(masked_patch_loss_backward.run((unit, *args), name))
    torch.autograd.graph.increment_version(grad_out)  # if it is pred, autograd must know
    return loss, scale


masked_patch_loss = define(
    OpSpec(
        name="masked_patch_loss",
        schema=f"({_ARGUMENTS}) -> Tensor",
        reference=reference.masked_patch_loss,
        triton="vidkernels.ops.masked_patch_loss.triton:masked_patch_loss",
        fake=_fake,
        native=_call,
        supports=_supports,
        setup_context=_save_inputs,
        backward=_backward,
        plain=_one_pass,
    )
)

masked_patch_loss_backward = define(
    OpSpec(
        name="masked_patch_loss_backward",
        schema=f"(Tensor grad_loss, {_ARGUMENTS}) -> Tensor",
        reference=reference.masked_patch_loss_backward,
        triton="vidkernels.ops.masked_patch_loss.triton:masked_patch_loss_backward",
        fake=_fake_backward,
        native=_call_backward,
        supports=lambda backend, grad_loss, *args: _supports(backend, *args),
        setup_context=_save_all,
        backward=_double_backward,
    )
)
