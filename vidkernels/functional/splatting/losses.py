"""Losses that shape the motion, depth and labels of a Gaussian video."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vidkernels import _check
from vidkernels.functional.splatting.frame_loss import frame_loss

__all__ = [
    "arap_loss",
    "knn_graph",
    "label_loss",
    "photometric_loss",
    "rendered_flow_loss",
    "scale_shift_invariant_loss",
]

_HALF_WINDOW = 5
# Distances of one block of `knn_graph`: 64 MB in float32.
_BLOCK = 1 << 24


def photometric_loss(image: Tensor, frame: Tensor, *, dssim: float = 0.2, backend: str | None = None) -> Tensor:
    """How a picture differs from a frame: absolute and structural difference, weighted.

    L = (1 - dssim) * mean|image - frame / 255| + dssim * (1 - mean SSIM) / 2
    Convention: SSIM with a Gaussian window of 11 pixels and deviation 1.5, C1 = 0.01^2, C2 = 0.03^2, per channel; the
        window's part beyond the border counts as 0 in both.
    Args:
        image: [H, W, C], floating point, 0..1.
        frame: [H, W, C] uint8.
        dssim: weight of the structural part.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        loss: scalar, float32 (float64 for float64 images). Differentiable in `image`, once.
    Raises:
        ValueError: shapes that do not fit, an empty frame, or one that is not uint8.
    Backends: reference, cpu, cuda (sm80+): those of `frame_loss`. Deterministic: forward yes, backward yes.
    Source: Kerbl et al. 2023, arXiv 2308.04079, equation 7; SSIM of Wang et al. 2004.
    Example:
        >>> photometric_loss(torch.zeros(4, 4, 3), torch.zeros(4, 4, 3, dtype=torch.uint8))
        tensor(0.)
    """
    if image.shape != frame.shape or image.dim() != 3 or frame.dtype is not torch.uint8 or 0 in image.shape:
        _check.fail(
            "photometric_loss", "expected `image` and uint8 `frame` of shape [H, W, C].", image=image, frame=frame
        )
    if not dssim:
        return frame_loss(image, frame, l1=1.0, ssim=0.0, backend=backend)
    # frame_loss takes the windows that lie inside: within a border of half a window of black those are all of these.
    # It is black in both, so that the mean of |image - frame| is only thinned out, by as much as the area has grown.
    border = (0, 0, _HALF_WINDOW, _HALF_WINDOW, _HALF_WINDOW, _HALF_WINDOW)
    image, frame, count = F.pad(image, border), F.pad(frame, border), image.numel()
    return frame_loss(image, frame, l1=(1 - dssim) * image.numel() / count, ssim=dssim / 2, backend=backend)


def rendered_flow_loss(flow: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean absolute difference between a rendered optical flow and a prior, over the pixels where the prior holds.

    L = mean over valid pixels and both axes of |flow - target|
    Convention: (x, y), the unit of both fields is the caller's.
    Args:
        flow: [..., 2, H, W], floating point. Rendered displacement.
        target: the shape of `flow`.
        valid: [..., H, W] bool or None: True where the target is to be trusted.
    Returns:
        loss: scalar, 0 where no pixel is valid. Differentiable in `flow`.
    Raises:
        ValueError: shapes that do not fit.
    Backends: reference (plain torch). Deterministic: yes.
    Source: Sun et al. 2024, arXiv 2406.13870, flow loss.
    Example:
        >>> rendered_flow_loss(torch.ones(2, 1, 2), torch.zeros(2, 1, 2), torch.tensor([[True, False]]))
        tensor(1.)
    """
    if flow.shape != target.shape or flow.dim() < 3 or flow.shape[-3] != 2:
        _check.fail(
            "rendered_flow_loss", "expected `flow` and `target` of shape [..., 2, H, W].", flow=flow, target=target
        )
    return _masked_mean((flow - target).abs().mean(-3), valid, "rendered_flow_loss")


