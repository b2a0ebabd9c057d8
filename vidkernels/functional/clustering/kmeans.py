"""k-means: Lloyd's iteration on the nearest-code and cluster-sum kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vidkernels import _check
from vidkernels.functional.clustering._collective import all_reduce, broadcast, gather_rows, ordered_sum
from vidkernels.functional.clustering._points import as_points, random_rows
from vidkernels.functional.clustering.nearest import nearest
from vidkernels.functional.clustering.seeding import kmeans_plus_plus
from vidkernels.ops.cluster_sums.op import cluster_sums

__all__ = ["KMeansResult", "kmeans"]

_SEEDING_ROWS = 1 << 16  # points that all processes together show to k-means++


class KMeansResult(NamedTuple):
    """What k-means found.

    Args:
        centres: [k, D], float32 (float64 for float64 points); unit length for metric="cosine".
        index: [N] int64, the nearest centre of each point.
        inertia: scalar float64, the sum of squared distances to it (of 1 - cosine for metric="cosine").
        counts: [k] int64, points of each centre.
    Returns: a tuple of the four.
    Example:
        >>> from vidkernels.functional.clustering.kmeans import kmeans
        >>> kmeans(torch.tensor([[0.0], [2.0], [9.0]]), 2, iterations=5, init=torch.tensor([[0.0], [9.0]])).counts
        tensor([2, 1])
    """

    centres: Tensor
    index: Tensor
    inertia: Tensor
    counts: Tensor


@torch.no_grad()
def kmeans(
    x: Tensor,
    k: int,
    *,
    iterations: int,
    init: str | Tensor = "k-means++",
    metric: str = "l2",
    generator: torch.Generator | None = None,
    tolerance: float | None = None,
    group=None,
    backend: str | None = None,
) -> KMeansResult:
    """Cluster points around k centres by Lloyd's algorithm.

    repeat: index[n] = nearest centre of x[n];  centre[j] = mean of the points with index j
    Convention: ties go to the centre of lowest index. A centre without points moves to the point that is served worst
        (the second empty centre to the second worst, and so on; of equal ones the first; never the last point of
        another centre, never one that lies on its centre), and that point leaves the cluster it was in.
    Args:
        x: [N, D], float16/bfloat16/float32/float64. Half precision is clustered in float32.
        k: number of centres, at most N.
        iterations: at most this many; fewer once no point changes its centre.
        init: "k-means++" (see `kmeans_plus_plus`), "random" (k different points), or the centres themselves, [k, D].
        metric: "l2", or "cosine": points and centres on the unit sphere (a zero point has cosine 0 with every centre).
        generator: source of the random choices.
        tolerance: also stop when the squared moves of all centres add up to no more than this times the mean variance
            of the features (scikit-learn's rule).
        group: a torch.distributed group, each process with its own x and the same other arguments: the result (index
            apart) is that of all points together. The first process seeds from a sample of everybody's points.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        KMeansResult(centres, index, inertia, counts), index and inertia for the returned centres. Not differentiable.
    Raises:
        ValueError: k outside [1, N], an unknown init or metric, centres of a wrong shape, rows that are not finite
            (named).
    Backends: reference, cpu, cuda (sm80+). Deterministic: yes, for any number of threads; with a group up to the
        rounding of its all-reduce.
    Source: Lloyd 1982; Dhillon and Modha 2001 (cosine).
    Example:
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [8.0, 0.0], [8.0, 1.0]])
        >>> kmeans(x, 2, iterations=10, init=x[:2]).centres
        tensor([[4., 0.],
                [4., 1.]])
        >>> kmeans(x, 2, iterations=10, generator=torch.Generator().manual_seed(0)).inertia
        tensor(1., dtype=torch.float64)
    """
    points = as_points("kmeans", x, metric)
    if iterations < 0:
        _check.fail("kmeans", "expected `iterations` of at least 0.", iterations=iterations)
    centres = starting_centres("kmeans", points, k, init, metric, generator, group, backend)
    least_move = None if tolerance is None else tolerance * _mean_variance(points, group, backend)
    previous, settled = None, False
    for _ in range(iterations):
        index, cost = assign(points, centres, metric, backend)
        settled = previous is not None and _agree(index, previous, group)
        if settled:
            break
        sums, counts = cluster_sums(points, index, k, backend=backend)
        all_reduce(sums, counts, group=group)
        moved = fill_empty(points, index, cost, sums, counts, group, backend)
        before, centres = centres, means(sums, counts, centres, metric)
        previous = None if moved else index
        if least_move is not None and ordered_sum((centres - before).square().flatten()) <= least_move:
            break
    if not settled:
        index, cost = assign(points, centres, metric, backend)
    inertia, counts = ordered_sum(cost), torch.bincount(index, minlength=k)
    all_reduce(inertia, group=group)
    all_reduce(counts, group=group)
    return KMeansResult(centres, index, inertia, counts)


def starting_centres(
    name: str,
    points: Tensor,
    k: int,
    init: str | Tensor,
    metric: str,
    generator: torch.Generator | None,
    group=None,
    backend: str | None = None,
) -> Tensor:
    """[k, D] centres to start from; equal in all processes of the group."""
    length = torch.tensor(points.shape[0], device=points.device)
    all_reduce(length, group=group)
    if not 1 <= k <= int(length):
        _check.fail(name, f"expected `k` in [1, N], N = {int(length)}.", k=k, x=points)
    if isinstance(init, Tensor):
        if init.shape != (k, points.shape[1]):
            _check.fail(name, "expected `init` of shape [k, D].", init=init, k=k, x=points)
        if not init.isfinite().all():
            _check.fail(name, "expected finite centres in `init`.", init=init)
        centres = init.detach().to(points, copy=True)
        return F.normalize(centres, dim=1) if metric == "cosine" else centres
    if init not in ("k-means++", "random"):
        _check.fail(name, 'expected `init` "k-means++", "random" or a tensor of centres.', init=init)
    if group is not None:
        share = -(-max(_SEEDING_ROWS, 8 * k) // torch.distributed.get_world_size(group))
        if points.shape[0] > share:
            points = points[random_rows(points.shape[0], share, generator, points.device)]
        points, _ = gather_rows(points, group)
    if init == "random":
        chosen = random_rows(points.shape[0], k, generator, points.device)
    else:
        chosen = kmeans_plus_plus(points, k, generator=generator, backend=backend)
    return broadcast(points[chosen], group)


def assign(points: Tensor, centres: Tensor, metric: str, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Index [N] of each point's centre and the cost [N] of serving it; both on the unit sphere for "cosine"."""
    index, value = nearest(points, centres, metric="ip" if metric == "cosine" else "l2", backend=backend)
    index, value = index[:, 0], value[:, 0]
    return index, (1 - value).clamp(min=0) if metric == "cosine" else value


