"""gather_tokens: pick rows of a token tensor; its backward adds rows back, and the two are each other's adjoint."""

from __future__ import annotations

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.gather_tokens import reference


def _fake(tokens, index):
    return tokens.new_empty(tokens.shape[0], index.shape[1], tokens.shape[2])


def _native(kernel, tokens, index):
    batch, _, dim = tokens.shape
    out = empty((batch, index.shape[1], dim), tokens.dtype, tokens.device)
    kernel(tokens.contiguous(), index.contiguous(), out)
    return out


def _save_index(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])
    ctx.length = inputs[0].shape[1]


def _backward(ctx, grad):
    (index,) = ctx.saved_tensors
    return gather_tokens_backward(grad, index, ctx.length, backend=ctx.vk_backend), None


def _fake_backward(grad_out, index, length):
    return grad_out.new_empty(grad_out.shape[0], length, grad_out.shape[2])


def _native_backward(kernel, grad_out, index, length):
    grad = empty((grad_out.shape[0], length, grad_out.shape[2]), grad_out.dtype, grad_out.device)
    kernel(grad_out.contiguous(), index.contiguous(), grad)
    return grad


def _double_backward(ctx, grad):
    (index,) = ctx.saved_tensors
    return gather_tokens(grad, index, backend=ctx.vk_backend), None, None


gather_tokens = define(
    OpSpec(
        name="gather_tokens",
        schema="(Tensor tokens, Tensor index) -> Tensor",
        reference=reference.gather_tokens,
        fake=_fake,
        native=_native,
        setup_context=_save_index,
        backward=_backward,
        batched=("tokens", "index"),
    )
)

gather_tokens_backward = define(
    OpSpec(
        name="gather_tokens_backward",
        schema="(Tensor grad_out, Tensor index, SymInt length) -> Tensor",
        reference=reference.gather_tokens_backward,
        fake=_fake_backward,
        native=_native_backward,
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1]),
        backward=_double_backward,
        batched=("grad_out", "index"),
    )
)
