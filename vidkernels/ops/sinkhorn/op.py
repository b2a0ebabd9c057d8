"""sinkhorn: the balanced assignment; sinkhorn_scales: its potentials and labels only; sinkhorn_step: half an iteration.

The gradient of sinkhorn walks the iterations back from their potentials (a few N + K floats each), in plain torch.
"""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.sinkhorn import reference

_BLOCKS = 128  # kSinkhornBlocks of sinkhorn.h


def _only_single(backend, scores, *rest):
    if scores.dtype is torch.float64:
        return "scores are float64; the kernels compute in float32"
    return None


def _result_dtype(scores):
    return torch.float64 if scores.dtype is torch.float64 else torch.float32


def _prepared(scores, *vectors):
    return scores.contiguous(), *(None if v is None else v.to(torch.float32).contiguous() for v in vectors)


def _workspace(kernel, scores):
    """Column sums of the blocks of rows that the CUDA kernels add up apart; the CPU kernels keep their own."""
    if kernel.__name__.endswith("_cpu"):
        return None
    batch, rows, cols = scores.shape
    floats = batch * (2 * max(1, min(rows, _BLOCKS)) * cols + cols + 1)
    return empty((floats,), torch.float32, scores.device)


def _fake(scores, epsilon, iterations, row_mass, col_mass, rows_to_one):
    batch, rows, cols = scores.shape
    dtype = _result_dtype(scores)
    shapes = (batch, rows, cols), (batch, iterations, rows), (batch, iterations, cols)
    return tuple(scores.new_empty(s, dtype=dtype) for s in shapes)


def _native(kernel, scores, epsilon, iterations, row_mass, col_mass, rows_to_one):
    batch, rows, cols = scores.shape
    scores, row_mass, col_mass = _prepared(scores, row_mass, col_mass)
    shapes = (batch, rows, cols), (batch, iterations, rows), (batch, iterations, cols)
    out = tuple(empty(s, torch.float32, scores.device) for s in shapes)
    kernel(scores, row_mass, col_mass, *out, _workspace(kernel, scores), epsilon, iterations, rows_to_one)
    return out


def _setup(ctx, inputs, output):
    scores, ctx.epsilon, _, row_mass, col_mass, ctx.rows_to_one = inputs[:6]
    ctx.save_for_backward(scores, row_mass, col_mass, output[1], output[2])


def _backward(ctx, grad_plan, grad_rows, grad_cols):
    scores, row_mass, col_mass, rows, cols = ctx.saved_tensors
    grads = reference.sinkhorn_backward(
        grad_plan, grad_rows, grad_cols, scores, ctx.epsilon, row_mass, col_mass, ctx.rows_to_one, rows, cols
    )
    return grads[0], None, None, grads[1], grads[2], None


def _fake_scales(scores, epsilon, iterations, row_mass, col_mass):
    batch, rows, cols = scores.shape
    dtype = _result_dtype(scores)
    return (
        scores.new_empty(batch, rows, dtype=dtype),
        scores.new_empty(batch, cols, dtype=dtype),
        scores.new_empty(batch, rows, dtype=torch.long),
    )


def _potentials(scores):
    batch, rows, cols = scores.shape
    return [
        empty((batch, count), dtype, scores.device)
        for count, dtype in ((rows, torch.float32), (cols, torch.float32), (rows, torch.long))
    ]


def _native_scales(kernel, scores, epsilon, iterations, row_mass, col_mass):
    scores, row_mass, col_mass = _prepared(scores, row_mass, col_mass)
    out = _potentials(scores)
    kernel(scores, row_mass, col_mass, *out, _workspace(kernel, scores), epsilon, iterations)
    return tuple(out)


def _fake_step(scores, epsilon, row_mass, col_log):
    return _fake_scales(scores, epsilon, 1, row_mass, col_log)


def _native_step(kernel, scores, epsilon, row_mass, col_log):
    scores, row_mass, col_log = _prepared(scores, row_mass, col_log)
    out = _potentials(scores)
    kernel(scores, row_mass, col_log, *out, _workspace(kernel, scores), epsilon)
    return tuple(out)


sinkhorn = define(
    OpSpec(
        name="sinkhorn",
        schema="(Tensor scores, float epsilon, int iterations, Tensor? row_mass, Tensor? col_mass, bool rows_to_one) "
        "-> (Tensor, Tensor, Tensor)",
        reference=reference.sinkhorn,
        fake=_fake,
        native=_native,
        supports=_only_single,
        setup_context=_setup,
        backward=_backward,
        batched=("scores", "row_mass", "col_mass"),
    )
)

sinkhorn_scales = define(
    OpSpec(
        name="sinkhorn_scales",
        schema="(Tensor scores, float epsilon, int iterations, Tensor? row_mass, Tensor? col_mass) "
        "-> (Tensor, Tensor, Tensor)",
        reference=reference.sinkhorn_scales,
        fake=_fake_scales,
        native=_native_scales,
        supports=_only_single,
        batched=("scores", "row_mass", "col_mass"),
    )
)

sinkhorn_step = define(
    OpSpec(
        name="sinkhorn_step",
        schema="(Tensor scores, float epsilon, Tensor? row_mass, Tensor? col_log) -> (Tensor, Tensor, Tensor)",
        reference=reference.sinkhorn_step,
        fake=_fake_step,
        native=_native_step,
        supports=_only_single,
        batched=("scores", "row_mass", "col_log"),
    )
)
