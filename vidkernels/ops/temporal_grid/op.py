"""temporal_grid: grids of features over time, read at given times and enlarged in space; and the adjoint of that."""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.temporal_grid import reference

COMBINE = ("concat", "sum")


def _rows(x):
    """[B, H, W, C] without gaps."""
    return x.permute(0, 2, 3, 1).contiguous()


def _fake(grid, t, lengths, scale, combine):
    _, channels, height, width = grid.shape
    channels *= len(lengths) if combine == "concat" else 1
    return grid.new_empty(t.shape[0], height * scale, width * scale, channels).permute(0, 3, 1, 2)


def _supports(backend, grid, *rest):
    if backend != "reference" and grid.dtype is torch.float64:
        return f"the {backend} kernel computes in float32"
    return None


def _native(kernel, grid, t, lengths, scale, combine):
    _, channels, height, width = grid.shape
    concat = combine == "concat"
    shape = (t.shape[0], height * scale, width * scale, channels * (len(lengths) if concat else 1))
    out = empty(shape, grid.dtype, grid.device)
    kernel(_rows(grid), t.double().contiguous(), out, list(lengths), scale, concat)
    return out.permute(0, 3, 1, 2)


def _save(ctx, inputs, output):
    grid, t, lengths, scale, combine = inputs[:5]
    ctx.save_for_backward(t)
    ctx.vk_rest = grid.shape[0], list(lengths), scale, combine


def _backward(ctx, grad):
    (t,) = ctx.saved_tensors
    return temporal_grid_backward(grad, t, *ctx.vk_rest, backend=ctx.vk_backend), None, None, None, None


def _grid_shape(grad, frames, lengths, scale, combine):
    _batch, channels, height, width = grad.shape
    return frames, height // scale, width // scale, channels // (len(lengths) if combine == "concat" else 1)


def _fake_backward(grad, t, frames, lengths, scale, combine):
    return grad.new_empty(_grid_shape(grad, frames, lengths, scale, combine)).permute(0, 3, 1, 2)


def _native_backward(kernel, grad, t, frames, lengths, scale, combine):
    grid = empty(_grid_shape(grad, frames, lengths, scale, combine), grad.dtype, grad.device)
    read = None
    if kernel.__name__.endswith("_cuda"):
        shape = (grad.shape[0], *grid.shape[1:3], grad.shape[1])
        read = torch.empty(shape, dtype=torch.float32, device=grad.device)
    kernel(_rows(grad), t.double().contiguous(), grid, read, list(lengths), scale, combine == "concat")
    return grid.permute(0, 3, 1, 2)


def _save_times(ctx, inputs, output):
    _grad, t, _frames, *ctx.vk_rest = inputs[:6]
    ctx.save_for_backward(t)


def _double_backward(ctx, grad):
    (t,) = ctx.saved_tensors
    return temporal_grid(grad, t, *ctx.vk_rest, backend=ctx.vk_backend), None, None, None, None, None


temporal_grid = define(
    OpSpec(
        name="temporal_grid",
        schema="(Tensor grid, Tensor t, int[] lengths, SymInt scale, str combine) -> Tensor",
        reference=reference.temporal_grid,
        fake=_fake,
        native=_native,
        supports=_supports,
        setup_context=_save,
        backward=_backward,
    )
)

temporal_grid_backward = define(
    OpSpec(
        name="temporal_grid_backward",
        schema="(Tensor grad, Tensor t, SymInt frames, int[] lengths, SymInt scale, str combine) -> Tensor",
        reference=reference.temporal_grid_backward,
        fake=_fake_backward,
        native=_native_backward,
        supports=_supports,
        setup_context=_save_times,
        backward=_double_backward,
    )
)
