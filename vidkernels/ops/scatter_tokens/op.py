"""scatter_tokens: put visible rows back on the grid, fill the rest with a mask token, add the position.

It is linear in (visible, mask_token, position), so the derivative of its backward pass is the op itself.
"""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.scatter_tokens import reference

_HALVES = (torch.float16, torch.bfloat16)
_TILE = 32  # ScatterTokensBackward::kTile: tokens whose share of the mask token's gradient is summed first


def _supports(backend, visible, visible_index, length, mask_token, position):
    for p in (mask_token, position):
        if p is not None and p.dtype is not mask_token.dtype:
            return "mask_token and position have different dtypes"
    return _pair(visible.dtype, mask_token.dtype)


def _pair(dtype: torch.dtype, param: torch.dtype) -> str | None:
    if dtype is param or (param is torch.float32 and dtype in _HALVES):
        return None
    return f"parameters are {param} and tokens {dtype}; the kernels take one dtype, or float32 beside a half type"


def _fake(visible, visible_index, length, mask_token, position):
    return visible.new_empty(visible.shape[0], length, visible.shape[2])


def _native(kernel, visible, visible_index, length, mask_token, position):
    out = empty((visible.shape[0], length, visible.shape[2]), visible.dtype, visible.device)
    position = None if position is None else position.contiguous()
    kernel(visible.contiguous(), visible_index.contiguous(), mask_token.contiguous(), position, out)
    return out


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])
    ctx.param_dtype = inputs[3].dtype
    ctx.with_position = inputs[4] is not None


def _backward(ctx, grad):
    (index,) = ctx.saved_tensors
    visible, mask_token, position = scatter_tokens_backward(
        grad, index, ctx.param_dtype, ctx.with_position, backend=ctx.vk_backend
    )
    return visible, None, None, mask_token, position if ctx.with_position else None


def _fake_backward(grad_out, visible_index, param_dtype, with_position):
    batch, length, dim = grad_out.shape
    return (
        grad_out.new_empty(batch, visible_index.shape[1], dim),
        grad_out.new_empty((dim,), dtype=param_dtype),
        grad_out.new_empty((length if with_position else 0, dim), dtype=param_dtype),
    )


def _native_backward(kernel, grad_out, visible_index, param_dtype, with_position):
    batch, length, dim = grad_out.shape
    device = grad_out.device
    visible = empty((batch, visible_index.shape[1], dim), grad_out.dtype, device)
    mask_token = empty((dim,), param_dtype, device)
    position = empty((length if with_position else 0, dim), param_dtype, device)
    wide = torch.float64 if grad_out.dtype is torch.float64 else torch.float32
    partial = empty((-(-length // _TILE), dim), wide, device)
    kernel(grad_out.contiguous(), visible_index.contiguous(), visible, mask_token, position, partial)
    return visible, mask_token, position


def _setup_double(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])
    ctx.length = inputs[0].shape[1]
    ctx.with_position = inputs[3]


def _double_backward(ctx, visible, mask_token, position):
    (index,) = ctx.saved_tensors
    position = position if ctx.with_position else None
    grad = scatter_tokens(visible, index, ctx.length, mask_token, position, backend=ctx.vk_backend)
    return grad, None, None, None


scatter_tokens = define(
    OpSpec(
        name="scatter_tokens",
        schema=("(Tensor visible, Tensor visible_index, SymInt length, Tensor mask_token, Tensor? position) -> Tensor"),
        reference=reference.scatter_tokens,
        fake=_fake,
        native=_native,
        supports=_supports,
        setup_context=_setup_context,
        backward=_backward,
        batched=("visible", "visible_index"),
    )
)

scatter_tokens_backward = define(
    OpSpec(
        name="scatter_tokens_backward",
        schema=(
            "(Tensor grad_out, Tensor visible_index, ScalarType param_dtype, bool with_position)"
            " -> (Tensor, Tensor, Tensor)"
        ),
        reference=reference.scatter_tokens_backward,
        fake=_fake_backward,
        native=_native_backward,
        supports=lambda backend, grad_out, visible_index, param_dtype, with_position: _pair(
            grad_out.dtype, param_dtype
        ),
        setup_context=_setup_double,
        backward=_double_backward,
    )
)