def means(sums: Tensor, counts: Tensor, before: Tensor, metric: str) -> Tensor:
    """Centres from the sums of their points; those without points (or, for "cosine", direction) stay."""
    if metric == "cosine":
        length = sums.norm(dim=1, keepdim=True)
        return torch.where(length > 0, sums / length, before)
    counts = counts[:, None]
    return torch.where(counts > 0, sums / counts.clamp(min=1), before)


def fill_empty(
    points: Tensor, index: Tensor, cost: Tensor, sums: Tensor, counts: Tensor, group=None, backend: str | None = None
) -> bool:
    """Give every empty cluster the worst-served point left, in `sums` and `counts`; True if there was one to fill."""
    empty = (counts == 0).nonzero()[:, 0]
    if not len(empty):
        return False
    k = len(counts)
    # At most one point of each cluster (its last) is passed over, so this many of each process are enough.
    worst = cost.sort(descending=True, stable=True).indices[: len(empty) + k]
    costs, first = gather_rows(cost[worst], group)
    owners, _ = gather_rows(index[worst], group)
    costs, order = costs.sort(descending=True, stable=True)
    room, chosen = counts.tolist(), []
    for place, value, owner in zip(order.tolist(), costs.tolist(), owners[order].tolist(), strict=True):
        if len(chosen) == len(empty) or value <= 0:
            break
        if room[owner] > 1:
            room[owner] -= 1
            chosen.append(place)
    empty = empty[: len(chosen)]
    chosen = torch.tensor(chosen, dtype=torch.int64, device=points.device) - first
    mine = ((chosen >= 0) & (chosen < len(worst))).nonzero()[:, 0]
    rows = worst[chosen[mine]]
    taken, left = cluster_sums(points[rows], index[rows], k, backend=backend)
    new = sums.new_zeros(len(empty), sums.shape[1])
    new[mine] = points[rows]
    all_reduce(taken, left, new, group=group)
    sums -= taken
    counts -= left
    sums[empty] = new
    counts[empty] = 1
    return True


def _agree(index: Tensor, previous: Tensor, group) -> bool:
    changed = (index != previous).any().int()
    all_reduce(changed, group=group)
    return int(changed) == 0


def _mean_variance(points: Tensor, group, backend: str | None) -> float:
    total, count = cluster_sums(points, points.new_zeros(points.shape[0], dtype=torch.int64), 1, backend=backend)
    all_reduce(total, count, group=group)
    spread = ordered_sum(assign(points, total / count, "l2", backend)[1])
    all_reduce(spread, group=group)
    return float(spread) / (float(count) * max(points.shape[1], 1))
