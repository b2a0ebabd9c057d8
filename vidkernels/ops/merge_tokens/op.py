"""merge_tokens: size-weighted means of the tokens that share a place; its backward hands every token its share."""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.merge_tokens import reference


def _size_dtype(tokens):
    return torch.float64 if tokens.dtype is torch.float64 else torch.float32


def _sizes(size, tokens):
    return None if size is None else size.to(_size_dtype(tokens)).contiguous()


def _fake(tokens, source, size, count):
    batch, _, dim = tokens.shape
    return tokens.new_empty(batch, count, dim), tokens.new_empty(batch, count, dtype=_size_dtype(tokens))


def _native(kernel, tokens, source, size, count):
    batch, _, dim = tokens.shape
    merged = empty((batch, count, dim), tokens.dtype, tokens.device)
    total = empty((batch, count), _size_dtype(tokens), tokens.device)
    kernel(tokens.contiguous(), source.contiguous(), _sizes(size, tokens), merged, total)
    return merged, total


def _save(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[1], inputs[2], output[1])


def _backward(ctx, grad, _):
    source, size, total = ctx.saved_tensors
    return merge_tokens_backward(grad, source, size, total, backend=ctx.vk_backend), None, None, None


def _fake_backward(grad_merged, source, size, total):
    return grad_merged.new_empty(*source.shape, grad_merged.shape[2])


def _native_backward(kernel, grad_merged, source, size, total):
    grad = empty((*source.shape, grad_merged.shape[2]), grad_merged.dtype, grad_merged.device)
    kernel(grad_merged.contiguous(), source.contiguous(), _sizes(size, grad_merged), total.contiguous(), grad)
    return grad


def _save_backward(ctx, inputs, output):
    ctx.save_for_backward(inputs[1], inputs[2])
    ctx.count = inputs[0].shape[1]


def _double_backward(ctx, grad):
    source, size = ctx.saved_tensors
    return merge_tokens(grad, source, size, ctx.count, backend=ctx.vk_backend)[0], None, None, None


merge_tokens = define(
    OpSpec(
        name="merge_tokens",
        schema="(Tensor tokens, Tensor source, Tensor? size, SymInt count) -> (Tensor, Tensor)",
        reference=reference.merge_tokens,
        fake=_fake,
        native=_native,
        setup_context=_save,
        backward=_backward,
        batched=("tokens", "source", "size"),
    )
)

merge_tokens_backward = define(
    OpSpec(
        name="merge_tokens_backward",
        schema="(Tensor grad_merged, Tensor source, Tensor? size, Tensor total) -> Tensor",
        reference=reference.merge_tokens_backward,
        fake=_fake_backward,
        native=_native_backward,
        setup_context=_save_backward,
        backward=_double_backward,
        batched=("grad_merged", "source", "size", "total"),
    )
)
