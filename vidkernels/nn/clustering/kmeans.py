"""k-means as modules: centres that are kept, saved, and followed batch by batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidkernels import _check
from vidkernels.functional.clustering import hierarchical as tree
from vidkernels.functional.clustering._points import as_points
from vidkernels.functional.clustering.kmeans import assign, kmeans, starting_centres
from vidkernels.functional.clustering.minibatch import minibatch_kmeans, minibatch_step

__all__ = ["HierarchicalKMeans", "KMeans"]


class KMeans(nn.Module):
    """Centres found by k-means: fit them at once, or follow batches that pass by.

    Args:
        dim: D, size of a point.
        k: number of centres.
        metric: "l2" or "cosine", see `vidkernels.functional.kmeans`.
        init: "k-means++", "random" or the centres themselves, [k, D].
        group: a torch.distributed group whose processes' points are clustered together; None: this process alone.
    Example:
        >>> module = KMeans(1, 2)
        >>> x = torch.tensor([[0.0], [1.0], [8.0], [9.0]])
        >>> index = module.fit(x, iterations=10, generator=torch.Generator().manual_seed(0)).predict(x)
        >>> module.centres[index].flatten().tolist()
        [0.5, 0.5, 8.5, 8.5]
    """

    def __init__(self, dim: int, k: int, *, metric: str = "l2", init: str | Tensor = "k-means++", group=None):
        super().__init__()
        self.metric, self.init, self.group = metric, init, group
        self.register_buffer("centres", torch.zeros(k, dim))
        self.register_buffer("counts", torch.zeros(k))
        self.register_buffer("started", torch.tensor(False))
        self._started = False  # the buffer as Python knows it, without asking a GPU

    def fit(
        self,
        x: Tensor,
        *,
        iterations: int,
        generator: torch.Generator | None = None,
        tolerance: float | None = None,
        batch_size: int | None = None,
    ) -> KMeans:
        """Cluster [N, D] points from new seeds: by `kmeans`, or with a batch size by `minibatch_kmeans`."""
        how = {"init": self.init, "metric": self.metric, "generator": generator}
        k = len(self.centres)
        if batch_size is None:
            result = kmeans(x, k, iterations=iterations, tolerance=tolerance, group=self.group, **how)
        elif tolerance is not None or self.group is not None:
            _check.fail("KMeans.fit", "mini-batches take no `tolerance` and no `group`.", batch_size=batch_size)
        else:
            result = minibatch_kmeans(x, k, iterations=iterations, batch_size=batch_size, **how)
        return self._keep(result.centres, result.counts)

    @torch.no_grad()
    def partial_fit(self, x: Tensor, generator: torch.Generator | None = None) -> KMeans:
        """Follow one batch [N, D]; the first one seeds, if nothing was fitted before."""
        points = as_points("KMeans.partial_fit", x, self.metric)
        if self._started:
            points = points.to(self.centres)
            centres, counts = self.centres, self.counts
        else:
            centres = starting_centres(
                "KMeans.partial_fit", points, len(self.centres), self.init, self.metric, generator, self.group
            )
            counts = centres.new_zeros(len(centres))
        centres, counts, _ = minibatch_step(points, centres, counts, self.metric, self.group)
        return self._keep(centres, counts)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """[N] int64: the nearest centre of each point."""
        return assign(*self._prepared("KMeans.predict", x), self.metric)[0]

    @torch.no_grad()
    def transform(self, x: Tensor) -> Tensor:
        """[N, k]: distance of each point from each centre (1 - cosine for "cosine")."""
        points, centres = self._prepared("KMeans.transform", x)
        if self.metric == "cosine":
            return 1 - points @ centres.t()
        return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")

    forward = predict

    def extra_repr(self) -> str:
        return f"{self.centres.shape[1]}, {self.centres.shape[0]}, metric={self.metric!r}"

    def _prepared(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self._started:
            _check.fail(name, "there are no centres yet.", "call `fit` or `partial_fit` first.", error=RuntimeError)
        points = as_points(name, x, self.metric)
        return points, self.centres.to(points)

    @torch.no_grad()
    def _keep(self, centres: Tensor, counts: Tensor) -> KMeans:
        self.centres.copy_(centres)
        self.counts.copy_(counts)
        self.started.fill_(True)
        self._started = True
        return self

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._started = bool(self.started)


class HierarchicalKMeans(nn.Module):
    """A vocabulary tree: k-means of each cluster of k-means; see `vidkernels.functional.hierarchical_kmeans`.

    Args:
        dim: D, size of a point.
        levels: children of a node on each level; (12, 12, 12, 12) is VideoBERT's 20736 words.
        metric: "l2" or "cosine".
    Example:
        >>> x = torch.tensor([[0.0], [1.0], [8.0], [9.0]])
        >>> HierarchicalKMeans(1, (2, 2)).fit(x, iterations=5).predict(x).unique().tolist()
        [0, 1, 2, 3]
    """

    def __init__(self, dim: int, levels: Sequence[int], *, metric: str = "l2"):
        super().__init__()
        self.levels, self.metric = tuple(levels), metric
        for depth, size in enumerate(itertools.accumulate(self.levels, lambda a, b: a * b)):
            self.register_buffer(f"centres{depth}", torch.zeros(size, dim))

    @property
    def centres(self) -> list[Tensor]:
        """One [k1 * ... * kl, D] for each level."""
        return [getattr(self, f"centres{depth}") for depth in range(len(self.levels))]

    @torch.no_grad()
    def fit(self, x: Tensor, *, iterations: int, generator: torch.Generator | None = None) -> HierarchicalKMeans:
        """Cluster [N, D] points."""
        result = tree.hierarchical_kmeans(
            x, self.levels, iterations=iterations, metric=self.metric, generator=generator
        )
        for mine, found in zip(self.centres, result.centres, strict=True):
            mine.copy_(found)
        return self

    def predict(self, x: Tensor) -> Tensor:
        """[N] int64: the leaf of each point."""
        return tree.hierarchical_assign(x, self.centres, metric=self.metric)

    forward = predict

    def extra_repr(self) -> str:
        return f"{self.centres[0].shape[1]}, levels={self.levels}, metric={self.metric!r}"