def scale_shift_invariant_loss(depth: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Compare two depth maps up to scale and shift.

    n(d) = (d - median(d)) / mean|d - median(d)|;  L = mean over valid pixels of |n(depth) - n(target)|
    Convention: the larger, the farther, in both (or the smaller in both).
    Args:
        depth: [H, W], floating point.
        target: [H, W], the same.
        valid: [H, W] bool or None: pixels that count, in the medians as well.
    Returns:
        loss: scalar, 0 if no pixel is valid. Differentiable in `depth`.
    Raises:
        ValueError: shapes that do not fit.
    Backends: reference (plain torch). Deterministic: yes.
    Source: Ranftl et al. 2020, arXiv 1907.01341, equations 5 to 7; used by Sun et al. 2024, arXiv 2406.13870.
    Example:
        >>> depth = torch.tensor([[1.0, 2.0, 4.0]])
        >>> scale_shift_invariant_loss(3 * depth + 7, depth)
        tensor(0.)
    """
    if depth.shape != target.shape or depth.dim() != 2:
        _check.fail(
            "scale_shift_invariant_loss", "expected `depth` and `target` of shape [H, W].", depth=depth, target=target
        )
    if valid is not None:
        _fits("scale_shift_invariant_loss", depth, valid)
        depth, target = depth[valid], target[valid]
    if depth.numel() == 0:
        return depth.sum()
    return (_standardised(depth) - _standardised(target)).abs().mean()


def _standardised(depth: Tensor) -> Tensor:
    centred = depth - depth.median()
    # A flat map has no scale; it stays 0 instead of dividing by 0.
    return centred / centred.abs().mean().clamp(min=torch.finfo(depth.dtype).tiny)


def knn_graph(points: Tensor, k: int) -> Tensor:
    """The k nearest other points of every point, by Euclidean distance, nearest first.

    Args:
        points: [N, D], floating point.
        k: neighbours of each, fewer than N.
    Returns:
        index: [N, k] int64. Not differentiable.
    Raises:
        ValueError: `points` is not a matrix, or k is not in [1, N - 1].
    Backends: reference (plain torch, in blocks of rows: time N^2 D, memory O(N)). Deterministic: yes.
    Source: brute force.
    Example:
        >>> knn_graph(torch.tensor([[0.0], [1.0], [5.0]]), 1).flatten().tolist()
        [1, 0, 1]
    """
    _check.is_tensor("knn_graph", "points", points, "[N, D]")
    count = points.shape[0]
    if not 1 <= k < count:
        _check.fail("knn_graph", "expected `k` of 1 up to N - 1.", points=points, k=k)
    points = points.detach()
    rows = max(1, _BLOCK // count)
    found = []
    for start in range(0, count, rows):
        block = points[start : start + rows]
        distance = torch.cdist(block, points)
        own = torch.arange(len(block), device=points.device)
        distance[own, own + start] = torch.inf
        found.append(distance.topk(k, largest=False).indices)
    return torch.cat(found)


def arap_loss(source: Tensor, target: Tensor, neighbours: Tensor, rows: Tensor | None = None) -> Tensor:
    """As rigid as possible: how far each neighbourhood is from having moved as one rigid body.

    R_i = argmin over rotations of sum_j |R (source_j - source_i) - (target_j - target_i)|^2, j among i's neighbours
    L   = mean over i and j of that square at R_i
    Args:
        source: [N, 3], positions at one time, floating point.
        target: [N, 3], the same points at another time.
        neighbours: [M, K] int64: row m lists the neighbours of point rows[m].
        rows: [M] int64, the points to look at, or None: all, M = N.
    Returns:
        loss: scalar. Differentiable in `source` and `target`.
    Raises:
        ValueError: shapes that do not fit.
    Backends: reference (plain torch). Deterministic: yes.
    Source: Sorkine and Alexa 2007, "As-rigid-as-possible surface modeling", equation 1, on k nearest neighbours as in
        Sun et al. 2024, arXiv 2406.13870; differs: unit weights.
    Example:
        >>> points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
        >>> turned = points @ torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]) + 5
        >>> bool(arap_loss(points, turned, torch.tensor([[1, 2], [0, 2], [0, 1]])) < 1e-10)
        True
    """
    if source.shape != target.shape or source.dim() != 2 or source.shape[1] != 3:
        _check.fail("arap_loss", "expected `source` and `target` of shape [N, 3].", source=source, target=target)
    if neighbours.dim() != 2 or len(neighbours) != len(source if rows is None else rows):
        _check.fail(
            "arap_loss", "expected one row of `neighbours` [M, K] for each point.", source=source,
            neighbours=neighbours, rows=rows,
        )  # fmt: skip
    before = source[neighbours] - (source if rows is None else source[rows]).unsqueeze(1)
    after = target[neighbours] - (target if rows is None else target[rows]).unsqueeze(1)
    with torch.no_grad():
        # R_i minimises the very sum that is returned, so its own derivative adds nothing to the gradient.
        u, _, vh = torch.linalg.svd(after.transpose(1, 2) @ before)
        mirrored = torch.linalg.det(u @ vh) < 0
        u[:, :, 2] = torch.where(mirrored[:, None], -u[:, :, 2], u[:, :, 2])
        rotation = u @ vh
    return (before @ rotation.transpose(1, 2) - after).square().sum(-1).mean()


def label_loss(probabilities: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of pixel labels under composited class probabilities.

    L = mean over valid pixels of -log p[label]
    Args:
        probabilities: [H, W, L], floating point, each pixel's sum at most 1.
        labels: [H, W] int64, values in [0, L).
        valid: [H, W] bool or None: pixels that count.
    Returns:
        loss: scalar. Differentiable in `probabilities` (probabilities below 1e-4 are clamped and get no gradient).
    Raises:
        ValueError: shapes that do not fit.
    Backends: reference (plain torch). Deterministic: yes.
    Source: Sun et al. 2024, arXiv 2406.13870, label loss; differs: log-likelihood of composited softmax labels.
    Example:
        >>> label_loss(torch.tensor([[[0.5, 0.5]]]), torch.tensor([[1]]))
        tensor(0.6931)
    """
    if probabilities.dim() != 3 or labels.shape != probabilities.shape[:2]:
        _check.fail(
            "label_loss",
            "expected `probabilities` of shape [H, W, L] and `labels` of shape [H, W].",
            probabilities=probabilities,
            labels=labels,
        )
    picked = probabilities.gather(2, labels.unsqueeze(2)).squeeze(2)
    return _masked_mean(-picked.clamp(min=1e-4).log(), valid, "label_loss")


def _masked_mean(values: Tensor, valid: Tensor | None, name: str) -> Tensor:
    if valid is None:
        return values.mean()
    _fits(name, values, valid)
    return torch.where(valid, values, 0).sum() / valid.sum().clamp(min=1)


def _fits(name: str, values: Tensor, valid: Tensor) -> None:
    if valid.shape != values.shape or valid.dtype is not torch.bool:
        _check.fail(name, f"expected `valid` of shape {list(values.shape)} and dtype bool.", valid=valid)
