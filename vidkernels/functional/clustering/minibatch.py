"""Mini-batch k-means: centres follow small batches, for more points than a pass should touch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vidkernels import _check
from vidkernels.functional.clustering._collective import all_reduce, ordered_sum
from vidkernels.functional.clustering._points import as_points, random_rows
from vidkernels.functional.clustering.kmeans import KMeansResult, assign, fill_empty, starting_centres
from vidkernels.ops.cluster_sums.op import cluster_sums

__all__ = ["minibatch_kmeans"]


@torch.no_grad()
def minibatch_kmeans(
    x: Tensor,
    k: int,
    *,
    iterations: int,
    batch_size: int = 10_000,
    init: str | Tensor = "k-means++",
    metric: str = "l2",
    generator: torch.Generator | None = None,
    backend: str | None = None,
) -> KMeansResult:
    """Cluster points by k-means on small random batches.

    repeat: index = nearest centres of a batch;  counts += points of each;  centre += (sum - n * centre) / counts
    Convention: batches go through the points in random order, again and again; seeds are drawn from the first batch,
        which has at least 3 k points. So a centre is the mean of all points it ever got. A centre that never got any
        moves to the worst-served point of the batch, as in `kmeans`.
    Args:
        x: [N, D], float16/bfloat16/float32/float64. Half precision is clustered in float32.
        k: number of centres, at most N.
        iterations: number of batches.
        batch_size: points of a batch.
        init: "k-means++", "random", or the centres themselves, [k, D].
        metric: "l2" or "cosine", as in `kmeans`.
        generator: source of the order of points and of the seeds.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        KMeansResult(centres, index, inertia, counts), the last three from one pass over all points at the end. Not
        differentiable.
    Raises:
        ValueError: as `kmeans`; a batch size below 1.
    Backends: reference, cpu, cuda (sm80+). Deterministic: yes, for any number of threads.
    Source: Sculley 2010, algorithm 1; differs: the points of a batch move a centre together, not one after the other.
    Example:
        >>> x = torch.tensor([[0.0], [1.0], [8.0], [9.0]])
        >>> minibatch_kmeans(x, 2, iterations=3, init=x[1:3]).centres
        tensor([[0.5000],
                [8.5000]])
    """
    name = "minibatch_kmeans"
    points = as_points(name, x, metric)
    if iterations < 0 or batch_size < 1:
        _check.fail(name, "expected `iterations` of at least 0 and `batch_size` of at least 1.",
                    iterations=iterations, batch_size=batch_size)  # fmt: skip
    length = points.shape[0]
    batch = points if length <= batch_size else points[_rows(length, max(batch_size, 3 * k), generator, points.device)]
    centres = starting_centres(name, batch if length >= k else points, k, init, metric, generator, None, backend)
    counts = centres.new_zeros(k)
    at, order = length, None
    for _ in range(iterations):
        centres, counts, _ = minibatch_step(batch, centres, counts, metric, backend=backend)
        if length > batch_size:
            if at + batch_size > length:
                at, order = 0, random_rows(length, length, generator, points.device)
            batch = points[order[at : at + batch_size]]
            at += batch_size
    index, cost = assign(points, centres, metric, backend)
    return KMeansResult(centres, index, ordered_sum(cost), torch.bincount(index, minlength=k))


def minibatch_step(
    batch: Tensor, centres: Tensor, counts: Tensor, metric: str, group=None, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Centres and counts after one more batch, and the index of its points among the old centres."""
    index, cost = assign(batch, centres, metric, backend)
    sums, new = cluster_sums(batch, index, len(centres), backend=backend)
    all_reduce(sums, new, group=group)
    # For `fill_empty` a centre with a past has points, though none of them is here.
    past = ((counts > 0) & (new == 0)).to(new)
    new += past
    fill_empty(batch, index, cost, sums, new, group, backend)
    new -= past
    counts = counts + new
    moved = centres + (sums - new[:, None] * centres) / counts.clamp(min=1)[:, None]
    if metric == "cosine":
        moved = F.normalize(moved, dim=1)
        moved = torch.where(moved.square().sum(1, keepdim=True) > 0, moved, centres)
    return moved, counts, index


def _rows(length: int, count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    return random_rows(length, min(length, count), generator, device)
