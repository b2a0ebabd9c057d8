"""splat_alpha: 2D Gaussians composited over one another, nearest first, as gsplat does.

`absgrad` is a [N, 2] tensor whose values nobody reads: its gradient is sum |per-pixel gradient of the mean|, which
densification looks at. None leaves that out.
"""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.splat_alpha import reference


def _images(offsets):
    return 1 if offsets is None else offsets.shape[0] - 1


def _dense(*tensors):
    return [None if t is None else t.contiguous() for t in tensors]


def _rows(background):
    return background if background is None or background.dim() == 2 else background[None]


def _supports(backend, means, *rest):
    if backend != "reference" and means.dtype is not torch.float32:
        return f"the {backend} kernel computes in float32"
    return None


def _fake(means, shapes, colors, opacities, depths, background, offsets, height, width, *rest):
    size = (_images(offsets), height, width)
    order = means.new_empty(means.shape[0], dtype=torch.int32)
    return means.new_empty(*size, colors.shape[1]), means.new_empty(size), order


def _walk_bytes(count: int, height: int, width: int) -> int:
    """csrc/device/vk_tile_bits.cuh: a bit per Gaussian, in blocks of 256, and tile of 128 pixels or more; weights."""
    tile = 128
    while -(-height // tile) * -(-width // tile) > 256:
        tile *= 2
    return -(-height // tile) * -(-width // tile) * -(-count // 256) * 32 + (count + 1) // 2 * 8


def scratch_bytes(count: int, images: int, height: int, width: int) -> int:
    """Device memory that the CUDA forward pass needs beside its outputs."""
    return _walk_bytes(count, height, width)


def backward_scratch_bytes(count: int, images: int, height: int, width: int, channels: int) -> int:
    """Device memory that the CUDA backward pass needs beside its outputs: exact sums of 40 bytes each
    (csrc/device/vk_exact_sum.cuh), and each 32x32-pixel window's share of the background's gradient."""
    sums = count * ((8 + channels) * 5 + 1) * 8
    windows = images * -(-height // 32) * -(-width // 32)
    return sums + _walk_bytes(count, height, width) + 4 * windows * channels


def _depth_order(depths, offsets):
    """Rows of every image, nearest first; equal depths keep their order and NaN comes last. Nothing waits for the
    device, and -0 and negative NaN do not depend on how torch compares them."""
    depths = torch.where(depths.isnan(), torch.nan, depths + 0.0)
    order = depths.sort(stable=True).indices
    if offsets is not None and offsets.shape[0] > 2:
        image = torch.searchsorted(offsets[1:].contiguous(), order, right=True, out_int32=True)
        order = order[image.sort(stable=True).indices]
    return order.int()


def _scratch(kernel, tensor, nbytes):
    return tensor.new_empty(nbytes, dtype=torch.uint8) if "cuda" in kernel.__name__ else None


def _native(kernel, means, shapes, colors, opacities, depths, background, offsets, height, width, pixel_center, form,
            absgrad):  # fmt: skip
    size = (_images(offsets), height, width)
    image = empty((*size, colors.shape[1]), means.dtype, means.device)
    alpha = empty(size, means.dtype, means.device)
    if "cuda" in kernel.__name__:
        order = _depth_order(depths, offsets)
    else:
        order = empty((means.shape[0],), torch.int32, means.device)
    scratch = _scratch(kernel, means, scratch_bytes(means.shape[0], *size))
    kernel(*_dense(means, shapes, colors, opacities, depths, _rows(background), offsets), image, alpha, order, scratch,
           pixel_center, form == "conic")  # fmt: skip
    return image, alpha, order


def _save(ctx, inputs, output):
    means, shapes, colors, opacities, _, background, offsets, _, _, pixel_center, form, absgrad = inputs[:12]
    ctx.save_for_backward(*output, means, shapes, colors, opacities, background, offsets)
    ctx.vk_rest = pixel_center, form, absgrad is not None


def _backward(ctx, grad_image, grad_alpha, _):
    saved = ctx.saved_tensors
    background = saved[7]
    if grad_image is None:
        grad_image = torch.zeros_like(saved[0])
    d = splat_alpha_backward(grad_image, grad_alpha, *saved, *ctx.vk_rest, backend=ctx.vk_backend)
    return (*d[:4], None, None if background is None else d[4], *[None] * 5, d[5] if ctx.vk_rest[2] else None)


def _fake_backward(grad_image, grad_alpha, image, alpha, order, means, shapes, colors, opacities, background, offsets,
                   pixel_center, form, absgrad):  # fmt: skip
    return (
        *(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (means, shapes, colors, opacities)),
        means.new_empty(0 if background is None else background.shape),
        means.new_empty(means.shape[0] if absgrad else 0, 2),
    )


def _native_backward(kernel, grad_image, grad_alpha, image, alpha, order, means, shapes, colors, opacities, background,
                     offsets, pixel_center, form, absgrad):  # fmt: skip
    def like(t):
        return empty(tuple(t.shape), t.dtype, t.device)

    grads = [like(t) for t in (means, shapes, colors, opacities)]
    d_background = means.new_empty(0) if background is None else like(background)
    absolute = empty((means.shape[0] if absgrad else 0, 2), means.dtype, means.device)
    scratch = _scratch(kernel, means, backward_scratch_bytes(means.shape[0], *grad_image.shape))
    kernel(*_dense(grad_image, grad_alpha, image, alpha, order, means, shapes, colors, opacities, _rows(background),
                   offsets), *grads, None if background is None else _rows(d_background),
           absolute if absgrad else None, scratch, pixel_center, form == "conic")  # fmt: skip
    return *grads, d_background, absolute


def _supports_backward(backend, grad_image, grad_alpha, image, alpha, order, means, *rest):
    return _supports(backend, means)


splat_alpha = define(
    OpSpec(
        name="splat_alpha",
        schema=(
            "(Tensor means, Tensor shapes, Tensor colors, Tensor opacities, Tensor depths, Tensor? background, "
            "Tensor? offsets, SymInt height, SymInt width, float pixel_center, str form, Tensor? absgrad) "
            "-> (Tensor, Tensor, Tensor)"
        ),
        reference=reference.splat_alpha,
        fake=_fake,
        native=_native,
        supports=_supports,
        setup_context=_save,
        backward=_backward,
        autocast="float32",
    )
)

splat_alpha_backward = define(
    OpSpec(
        name="splat_alpha_backward",
        schema=(
            "(Tensor grad_image, Tensor? grad_alpha, Tensor image, Tensor alpha, Tensor order, Tensor means, "
            "Tensor shapes, Tensor colors, Tensor opacities, Tensor? background, Tensor? offsets, "
            "float pixel_center, str form, bool absgrad) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
        ),
        reference=reference.splat_alpha_backward,
        fake=_fake_backward,
        native=_native_backward,
        supports=_supports_backward,
        autocast="float32",
    )
)
