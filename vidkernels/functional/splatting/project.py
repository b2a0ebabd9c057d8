"""3D Gaussians seen by cameras."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from vidkernels import _check
from vidkernels.ops.project_gaussians.op import project_gaussians as _project

__all__ = ["project_gaussians"]

_NAME = "project_gaussians"
_UPPER = (0, 1, 2, 4, 5, 8)  # of a flattened 3x3 matrix


class ProjectedGaussians(NamedTuple):
    """What `project_gaussians` returns: all zeros for a Gaussian that a camera cannot see."""

    means2d: torch.Tensor
    conics: torch.Tensor
    depths: torch.Tensor
    radii: torch.Tensor
    compensations: torch.Tensor


def _need(name: str, value: torch.Tensor | None, axes: str, *trailing: int) -> None:
    if not isinstance(value, torch.Tensor):
        _check.fail(_NAME, f"expected `{name}` to be a torch.Tensor {axes}, got {type(value).__name__}.",
                    error=TypeError)  # fmt: skip
    if value.dim() < len(trailing) + 1 or value.shape[-len(trailing) :] != trailing or not value.is_floating_point():
        _check.fail(_NAME, f"expected `{name}` of shape {axes}, floating point, got {list(value.shape)}.",
                    **{name: value})  # fmt: skip


def project_gaussians(
    means: torch.Tensor,
    quats: torch.Tensor | None,
    scales: torch.Tensor | None,
    viewmats: torch.Tensor,
    Ks: torch.Tensor,
    width: int,
    height: int,
    *,
    covars: torch.Tensor | None = None,
    eps2d: float = 0.3,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    camera_model: str = "pinhole",
    backend: str | None = None,
) -> ProjectedGaussians:
    """Project 3D Gaussians to 2D ones in every camera (EWA splatting).

    p = R mean + t;  mean2d = focal * p.xy / p.z + centre (ortho: without the division);
    conic = (J R Sigma R^T J^T + eps2d I)^-1 with the Jacobian J at p. Beyond the image's border by more than 15 % of
    its size J is that of a point there: the linear approximation grows without bound outside.
    Convention: a camera looks along +z, x to the right, y down; viewmats take world to camera; the upper left corner
    of the image is (0, 0) and the centre of its first pixel (0.5, 0.5). A conic is (a, b, c) of the inverse
    covariance: sigma = (a dx^2 + c dy^2) / 2 + b dx dy.
    Args:
        means: [..., N, 3], float32/float64 (halves are computed in float32).
        quats: [..., N, 4], rotations (w, x, y, z) of any length; None with `covars`.
        scales: [..., N, 3], standard deviations; None with `covars`.
        viewmats: [..., C, 4, 4]; the upper 3x4 is read, and need not be a rotation.
        Ks: [..., C, 3, 3], focal lengths and centre in pixels; skew is not read.
        width, height: of the image, in pixels.
        covars: [..., N, 6] as (xx, xy, xz, yy, yz, zz), or [..., N, 3, 3], instead of quats and scales.
        eps2d: variance added to both axes, in square pixels; at least that much blur is in every image.
        near_plane, far_plane: depths in between are seen.
        radius_clip: Gaussians with both radii at most this are left out.
        camera_model: "pinhole" or "ortho".
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        means2d: [..., C, N, 2]. conics: [..., C, N, 3]. depths: [..., C, N], z in the camera.
        radii: [..., C, N, 2], int32, ceil(3.33 standard deviations) per axis; 0 for a Gaussian that is not seen: before
        near_plane, behind far_plane, beside the image, too small, flat (determinant 0), or not finite.
        compensations: [..., C, N], sqrt(det / det after the blur), at least 0.005: an opacity times this keeps the
        energy of a Gaussian that the blur widened.
        All but radii are differentiable in means, quats, scales, covars, viewmats and Ks; Gaussians that are not seen
        are 0 everywhere and get no gradient.
    Raises:
        ValueError: sizes that do not fit, quats and scales together with covars, another camera model.
    Backends: reference, cpu, cuda (sm80+). Deterministic: forward yes, backward yes (fixed order, cameras in float64).
    Source: Zwicker et al. 2001, "EWA volume splatting", section 5; Kerbl et al. 2023, arXiv 2308.04079, section 4;
        compensation: Yu et al. 2023, arXiv 2311.16493; differs: gradients to Ks; an opacity does not narrow the radii.
    Example:
        >>> K = torch.tensor([[[100.0, 0, 32], [0, 100, 24], [0, 0, 1]]])
        >>> seen = project_gaussians(torch.tensor([[0.0, 0, 2]]), torch.tensor([[1.0, 0, 0, 0]]),
        ...                          torch.full((1, 3), 0.1), torch.eye(4)[None], K, 64, 48)
        >>> seen.means2d.tolist(), seen.radii.tolist()
        ([[[32.0, 24.0]]], [[[17, 17]]])
    """
    _need("means", means, "[..., N, 3]", 3)
    if (quats is None) != (scales is None) or (quats is None) == (covars is None):
        _check.fail(_NAME, "expected either quats and scales, or covars.", means=means, quats=quats, scales=scales,
                    covars=covars)  # fmt: skip
    if covars is None:
        _need("quats", quats, "[..., N, 4]", 4)
        _need("scales", scales, "[..., N, 3]", 3)
        shapes = quats
    else:
        if isinstance(covars, torch.Tensor) and covars.shape[-2:] == (3, 3) and covars.dim() == means.dim() + 1:
            covars = covars.flatten(-2)[..., _UPPER]
        _need("covars", covars, "[..., N, 6] or [..., N, 3, 3]", 6)
        shapes = covars
    _need("viewmats", viewmats, "[..., C, 4, 4]", 4, 4)
    _need("Ks", Ks, "[..., C, 3, 3]", 3, 3)
    lead, count, views = means.shape[:-2], means.shape[-2], viewmats.shape[-3]
    fits = shapes.shape[:-1] == means.shape[:-1] and (scales is None or scales.shape[:-1] == means.shape[:-1])
    if not fits or viewmats.shape[:-3] != lead or Ks.shape[:-2] != (*lead, views):
        _check.fail(_NAME, "expected the same leading axes everywhere, N in `means` and its shapes, C in `viewmats` "
                    "and `Ks`.", hint="viewmats.expand(*means.shape[:-2], -1, -1, -1) shares cameras between batches.",
                    means=means, shapes=shapes, viewmats=viewmats, Ks=Ks)  # fmt: skip
    if camera_model not in ("pinhole", "ortho"):
        _check.fail(_NAME, "expected `camera_model` to be 'pinhole' or 'ortho'.", camera_model=camera_model)
    if width < 1 or height < 1 or eps2d < 0:
        _check.fail(_NAME, "expected a `width` and `height` of at least 1 and `eps2d` of at least 0.", width=width,
                    height=height, eps2d=eps2d)  # fmt: skip
    tensors = [t for t in (means, shapes, scales, viewmats, Ks) if t is not None]
    wide = torch.float64 if any(t.dtype is torch.float64 for t in tensors) else torch.float32
    batch = math.prod(lead)
    flat = [
        None if t is None else t.to(wide).reshape(batch, *t.shape[len(lead) :])
        for t in (means, shapes, scales, viewmats, Ks)
    ]
    means2d, conics, depths, extents, compensations = _project(
        *flat, width, height, eps2d, near_plane, far_plane, radius_clip, camera_model, backend=backend
    )
    radii = extents.detach().ceil().clamp(max=2**30).int()
    outputs = (means2d, conics, depths, radii, compensations)
    return ProjectedGaussians(*(o.reshape(*lead, views, count, *o.shape[3:]) for o in outputs))
