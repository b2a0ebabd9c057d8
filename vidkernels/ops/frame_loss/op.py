"""frame_loss: absolute, squared and structural difference from uint8 frames in one pass, and the gradient.

Two roads to the gradient, as for masked_patch_loss:

    compiled, functorch, CUDA, forced backends   frame_loss, then frame_loss_backward, which looks at the image again
    plain eager calls on the CPU                 one pass writes the gradient for an upstream gradient of 1 beside the
                                                 loss; most of its work, the blurred maps, is common to both
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from vidkernels._op import Op, OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.frame_loss import reference

_ARGUMENTS = "Tensor image, Tensor target, Tensor? weight, float l1, float l2, float ssim"
_CONSTANTS = (None,) * 5  # no gradient for target, weight and the numbers


def _supports(backend, image, *rest):
    if backend != "reference" and image.dtype is not torch.float32:
        return f"the {backend} kernel computes in float32"
    return None


def _fake(image, *rest):
    return image.new_empty(())


def _dense(image, target, weight):
    return image.contiguous(), target.contiguous(), None if weight is None else weight.contiguous()


def _scratch(kernel, image, weight):
    """csrc/ops/frame_loss/frame_loss_cuda.cu: three sums of every block, and the sums of every row of weights."""
    if "cuda" not in kernel.__name__:
        return None
    batch, height, width, channels = image.shape
    # A block has at least 32 rows of 256 numbers; groups of channels round these up.
    blocks = batch * -(-height // 32) * (-(-width * (channels + 3) // 256) + channels)
    rows = 0 if weight is None else 2 + 2 * batch * height
    return torch.empty(3 * blocks + rows, dtype=torch.float64, device=image.device)


def _native(kernel, image, target, weight, l1, l2, ssim, grad=None):
    loss = torch.empty((), dtype=image.dtype, device=image.device)
    kernel(*_dense(image, target, weight), loss, grad, _scratch(kernel, image, weight), l1, l2, ssim)
    return loss


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.vk_rest = inputs[3:6]


def _backward(ctx, grad):
    return frame_loss_backward(grad, *ctx.saved_tensors, *ctx.vk_rest, backend=ctx.vk_backend), *_CONSTANTS


def _fake_backward(grad_loss, image, *rest):
    return torch.empty_like(image, memory_format=torch.contiguous_format)


def _native_backward(kernel, grad_loss, image, target, weight, l1, l2, ssim):
    grad = empty(image.shape, image.dtype, image.device)
    scratch = _scratch(kernel, image, weight)
    kernel(grad_loss.to(image.dtype), *_dense(image, target, weight), grad, scratch, l1, l2, ssim)
    return grad


def _one_pass(op: Op, default: Callable) -> Callable:
    """Plain eager calls on the CPU keep the gradient that they computed beside the loss."""

    class OnePass(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            image = args[0]
            grad = empty(image.shape, image.dtype, image.device)
            loss = _native(op._native_cpu, *args[:6], grad=grad)
            ctx.save_for_backward(grad)
            return loss

        @staticmethod
        def backward(ctx, upstream):
            if torch.is_grad_enabled():
                raise RuntimeError(
                    "frame_loss: its gradient was computed in the forward pass and cannot be differentiated again."
                )
            (grad,) = ctx.saved_tensors
            # An alias may become a leaf's .grad; if that is written to, the saved tensor's version check stops a
            # second backward pass.
            return grad.detach() if upstream.item() == 1.0 else grad * upstream, *_CONSTANTS, None

    def apply(*args):
        image = args[0]
        suits = (
            args[6] in (None, "cpu")
            and image.is_cpu
            and image.requires_grad
            and image.dtype is torch.float32
            and op._native_cpu is not None
        )
        return (OnePass.apply if suits else default)(*args)

    return apply


frame_loss = define(
    OpSpec(
        name="frame_loss",
        schema=f"({_ARGUMENTS}) -> Tensor",
        reference=reference.frame_loss,
        fake=_fake,
        native=_native,
        supports=_supports,
        setup_context=_save,
        backward=_backward,
        autocast="float32",
        plain=_one_pass,
    )
)

frame_loss_backward = define(
    OpSpec(
        name="frame_loss_backward",
        schema=f"(Tensor grad_loss, {_ARGUMENTS}) -> Tensor",
        reference=reference.frame_loss_backward,
        fake=_fake_backward,
        native=_native_backward,
        supports=lambda backend, grad_loss, *args: _supports(backend, *args),
        autocast="float32",
    )
)
