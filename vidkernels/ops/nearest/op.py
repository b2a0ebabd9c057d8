"""nearest: the k best codes of every point by distance, inner product or cosine; never N x K in memory."""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.nearest import reference

METRICS = ("l2", "ip", "cosine")
CANDIDATES = ("all", "others", "before")
MOST = 32  # codes per point


def _value_dtype(points, codes):
    return torch.float64 if torch.float64 in (points.dtype, codes.dtype) else torch.float32


def _fake(points, codes, k, metric, candidates, screen):
    shape = (points.shape[0], points.shape[1], k)
    return points.new_empty(shape, dtype=_value_dtype(points, codes)), points.new_empty(shape, dtype=torch.int64)


def _supports(backend, points, codes, *rest):
    if backend != "reference" and _value_dtype(points, codes) is torch.float64:
        return f"the {backend} kernel computes in float32"
    return None


def scratch_bytes(batch: int, count: int, code_batch: int, length: int, dim: int, k: int) -> int:
    """Device memory that the CUDA kernels need beside their outputs (lay_out in nearest_cuda.cu): bfloat16 copies of
    points and codes, in multiples of 32 columns and 128 codes, and 20 bytes or less of bounds for each."""
    rows, tiles, columns = batch * count, code_batch * -(-length // 128), max(1, -(-dim // 32)) * 32
    parts = min(-(-length // 128) // 2, 512 // max(1, -(-count // 64) * batch))  # of the codes, where points are few
    pieces = (
        2 * rows * columns,
        2 * tiles * 128 * columns,
        4 * tiles * 128,
        16 * rows,
        16 * tiles,
        4 * code_batch * dim,
        4 * (rows + code_batch * length),
        *[4 * rows * parts * k if parts > 1 else 0] * 2,
    )
    return sum(-(-piece // 256) * 256 for piece in pieces)


def _rows(tensor):
    """Rows may lie anywhere, but each in one piece: a slice of every second token is not copied."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def _native(kernel, points, codes, k, metric, candidates, screen):
    if points.dtype is not codes.dtype:
        points, codes = points.float(), codes.float()
    points, codes = _rows(points), _rows(codes)
    batch, count, dim = points.shape
    index = empty((batch, count, k), torch.int64, points.device)
    value = empty((batch, count, k), torch.float32, points.device)
    scratch = None
    if "cuda" in kernel.__name__:
        nbytes = scratch_bytes(batch, count, codes.shape[0], codes.shape[1], dim, k)
        scratch = points.new_empty(nbytes, dtype=torch.uint8)
    kernel(points, codes, index, value, scratch, METRICS.index(metric), CANDIDATES.index(candidates), screen)
    return value, index


def _save(ctx, inputs, output):
    points, codes, _, metric, *_ = inputs
    ctx.save_for_backward(points, codes, output[1])
    ctx.vk_metric = metric


def _unit(x, grown):
    """Rows of length 1 (a zero row stays zero, with zero gradient), scaled first so that no square overflows."""
    scale = x.detach().abs().amax(-1, keepdim=True)
    scale = scale.where(scale > 0, 1)
    x = x.to(grown) / scale
    length = x.norm(dim=-1, keepdim=True)
    return x / length.where(length > 0, 1), (length * scale).where(length > 0, torch.inf)


def _backward(ctx, grad, _):
    """Gathers and index_add, one column of the k at a time: memory of the size of the points."""
    points, codes, index = ctx.saved_tensors
    metric, wide = ctx.vk_metric, grad.dtype
    batch, count, dim = points.shape
    code_batch, length, _ = codes.shape
    if length == 0:
        return torch.zeros_like(points), torch.zeros_like(codes), None, None, None, None
    x, c = points.to(wide), codes.to(wide)
    if metric == "cosine":
        (x, x_length), (c, c_length) = _unit(points, wide), _unit(codes, wide)
    first = torch.arange(batch, device=index.device)[:, None] * (length if code_batch > 1 else 0)
    flat_codes = c.reshape(-1, dim)
    d_points, d_codes = torch.zeros_like(x), torch.zeros_like(flat_codes)
    for j in range(index.shape[2]):
        found = index[..., j] >= 0
        row = (index[..., j].clamp(min=0) + first).flatten()
        g = grad[..., j].masked_fill(~found, 0)[..., None]
        code = flat_codes.index_select(0, row).view(batch, count, dim)
        if metric == "l2":
            d = 2 * g * (x - code)
            to_code = -d
        elif metric == "ip":
            d, to_code = g * code, g * x
        else:
            similarity = (x * code).sum(-1, keepdim=True)
            d = g * (code - similarity * x) / x_length
            inverse = c_length.reshape(-1, 1).index_select(0, row).view(batch, count, 1)
            to_code = g * (x - similarity * code) / inverse
        absent = ~found[..., None]
        d_points = d_points + d.masked_fill(absent, 0)
        d_codes = d_codes.index_add(0, row, to_code.masked_fill(absent, 0).view(-1, dim))
    return d_points.to(points.dtype), d_codes.view(c.shape).to(codes.dtype), None, None, None, None


nearest_op = define(
    OpSpec(
        name="nearest",
        schema=(
            "(Tensor points, Tensor codes, int k, str metric, str candidates, bool screen) "
            "-> (Tensor value, Tensor index)"
        ),
        reference=reference.nearest,
        fake=_fake,
        native=_native,
        supports=_supports,
        setup_context=_save,
        backward=_backward,
    )
)


def nearest(points, codes, k, metric, candidates, screen, *, backend=None):
    """(index, value) of the op. The op itself has its differentiable output first, as torch's opcheck wants it."""
    value, index = nearest_op(points, codes, k, metric, candidates, screen, backend=backend)
    return index, value
