"""gsplat's function names over vidkernels: `from vidkernels.integrations import gsplat`.

    rasterization             the whole renderer; see `vidkernels.functional.rasterization`
    fully_fused_projection    gsplat's order of arguments and results over `project_gaussians`
    spherical_harmonics, isect_tiles, isect_offset_encode

What differs is written at each function. Nothing of gsplat is imported or needed; CPU tensors work.
"""

from __future__ import annotations

import torch

from vidkernels import _check
from vidkernels.functional.splatting.harmonics import spherical_harmonics
from vidkernels.functional.splatting.project import project_gaussians
from vidkernels.functional.splatting.rasterization import rasterization
from vidkernels.functional.splatting.tiles import isect_offset_encode, isect_tiles

__all__ = ["fully_fused_projection", "isect_offset_encode", "isect_tiles", "rasterization", "spherical_harmonics"]


def fully_fused_projection(
    means: torch.Tensor,
    covars: torch.Tensor | None,
    quats: torch.Tensor | None,
    scales: torch.Tensor | None,
    viewmats: torch.Tensor,
    Ks: torch.Tensor,
    width: int,
    height: int,
    eps2d: float = 0.3,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    packed: bool = False,
    sparse_grad: bool = False,
    calc_compensations: bool = False,
    camera_model: str = "pinhole",
    opacities: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`project_gaussians` with gsplat's order of arguments and results.

    Convention: see `project_gaussians`.
    Args:
        means: [..., N, 3]. covars: [..., N, 6] or None. quats: [..., N, 4]. scales: [..., N, 3].
        viewmats: [..., C, 4, 4]. Ks: [..., C, 3, 3]. width, height: of the images.
        eps2d, near_plane, far_plane, radius_clip, camera_model: see `project_gaussians`.
        packed, sparse_grad: refused if set.
        calc_compensations: return compensations instead of None.
        opacities: taken and without effect; gsplat narrows radii with them.
    Returns:
        radii, means2d, depths, conics, compensations: [..., C, N, ...]. Differentiable as `project_gaussians`.
    Raises:
        NotImplementedError: packed or sparse_grad. ValueError: shapes that do not fit.
    Backends: as `project_gaussians`.
    Source: Ye et al. 2024, arXiv 2409.06765; differs: what a camera cannot see is 0 instead of undefined.
    Example:
        >>> K = torch.tensor([[[100.0, 0, 32], [0, 100, 24], [0, 0, 1]]])
        >>> radii, means2d, depths, conics, _ = fully_fused_projection(
        ...     torch.tensor([[0.0, 0, 2]]), None, torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.1),
        ...     torch.eye(4)[None], K, 64, 48)
        >>> radii.tolist(), depths.tolist()
        ([[[17, 17]]], [[2.0]])
    """
    if packed or sparse_grad:
        _check.fail("fully_fused_projection", "packed results and sparse gradients are not supported.",
                    "packed=False gives all C x N pairs; those with radii of 0 are not seen.",
                    error=NotImplementedError)  # fmt: skip
    if covars is not None:
        quats = scales = None
    seen = project_gaussians(
        means, quats, scales, viewmats, Ks, width, height, covars=covars, eps2d=eps2d, near_plane=near_plane,
        far_plane=far_plane, radius_clip=radius_clip, camera_model=camera_model,
    )  # fmt: skip
    return seen.radii, seen.means2d, seen.depths, seen.conics, seen.compensations if calc_compensations else None
