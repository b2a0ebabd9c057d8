"""splat_sum: 2D Gaussians added up into images, without order or transmittance; the gradient is a gather."""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.splat_sum import reference

_ARGUMENTS = (
    "Tensor means, Tensor shapes, Tensor colors, Tensor? opacities, Tensor? background, Tensor? offsets, "
    "SymInt height, SymInt width, float pixel_center, str form"
)


def _size(means, colors, offsets, height, width):
    return (1 if offsets is None else offsets.shape[0] - 1, height, width, colors.shape[1])


def _dense(*tensors):
    return [None if t is None else t.contiguous() for t in tensors]


def _supports(backend, means, *rest):
    if backend != "reference" and means.dtype is not torch.float32:
        return f"the {backend} kernel computes in float32"
    return None


def _supports_backward(backend, grad_image, means, *rest):
    return _supports(backend, means)


def _fake(means, shapes, colors, opacities, background, offsets, height, width, *rest):
    return means.new_empty(_size(means, colors, offsets, height, width))


def _native(kernel, means, shapes, colors, opacities, background, offsets, height, width, pixel_center, form):
    size = _size(means, colors, offsets, height, width)
    image = empty(size, means.dtype, means.device)
    scratch = None
    if "cuda" in kernel.__name__:
        scratch = means.new_empty(scratch_bytes(means.shape[0], size[0], height, width), dtype=torch.uint8)
    kernel(*_dense(means, shapes, colors, opacities, background, offsets), image, scratch, pixel_center,
           form == "conic")  # fmt: skip
    return image


def scratch_bytes(count: int, images: int, height: int, width: int) -> int:
    """What the CUDA forward pass needs (csrc/device/vk_tile_bits.cuh): one bit per tile and Gaussian, Gaussians in
    blocks of 256. Tiles grow with the image so that there are at most 256 of them."""
    tile = 128
    while -(-height // tile) * -(-width // tile) > 256:
        tile *= 2
    return -(-height // tile) * -(-width // tile) * -(-count // 256) * 32


def backward_scratch_bytes(images: int, channels: int) -> int:
    """What the CUDA backward pass needs for the gradient of the background: 64 partial sums of each image."""
    return images * 64 * channels * 8


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6])
    ctx.vk_rest = inputs[6:10]


def _backward(ctx, grad):
    opacities, background = ctx.saved_tensors[3:5]
    d = splat_sum_backward(grad, *ctx.saved_tensors, *ctx.vk_rest, backend=ctx.vk_backend)
    return (*d[:3], None if opacities is None else d[3], None if background is None else d[4], *[None] * 5)


def _fake_backward(grad_image, means, shapes, colors, opacities, background, *rest):
    none = means.new_empty(0)
    return (
        torch.empty_like(means, memory_format=torch.contiguous_format),
        torch.empty_like(shapes, memory_format=torch.contiguous_format),
        torch.empty_like(colors, memory_format=torch.contiguous_format),
        none if opacities is None else torch.empty_like(opacities, memory_format=torch.contiguous_format),
        none.new_empty(0, colors.shape[1])
        if background is None
        else torch.empty_like(background, memory_format=torch.contiguous_format),
    )


def _native_backward(kernel, grad_image, means, shapes, colors, opacities, background, offsets, height, width,
                     pixel_center, form):  # fmt: skip
    grads = _fake_backward(grad_image, means, shapes, colors, opacities, background)
    scratch = None
    if "cuda" in kernel.__name__ and background is not None:
        size = backward_scratch_bytes(grad_image.shape[0], grad_image.shape[3])
        scratch = means.new_empty(size, dtype=torch.uint8)
    kernel(*_dense(grad_image, means, shapes, colors, opacities, background, offsets), *grads[:3],
           None if opacities is None else grads[3], None if background is None else grads[4], scratch, pixel_center,
           form == "conic")  # fmt: skip
    return grads


splat_sum = define(
    OpSpec(
        name="splat_sum",
        schema=f"({_ARGUMENTS}) -> Tensor",
        reference=reference.splat_sum,
        fake=_fake,
        native=_native,
        supports=_supports,
        setup_context=_save,
        backward=_backward,
        autocast="float32",
    )
)

splat_sum_backward = define(
    OpSpec(
        name="splat_sum_backward",
        schema=f"(Tensor grad_image, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        reference=reference.splat_sum_backward,
        fake=_fake_backward,
        native=_native_backward,
        supports=_supports_backward,
        autocast="float32",
    )
)
