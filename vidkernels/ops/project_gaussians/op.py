"""project_gaussians: 3D Gaussians to 2D ones in every camera, and back to every parameter and camera."""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.project_gaussians import reference

_WIDTHS = (2, 3, 0, 2, 0)  # trailing axis of means2d, conics, depths, extents, compensations; 0: none


def _output_shapes(means, viewmats):
    lead = (means.shape[0], viewmats.shape[1], means.shape[1])
    return [(*lead, w) if w else lead for w in _WIDTHS]


def _fake(means, shapes, scales, viewmats, *rest):
    return tuple(means.new_empty(s) for s in _output_shapes(means, viewmats))


def _native(
    kernel, means, shapes, scales, viewmats, Ks, width, height, eps2d, near_plane, far_plane, radius_clip, camera_model
):
    out = tuple(empty(s, means.dtype, means.device) for s in _output_shapes(means, viewmats))
    kernel(
        means.contiguous(), shapes.contiguous(), None if scales is None else scales.contiguous(),
        viewmats.contiguous(), Ks.contiguous(), *out, width, height, eps2d, near_plane, far_plane, radius_clip,
        camera_model == "ortho",
    )  # fmt: skip
    return out


def _save(ctx, inputs, output):
    means, shapes, scales, viewmats, Ks, width, height, eps2d, _, _, _, camera_model = inputs[:12]
    ctx.save_for_backward(means, shapes, scales, viewmats, Ks, output[3])
    ctx.vk_rest = width, height, eps2d, camera_model


def _backward(ctx, *grads):
    cameras = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
    grads = project_gaussians_backward(*grads, *ctx.saved_tensors, *ctx.vk_rest, cameras, backend=ctx.vk_backend)
    means, shapes, scales, viewmats, Ks = grads
    if ctx.saved_tensors[2] is None:
        scales = None
    if not cameras:
        viewmats = Ks = None
    return means, shapes, scales, viewmats, Ks, *(None,) * 7


def _fake_backward(gm, gc, gd, ge, gk, means, shapes, scales, viewmats, Ks, *rest):
    like = [means, shapes, scales, viewmats, Ks]
    return tuple(means.new_empty((0,) if a is None else a.shape) for a in like)


def _native_backward(kernel, gm, gc, gd, ge, gk, means, shapes, scales, viewmats, Ks, extents, width, height, eps2d,
                     camera_model, cameras):  # fmt: skip
    like = (means, shapes, scales)
    out = [empty((0,) if a is None else a.shape, means.dtype, means.device) for a in like]
    out += [torch.zeros(a.shape, dtype=means.dtype, device=means.device) for a in (viewmats, Ks)]
    batch, count, views = means.shape[0], means.shape[1], viewmats.shape[1]
    blocks = -(-count // 256) if cameras else 0
    partial = empty((batch, blocks, views, 16), torch.float64, means.device)
    kernel(
        *(g.contiguous() for g in (gm, gc, gd, ge, gk)), means.contiguous(), shapes.contiguous(),
        None if scales is None else scales.contiguous(), viewmats.contiguous(), Ks.contiguous(), extents.contiguous(),
        *out, partial, width, height, eps2d, camera_model == "ortho",
    )  # fmt: skip
    return tuple(out)


project_gaussians = define(
    OpSpec(
        name="project_gaussians",
        schema="(Tensor means, Tensor shapes, Tensor? scales, Tensor viewmats, Tensor Ks, int width, int height, "
        "float eps2d, float near_plane, float far_plane, float radius_clip, str camera_model) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        reference=reference.project_gaussians,
        fake=_fake,
        native=_native,
        setup_context=_save,
        backward=_backward,
        autocast="float32",
        batched=("means", "shapes", "scales", "viewmats", "Ks"),
    )
)

project_gaussians_backward = define(
    OpSpec(
        name="project_gaussians_backward",
        schema="(Tensor grad_means2d, Tensor grad_conics, Tensor grad_depths, Tensor grad_extents, "
        "Tensor grad_compensations, Tensor means, Tensor shapes, Tensor? scales, Tensor viewmats, Tensor Ks, "
        "Tensor extents, int width, int height, float eps2d, str camera_model, bool cameras) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        reference=reference.project_gaussians_backward,
        fake=_fake_backward,
        native=_native_backward,
        autocast="float32",
    )
)
