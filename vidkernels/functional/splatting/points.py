"""Point sets: from depth maps, thinned out, and looked up by distance."""

from __future__ import annotations

import torch

from vidkernels import _check
from vidkernels.functional.splatting.volume import pixel_rays

__all__ = ["farthest_points", "nearest_points", "unproject_depth"]


def unproject_depth(depth: torch.Tensor, k: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
    """World coordinates of the surface that each pixel of a depth map shows.

    Convention: depth is z in the camera (not the length of the ray); as `pixel_rays` otherwise.
    Args:
        depth: [H, W].
        k: [3, 3], intrinsics in pixels.
        pose: [4, 4], world coordinates from camera coordinates.
    Returns:
        points: [H, W, 3]. Differentiable.
    Raises:
        ValueError: shapes that do not fit.
    Backends: reference (plain torch). Deterministic: yes.
    Source: the pinhole camera.
    Example:
        >>> k = torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        >>> unproject_depth(torch.tensor([[3.0, 3.0]]), k, torch.eye(4)).tolist()
        [[[0.0, 0.0, 3.0], [3.0, 0.0, 3.0]]]
    """
    _check.is_tensor("unproject_depth", "depth", depth, "[H, W]")
    origins, directions = pixel_rays(k, pose, tuple(depth.shape))
    return origins + depth[..., None] * directions


def farthest_points(points: torch.Tensor, count: int, start: int = 0) -> torch.Tensor:
    """Farthest point sampling: each next point is the one farthest from those chosen.

    Args:
        points: [N, D].
        count: number of points, at most N.
        start: index of the first one.
    Returns:
        index: [count] int64, in the order of choice; of equally far points the first. Not differentiable.
    Raises:
        ValueError: more points wanted than there are.
    Backends: reference (plain torch). Deterministic: yes.
    Source: Gonzalez 1985, "Clustering to minimize the maximum intercluster distance"; Qi et al. 2017, arXiv 1706.02413.
    Example:
        >>> farthest_points(torch.tensor([[0.0], [1.0], [9.0], [5.0]]), 3).tolist()
        [0, 2, 3]
    """
    _check.is_tensor("farthest_points", "points", points, "[N, D]")
    if not 0 <= count <= points.shape[0]:
        _check.fail("farthest_points", "expected `count` between 0 and the number of points.",
                    points=points, count=count)  # fmt: skip
    points = points.detach()
    index = torch.zeros(count, dtype=torch.int64, device=points.device)
    away = points.new_full((points.shape[0],), float("inf"))
    at = torch.as_tensor(start, device=points.device)
    for i in range(count):
        index[i] = at
        away = torch.minimum(away, (points - points[at]).square().sum(1))
        at = away.argmax()
    return index


def nearest_points(
    queries: torch.Tensor, points: torch.Tensor, k: int, *, chunk: int = 1 << 22
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest points of each query.

    Args:
        queries: [Q, D].
        points: [N, D], N >= k.
        k: number of neighbours.
        chunk: distances held at a time (plain torch: a matrix of queries x points, in pieces).
    Returns:
        distance: [Q, k], ascending, differentiable in both sets; index: [Q, k] int64.
    Raises:
        ValueError: fewer points than k; shapes that do not fit.
    Backends: reference (plain torch). Deterministic: yes.
    Source: brute force.
    Example:
        >>> nearest_points(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0], [5.0]]), 2)[1].tolist()
        [[1, 0]]
    """
    if queries.dim() != 2 or points.dim() != 2 or queries.shape[1] != points.shape[1] or points.shape[0] < k:
        _check.fail("nearest_points", "expected `queries` [Q, D] and at least k `points` [N, D].",
                    queries=queries, points=points, k=k)  # fmt: skip
    rows = max(1, chunk // max(1, points.shape[0]))
    fixed, lookup = points.detach(), queries.detach()
    parts = []
    for part in lookup.split(rows):
        # The matrix product form of cdist cancels between near points far from the origin.
        away = torch.cdist(part, fixed, compute_mode="donot_use_mm_for_euclid_dist")
        parts.append(away.argmin(1, keepdim=True) if k == 1 else away.topk(k, largest=False).indices)
    index = torch.cat(parts) if parts else torch.zeros(0, k, dtype=torch.int64, device=queries.device)
    offset = queries[:, None] - points[index]
    # The gradient of a distance of zero is zero, not NaN.
    squared = offset.square().sum(2)
    return squared.clamp(min=1e-24).sqrt() * (squared > 0), index
