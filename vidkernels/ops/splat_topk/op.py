"""splat_topk: the normalised sum of the K heaviest 2D Gaussians at every pixel, as Image-GS renders."""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.splat_topk import reference


def _images(offsets):
    return 1 if offsets is None else offsets.shape[0] - 1


def _dense(*tensors):
    return [None if t is None else t.contiguous() for t in tensors]


def _supports(backend, means, *rest):
    if backend != "reference" and means.dtype is not torch.float32:
        return f"the {backend} kernel computes in float32"
    return None


def _supports_backward(backend, grad_image, index, means, *rest):
    return _supports(backend, means)


def _fake(means, shapes, colors, opacities, offsets, height, width, count, *rest):
    size = (_images(offsets), height, width)
    return means.new_empty(*size, colors.shape[1]), means.new_empty(*size, count, dtype=torch.int32)


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
    (csrc/device/vk_exact_sum.cuh)."""
    return count * ((6 + channels) * 5 + 1) * 8 + _walk_bytes(count, height, width)


def _scratch(kernel, tensor, nbytes):
    return tensor.new_empty(nbytes, dtype=torch.uint8) if "cuda" in kernel.__name__ else None


def _native(kernel, means, shapes, colors, opacities, offsets, height, width, count, pixel_center, form):
    size = (_images(offsets), height, width)
    image = empty((*size, colors.shape[1]), means.dtype, means.device)
    index = empty((*size, count), torch.int32, means.device)
    scratch = _scratch(kernel, means, scratch_bytes(means.shape[0], *size))
    kernel(*_dense(means, shapes, colors, opacities, offsets), image, index, scratch, pixel_center, form == "conic")
    return image, index


def _save(ctx, inputs, output):
    ctx.save_for_backward(output[1], *inputs[:5])
    ctx.vk_rest = inputs[8:10]


def _backward(ctx, grad_image, _):
    d = splat_topk_backward(grad_image, *ctx.saved_tensors, *ctx.vk_rest, backend=ctx.vk_backend)
    return (*d[:3], None if ctx.saved_tensors[4] is None else d[3], *[None] * 6)


def _fake_backward(grad_image, index, means, shapes, colors, opacities, offsets, pixel_center, form):
    return (
        *(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (means, shapes, colors)),
        means.new_empty(0 if opacities is None else means.shape[0]),
    )


def _native_backward(kernel, grad_image, index, means, shapes, colors, opacities, offsets, pixel_center, form):
    grads = [empty(tuple(t.shape), t.dtype, t.device) for t in (means, shapes, colors)]
    d_opacities = empty((0 if opacities is None else means.shape[0],), means.dtype, means.device)
    scratch = _scratch(kernel, means, backward_scratch_bytes(means.shape[0], *grad_image.shape))
    kernel(*_dense(grad_image, index, means, shapes, colors, opacities, offsets), *grads,
           None if opacities is None else d_opacities, scratch, pixel_center, form == "conic")  # fmt: skip
    return *grads, d_opacities


splat_topk = define(
    OpSpec(
        name="splat_topk",
        schema=(
            "(Tensor means, Tensor shapes, Tensor colors, Tensor? opacities, Tensor? offsets, SymInt height, "
            "SymInt width, int count, float pixel_center, str form) -> (Tensor, Tensor)"
        ),
        reference=reference.splat_topk,
        fake=_fake,
        native=_native,
        supports=_supports,
        setup_context=_save,
        backward=_backward,
        autocast="float32",
    )
)

splat_topk_backward = define(
    OpSpec(
        name="splat_topk_backward",
        schema=(
            "(Tensor grad_image, Tensor index, Tensor means, Tensor shapes, Tensor colors, "
            "Tensor? opacities, Tensor? offsets, float pixel_center, str form) -> (Tensor, Tensor, Tensor, Tensor)"
        ),
        reference=reference.splat_topk_backward,
        fake=_fake_backward,
        native=_native_backward,
        supports=_supports_backward,
        autocast="float32",
    )
)
