"""A tree of k-means: every cluster of one level is clustered again on the next."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vidkernels import _check
from vidkernels.functional.clustering._collective import ordered_sum
from vidkernels.functional.clustering._points import as_points
from vidkernels.functional.clustering.kmeans import assign, kmeans

__all__ = ["HierarchicalKMeansResult", "hierarchical_assign", "hierarchical_kmeans"]


class HierarchicalKMeansResult(NamedTuple):
    """A tree of centres and the leaf of every point.

    Args:
        centres: one [k1 * ... * kl, D] for each level l; the children of node j are rows j * kl to (j + 1) * kl - 1.
        index: [N] int64, the leaf of each point; index // kl is its node one level up.
        inertia: scalar float64, the sum of squared distances to the leaves (of 1 - cosine for metric="cosine").
        counts: [k1 * ... * kL] int64, points of each leaf.
    Returns: a tuple of the four.
    Example:
        >>> from vidkernels.functional.clustering.hierarchical import hierarchical_kmeans
        >>> x = torch.tensor([[0.0], [1.0], [8.0], [9.0]])
        >>> [len(c) for c in hierarchical_kmeans(x, (2, 2), iterations=5).centres]
        [2, 4]
    """

    centres: list[Tensor]
    index: Tensor
    inertia: Tensor
    counts: Tensor


@torch.no_grad()
def hierarchical_kmeans(
    x: Tensor,
    levels: Sequence[int],
    *,
    iterations: int,
    init: str = "k-means++",
    metric: str = "l2",
    generator: torch.Generator | None = None,
    tolerance: float | None = None,
    backend: str | None = None,
) -> HierarchicalKMeansResult:
    """Cluster points by a tree of k-means: a vocabulary of k1 * ... * kL leaves that is found and searched fast.

    level 1 clusters all points into k1; level l clusters the points of each node of level l - 1 into kl
    Convention: the leaf number reads like digits: ((i1 * k2) + i2) * k3 + i3. A node with fewer points than kl takes
        each as a centre; its other children repeat its first centre and get no points, for ties go to the lowest.
    Args:
        x: [N, D], float16/bfloat16/float32/float64. Half precision is clustered in float32.
        levels: (k1, ..., kL), children of a node on each level; k1 is at most N.
        iterations, init, metric, tolerance: of each k-means, see `kmeans`.
        generator: source of the random choices.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        HierarchicalKMeansResult(centres, index, inertia, counts). Not differentiable.
    Raises:
        ValueError: no levels, or as `kmeans`.
    Backends: reference, cpu, cuda (sm80+). Deterministic: yes, for any number of threads.
    Source: Nister and Stewenius 2006 (vocabulary tree); Sun et al. 2019, arXiv 1904.01766, 4.1: (12, 12, 12, 12).
    Example:
        >>> x = torch.tensor([[0.0], [1.0], [8.0], [9.0]])
        >>> tree = hierarchical_kmeans(x, (2, 2), iterations=5, generator=torch.Generator().manual_seed(0))
        >>> tree.inertia, tree.counts
        (tensor(0., dtype=torch.float64), tensor([1, 1, 1, 1]))
    """
    name = "hierarchical_kmeans"
    levels = list(levels)
    if not levels or min(levels) < 1:
        _check.fail(name, "expected `levels` with at least one number, each of at least 1.", levels=levels)
    points = as_points(name, x, metric)
    how = {"init": init, "metric": metric, "generator": generator, "tolerance": tolerance, "backend": backend}
    root = kmeans(points, levels[0], iterations=iterations, **how)
    centres, node = [root.centres], root.index
    for k in levels[1:]:
        parents = centres[-1]
        children = parents.repeat_interleave(k, 0)
        child = torch.zeros_like(node)
        for rows, j in _members(node, len(parents)):
            if len(rows) <= k:
                children[j * k : (j + 1) * k] = points[rows[:1]]
                children[j * k : j * k + len(rows)] = points[rows]
            else:
                children[j * k : (j + 1) * k] = kmeans(points[rows], k, iterations=iterations, **how).centres
            child[rows] = assign(points[rows], children[j * k : (j + 1) * k], metric, backend)[0]
        centres.append(children)
        node = node * k + child
    cost = _leaf_cost(points, node, centres[-1], metric)
    return HierarchicalKMeansResult(centres, node, cost, torch.bincount(node, minlength=math.prod(levels)))


@torch.no_grad()
def hierarchical_assign(
    x: Tensor, centres: Sequence[Tensor], *, metric: str = "l2", backend: str | None = None
) -> Tensor:
    """Walk points down a tree of centres, to the nearest child on each level.

    Convention: leaf numbers as in `hierarchical_kmeans`.
    Args:
        x: [N, D], float16/bfloat16/float32/float64.
        centres: one [k1 * ... * kl, D] for each level, as `hierarchical_kmeans` returns them.
        metric: "l2" or "cosine".
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        index: [N] int64, the leaf of each point. Not differentiable.
    Raises:
        ValueError: sizes of levels that do not divide each other, rows that are not finite (named).
    Backends: reference, cpu, cuda (sm80+). Deterministic: yes.
    Source: Nister and Stewenius 2006.
    Example:
        >>> tree = [torch.tensor([[0.0], [8.0]]), torch.tensor([[0.0], [1.0], [7.0], [9.0]])]
        >>> hierarchical_assign(torch.tensor([[0.9], [7.1]]), tree)
        tensor([1, 2])
    """
    name = "hierarchical_assign"
    points = as_points(name, x, metric)
    sizes = [1, *(len(level) for level in centres)]
    if len(sizes) == 1 or any(below == 0 or below % above for above, below in itertools.pairwise(sizes)):
        _check.fail(name, "expected levels in `centres` whose sizes divide each other.", sizes=sizes[1:])
    node = torch.zeros(points.shape[0], dtype=torch.int64, device=points.device)
    for level, above in zip(centres, sizes[:-1], strict=True):
        k = len(level) // above
        child = torch.zeros_like(node)
        for rows, j in _members(node, above):
            child[rows] = assign(points[rows], level[j * k : (j + 1) * k].to(points), metric, backend)[0]
        node = node * k + child
    return node


def _members(node: Tensor, nodes: int):
    """The rows of every node that has any, ascending, and the node's number."""
    order = node.sort(stable=True).indices
    sizes = torch.bincount(node, minlength=nodes).tolist()
    for j, rows in enumerate(order.split(sizes)):
        if len(rows):
            yield rows, j


def _leaf_cost(points: Tensor, leaf: Tensor, centres: Tensor, metric: str) -> Tensor:
    if metric == "cosine":
        return ordered_sum((1 - (points * centres[leaf]).sum(1)).clamp(min=0))
    return ordered_sum((points - centres[leaf]).square().sum(1))
