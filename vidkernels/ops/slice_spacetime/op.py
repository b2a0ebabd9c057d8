"""slice_spacetime: Gaussians over (x, y, t), conditioned on moments t."""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.slice_spacetime import reference


def _shapes(means, times):
    moments, count = times.shape[0], means.shape[0]
    return (moments, count, 2), (count, 3), (moments, count)


def _fake(means, cholesky, times):
    return tuple(means.new_empty(s) for s in _shapes(means, times))


def _native(kernel, means, cholesky, times):
    out = tuple(empty(s, means.dtype, means.device) for s in _shapes(means, times))
    kernel(means.contiguous(), cholesky.contiguous(), times.contiguous(), *out)
    return out


def _backward(ctx, *grads):
    return slice_spacetime_backward(*grads, *ctx.saved_tensors, backend=ctx.vk_backend)


def _fake_backward(gm, gc, gw, means, cholesky, times):
    return tuple(a.new_empty(a.shape) for a in (means, cholesky, times))


def _native_backward(kernel, gm, gc, gw, means, cholesky, times):
    out = tuple(empty(a.shape, a.dtype, a.device) for a in (means, cholesky, times))
    partial = empty((-(-means.shape[0] // 256), times.shape[0]), torch.float64, means.device)
    inputs = (gm, gc, gw, means, cholesky, times)
    kernel(*(a.contiguous() for a in inputs), *out, partial)
    return out


slice_spacetime = define(
    OpSpec(
        name="slice_spacetime",
        schema="(Tensor means, Tensor cholesky, Tensor times) -> (Tensor, Tensor, Tensor)",
        reference=reference.slice_spacetime,
        fake=_fake,
        native=_native,
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:3]),
        backward=_backward,
        autocast="float32",
    )
)

slice_spacetime_backward = define(
    OpSpec(
        name="slice_spacetime_backward",
        schema="(Tensor grad_means2d, Tensor grad_cholesky2d, Tensor grad_weight, Tensor means, Tensor cholesky, "
        "Tensor times) -> (Tensor, Tensor, Tensor)",
        reference=reference.slice_spacetime_backward,
        fake=_fake_backward,
        native=_native_backward,
        autocast="float32",
    )
)
