"""Multiplane images: fronto-parallel layers that a homography each carries into another view."""

from __future__ import annotations

import torch
from torch.nn.functional import grid_sample

from vidkernels import _check
from vidkernels.functional.splatting.composite import composite

__all__ = ["mpi_homographies", "render_mpi", "warp_planes"]


def mpi_homographies(
    disparities: torch.Tensor, k_source: torch.Tensor, k_target: torch.Tensor, pose: torch.Tensor
) -> torch.Tensor:
    """Where a pixel of the target view meets each plane of the source view.

    Plane d is z = 1 / disparity_d of the source camera; H = (K_t (R + t n^T disparity) K_s^-1)^-1, n = (0, 0, 1).
    Convention: x right, y down, z forward; pixel (i, j) has its centre at (i + 0.5, j + 0.5); `pose` takes source
        camera coordinates to target camera coordinates.
    Args:
        disparities: [D] or [B, D], 1 / depth; 0 is a plane at infinity.
        k_source, k_target: [3, 3] or [B, 3, 3], intrinsics in pixels.
        pose: [4, 4] or [B, 4, 4].
    Returns:
        homographies: [B, D, 3, 3], target pixel (x, y, 1) -> source pixel, in homogeneous coordinates. Differentiable.
    Raises:
        ValueError: shapes that do not fit.
    Backends: reference (plain torch). Deterministic: yes.
    Source: Zhou et al. 2018, arXiv 1805.09817, section 3.1.
    Example:
        >>> eye = torch.eye(3)
        >>> shift = torch.eye(4)
        >>> shift[0, 3] = 1.0  # the scene moves right as seen by the target camera
        >>> mpi_homographies(torch.tensor([0.5]), eye, eye, shift)[0, 0, 0].tolist()
        [1.0, 0.0, -0.5]
    """
    if pose.shape[-2:] != (4, 4) or k_source.shape[-2:] != (3, 3) or k_target.shape[-2:] != (3, 3):
        _check.fail("mpi_homographies", "expected `pose` of shape [B, 4, 4] and intrinsics of shape [B, 3, 3].",
                    k_source=k_source, k_target=k_target, pose=pose)  # fmt: skip
    pose, k_source, k_target = (m if m.dim() == 3 else m[None] for m in (pose, k_source, k_target))
    disparities = disparities if disparities.dim() == 2 else disparities[None]
    batch = max(m.shape[0] for m in (pose, k_source, k_target, disparities))
    along = pose[:, None, :3, 3] * disparities[..., None]  # [B, D, 3]
    moved = pose[:, None, :3, :3] + torch.nn.functional.pad(along[..., None], (2, 0))
    to_target = k_target[:, None] @ moved @ torch.linalg.inv(k_source)[:, None]
    return torch.linalg.inv(to_target).expand(batch, -1, 3, 3)


def warp_planes(planes: torch.Tensor, homographies: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Resample each layer at the pixels of the target view.

    Convention: as `mpi_homographies`; bilinear; alpha, the last channel, is 0 outside the layer and behind the camera.
    Args:
        planes: [B, D, H, W, C], the last channel is alpha.
        homographies: [B, D, 3, 3], target pixel -> source pixel.
        size: (height, width) of the target; None: as the planes.
    Returns:
        warped: [B, D, H', W', C]. Differentiable in `planes` and `homographies`.
    Raises:
        ValueError: shapes that do not fit.
    Backends: reference (plain torch). Deterministic: yes.
    Source: Zhou et al. 2018, arXiv 1805.09817, section 3.1.
    Example:
        >>> planes = torch.rand(1, 2, 4, 6, 4)
        >>> same = warp_planes(planes, torch.eye(3).expand(1, 2, 3, 3))
        >>> torch.allclose(same, planes, atol=1e-6)
        True
    """
    _check.is_tensor("warp_planes", "planes", planes, "[B, D, H, W, C]")
    batch, count, height, width, channels = planes.shape
    if homographies.shape != (batch, count, 3, 3):
        _check.fail("warp_planes", f"expected `homographies` of shape [{batch}, {count}, 3, 3].",
                    planes=planes, homographies=homographies)  # fmt: skip
    rows, columns = size or (height, width)
    x = torch.arange(columns, device=planes.device, dtype=planes.dtype) + 0.5
    y = torch.arange(rows, device=planes.device, dtype=planes.dtype) + 0.5
    y, x = torch.meshgrid(y, x, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], -1).view(-1, 3)
    hit = pixels @ homographies.to(planes.dtype).mT  # [B, D, P, 3]
    # H is the inverse of a matrix whose last row gives (depth in the target) / (depth in the source), so hit_z > 0
    # says that the plane is in front of the target camera.
    ahead = hit[..., 2] > 1e-6
    at = hit[..., :2] / hit[..., 2:].where(ahead[..., None], torch.ones_like(hit[..., 2:]))
    extent = at.new_tensor([width, height])
    inside = ahead & ((at >= 0) & (at <= extent)).all(-1)
    grid = (2 * at / extent - 1).view(batch * count, rows, columns, 2)
    source = planes.reshape(batch * count, height, width, channels).permute(0, 3, 1, 2)
    # Colours continue beyond the border, so that the last half pixel is not darkened; alpha is cut instead.
    warped = grid_sample(source, grid, padding_mode="border", align_corners=False)
    warped = warped.permute(0, 2, 3, 1).view(batch, count, rows, columns, channels)
    mask = torch.ones_like(warped[..., :1]).expand(-1, -1, -1, -1, channels - 1)
    return warped * torch.cat([mask, inside.view(batch, count, rows, columns, 1).to(warped.dtype)], -1)


def render_mpi(
    planes: torch.Tensor,
    disparities: torch.Tensor,
    k_source: torch.Tensor,
    k_target: torch.Tensor,
    pose: torch.Tensor,
    size: tuple[int, int] | None = None,
    background: torch.Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Render a multiplane image in another view: one homography per plane, then "over".

    Convention: as `mpi_homographies`; planes from near to far, so disparities descend (not checked: looking would
        stall a stream).
    Args:
        planes: [B, D, H, W, C + 1], colours then alpha in [0, 1].
        disparities: [D] or [B, D], 1 / depth in the source camera.
        k_source, k_target: [3, 3] or [B, 3, 3], intrinsics in pixels.
        pose: [4, 4] or [B, 4, 4], target camera coordinates from source camera coordinates.
        size: (height, width) of the target; None: as the planes.
        background: [C], seen through what is left.
        backend: of `composite`; None chooses.
    Returns:
        image: [B, H', W', C], weights: [B, H', W', D], transmittance: [B, H', W']. Differentiable in everything.
    Raises:
        ValueError: shapes that do not fit.
    Backends: those of `composite`; the warp is torch's grid_sample.
    Source: Zhou et al. 2018, arXiv 1805.09817, section 3.1.
    Example:
        >>> planes, eye = torch.rand(1, 3, 4, 6, 4), torch.eye(3)
        >>> image, weights, left = render_mpi(planes, torch.tensor([1.0, 0.5, 0.1]), eye, eye, torch.eye(4))
        >>> image.shape, weights.shape
        (torch.Size([1, 4, 6, 3]), torch.Size([1, 4, 6, 3]))
    """
    _check.is_tensor("render_mpi", "planes", planes, "[B, D, H, W, C]")
    homographies = mpi_homographies(disparities, k_source, k_target, pose)
    homographies = homographies.expand(planes.shape[0], -1, 3, 3)
    warped = warp_planes(planes, homographies, size).permute(0, 2, 3, 1, 4)
    return composite(warped[..., :-1], warped[..., -1], background, backend=backend)
