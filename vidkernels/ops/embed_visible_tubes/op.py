"""embed_visible_tubes: the patch embedding of the visible tubes only, read straight from the clip.

Inside, a pixel is centred and scaled so that it is exact in every float type ((u - 128) / 128 for uint8), and the
normalisation lives in a folded copy of the weight and in the bias. The folding is a function of the weight as it
is rounded, so a half-precision weight does not shift the mean.
"""

from __future__ import annotations

import torch

from vidkernels._half import multiplies
from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.embed_visible_tubes import reference

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# oneDNN's bf16 product loses a third of its speed on taller operands (measured with AMX); fp32 does not care.
_ROWS = {torch.bfloat16: 640}


def _grid(video, tube) -> tuple[int, int]:
    """Tubes of a clip, pixels (times channels) of a tube."""
    last = video.dtype is torch.uint8
    t, h, w = video.shape[1:4] if last else video.shape[2:]
    pt, ph, pw = tube
    return (t // pt) * (h // ph) * (w // pw), video.shape[4 if last else 1] * pt * ph * pw


def _dense(video):
    """Frames and rows may have gaps between them, pixels of a row not."""
    if video.dtype is torch.uint8:
        ok = video.stride(4) == 1 and video.stride(3) == video.shape[4]
    else:
        ok = video.stride(4) == 1
    return video if ok else video.contiguous()


def _fake(video, weight, bias, visible_index, position, tube, mean, std):
    return weight.new_empty(*visible_index.shape, weight.shape[0])


def _why_not(video, dtype, *others):
    if video.shape[4 if video.dtype is torch.uint8 else 1] > 32:
        return "the kernels take at most 32 channels"
    if dtype not in _FLOATS:
        return f"{dtype} is not a floating type that it takes"
    if video.dtype is not torch.uint8 and video.dtype is not dtype:
        return f"a {video.dtype} clip with a {dtype} weight would need a copy"
    if any(o is not None and o.dtype is not dtype for o in others):
        return "weight, bias and position differ in dtype"
    return None


def _supports(backend, video, weight, bias, visible_index, position, tube, mean, std):
    return _why_not(video, weight.dtype, bias, position)


def _native(kernel, video, weight, bias, visible_index, position, tube, mean, std):
    dim, device, dtype = weight.shape[0], weight.device, weight.dtype
    rows, width = visible_index.numel(), _grid(video, tube)[1]
    out = empty((rows, dim), dtype, device)
    columns = folded = None
    if kernel.__name__.endswith("_cpu"):  # torch multiplies; the CUDA kernel gathers and folds as it multiplies
        columns = empty((rows, width), dtype, device)
        folded = empty((dim, width), dtype, device)
    complete = kernel(
        _dense(video), weight.contiguous(), None if bias is None else bias.contiguous(), visible_index.contiguous(),
        None if position is None else position.contiguous(), tube, mean, std, columns, folded, out,
    )  # fmt: skip
    if not complete and not multiplies(dtype, device.type):
        out.copy_(torch.addmm(out.float(), columns.float(), folded.float().t()))
    elif not complete:
        step = _ROWS.get(dtype, rows)
        parts = max(1, -(-rows // max(1, step)))
        for i in range(parts):
            part = slice(rows * i // parts, rows * (i + 1) // parts)
            torch.addmm(out[part], columns[part], folded.t(), out=out[part])
    return out.view(*visible_index.shape, dim)


def _save(ctx, inputs, output):
    video, _, bias, visible_index, position, tube, mean, std = inputs[:8]
    ctx.save_for_backward(video, visible_index)
    ctx.rest = tube, mean, std
    ctx.has = bias is not None, position is not None


def _backward(ctx, grad):
    video, visible_index = ctx.saved_tensors
    has_bias, has_position = ctx.has
    with_position = has_position and ctx.needs_input_grad[4]
    grad_weight, grad_bias, grad_position = embed_visible_tubes_backward(
        grad, video, visible_index, *ctx.rest, with_position, backend=ctx.vk_backend
    )
    return (
        None, grad_weight, grad_bias if has_bias else None, None, grad_position if with_position else None,
        None, None, None,
    )  # fmt: skip


def _weight_shape(grad_out, video, tube):
    return grad_out.shape[2], video.shape[4 if video.dtype is torch.uint8 else 1], *tube


def _fake_backward(grad_out, video, visible_index, tube, mean, std, with_position):
    dim = grad_out.shape[2]
    return (
        grad_out.new_empty(_weight_shape(grad_out, video, tube)),
        grad_out.new_empty(dim),
        grad_out.new_empty(_grid(video, tube)[0] if with_position else 0, dim),
    )


def _supports_backward(backend, grad_out, video, visible_index, tube, mean, std, with_position):
    return _why_not(video, grad_out.dtype)


def _native_backward(kernel, grad_out, video, visible_index, tube, mean, std, with_position):
    dim, device, dtype = grad_out.shape[2], grad_out.device, grad_out.dtype
    length, width = _grid(video, tube)
    video, index, grad = _dense(video), visible_index.contiguous(), grad_out.contiguous().view(-1, dim)
    columns = empty((grad.shape[0], width), dtype, device)
    product = empty((dim, width), dtype, device)
    grad_weight = empty(_weight_shape(grad_out, video, tube), dtype, device)
    grad_bias = empty((dim,), dtype, device)
    grad_position = empty((length if with_position else 0, dim), dtype, device)
    sums = empty((dim,), torch.float64 if dtype is torch.float64 else torch.float32, device)
    fixed = grad, video, index, tube, mean, std
    kernel(*fixed, columns, None, None, None, None, None)
    if multiplies(dtype, device.type):
        torch.mm(grad.t(), columns, out=product)
    else:
        product.copy_(torch.mm(grad.float().t(), columns.float()))
    kernel(*fixed, None, product, grad_weight, grad_bias, grad_position if with_position else None, sums)
    return grad_weight, grad_bias, grad_position


embed_visible_tubes = define(
    OpSpec(
        name="embed_visible_tubes",
        schema="(Tensor video, Tensor weight, Tensor? bias, Tensor visible_index, Tensor? position, int[] tube, "
        "float[] mean, float[] std) -> Tensor",
        reference=reference.embed_visible_tubes,
        fake=_fake,
        native=_native,
        supports=_supports,
        setup_context=_save,
        backward=_backward,
        autocast="lower",
        batched=("video", "visible_index"),
    )
)

embed_visible_tubes_backward = define(
    OpSpec(
        name="embed_visible_tubes_backward",
        schema="(Tensor grad_out, Tensor video, Tensor visible_index, int[] tube, float[] mean, float[] std, "
        "bool with_position) -> (Tensor, Tensor, Tensor)",
        reference=reference.embed_visible_tubes_backward,
        fake=_fake_backward,
        native=_native_backward,
        supports=_supports_backward,
    )
)
