"""Where k-means starts: greedy k-means++ at the cost of about one assignment pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vidkernels import _check
from vidkernels.functional.clustering._points import as_points, random_rows
from vidkernels.functional.clustering.nearest import nearest

__all__ = ["kmeans_plus_plus"]

_SAMPLE = 8192  # points that candidates are compared on
_AT_ONCE = 64  # centres between two passes over all points


@torch.no_grad()
def kmeans_plus_plus(
    x: Tensor,
    k: int,
    *,
    candidates: int | None = None,
    generator: torch.Generator | None = None,
    backend: str | None = None,
) -> Tensor:
    """Choose k spread-out points by greedy k-means++ seeding.

    The next centre is the best of some candidates, drawn with probability proportional to their squared distance from
    the centres so far; the best is the one that leaves the least sum of squared distances.
    Several candidates are drawn at once from distances that are a little old, and each is accepted with probability
    new / old distance: exactly the distribution above, with one pass over the points for up to 64 centres. The sum
    that decides is taken over at most 8192 points, in integers, so that nothing depends on the order of sums.
    Args:
        x: [N, D], float16/bfloat16/float32/float64, finite.
        k: centres to choose, at most N.
        candidates: for each centre; None: 2 + floor(log k), as scikit-learn. 1 is plain k-means++.
        generator: source of the draws.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        rows: [k] int64, different rows of `x` in the order they were chosen. If `x` has fewer than k different points,
            the rest are repeats of them, at random.
    Raises:
        ValueError: k outside [1, N], `candidates` below 1, rows that are not finite (named).
    Backends: reference, cpu, cuda (sm80+). Deterministic: yes, for any number of threads.
    Source: Arthur and Vassilvitskii 2007 (also the greedy variant); differs: candidates by rejection, in batches, and
        compared on a sample.
    Example:
        >>> x = torch.tensor([[0.0], [0.1], [9.0], [9.1]])
        >>> (kmeans_plus_plus(x, 2, generator=torch.Generator().manual_seed(0)) // 2).sort().values
        tensor([0, 1])
    """
    name = "kmeans_plus_plus"
    points = as_points(name, x, "l2")
    length = x.shape[0]
    if not 1 <= k <= length:
        _check.fail(name, f"expected `k` in [1, N], N = {length}.", k=k, x=x)
    trials = 2 + int(math.log(k)) if candidates is None else candidates
    if trials < 1:
        _check.fail(name, "expected at least 1 candidate.", candidates=candidates)
    chosen = random_rows(length, 1, generator, x.device).tolist()
    closest = _distances(points, chosen, backend)
    if not torch.isfinite(closest.sum()):
        _check.fail(name, "the squared distances between points are not finite.", x=x)
    score = _Score(points, chosen, trials, generator)
    while len(chosen) < k:
        batch = min(len(chosen), _AT_ONCE, k - len(chosen))
        new = _draw(points, closest, score, trials, batch, generator)
        if not new:
            break
        chosen += new
        closest = torch.minimum(closest, _distances(points, new, backend))
    chosen = torch.tensor(chosen, device=x.device)
    if len(chosen) < k:  # every point lies on a centre: any rows that are left
        free = torch.ones(length, dtype=torch.bool, device=x.device)
        free[chosen] = False
        free = free.nonzero()[:, 0]
        chosen = torch.cat([chosen, free[random_rows(len(free), k - len(chosen), generator, x.device)]])
    return chosen


def _distances(points: Tensor, rows: list[int], backend: str | None) -> Tensor:
    return nearest(points, points[rows], backend=backend)[1][:, 0]


def _draw(
    points: Tensor, closest: Tensor, score: _Score, trials: int, batch: int, generator: torch.Generator | None
) -> list[int]:
    """Up to `batch` new centres (at least one, if any point is off its centre)."""
    cumulated = closest.double().cumsum(0)
    if not cumulated[-1] > 0:
        return []
    count = trials + trials * batch * 3 // 2  # a third may be refused before the batch gets shorter
    source = points.device if generator is None else generator.device
    uniform = torch.rand(2, count, generator=generator, dtype=torch.float64, device=source).to(points.device)
    rows = torch.searchsorted(cumulated, uniform[0] * cumulated[-1], right=True)
    # Rounding may push a draw past the last point that has a distance.
    rows = rows.clamp(max=int(closest.nonzero()[-1, 0]))
    drawn, now = points[rows], closest[rows]
    least = uniform[1] * now
    # Pair by pair, not by a matrix product, whose rounding depends on how it is split among threads.
    apart = torch.cdist(drawn, drawn, compute_mode="donot_use_mm_for_euclid_dist").square()
    costs = score.costs(drawn)
    accepted, at = [], 0
    while len(accepted) < batch:
        offers = (least[at:] < now[at:]).nonzero()[:trials, 0] + at
        if len(offers) < trials:
            break
        at = int(offers[-1]) + 1
        best = int(offers[score.best(costs, offers)])
        accepted.append(best)
        now = torch.minimum(now, apart[best])
    return rows[accepted].tolist()


class _Score:
    """Sums of squared distances on a sample of the points, exact in float64.

    Coordinates are rounded to integers small enough that every product and sum below 2^53 is exact. So the matrix
    product may be split in any way, and the choice between candidates is the same on any machine.
    """

    def __init__(self, points: Tensor, first: list[int], trials: int, generator: torch.Generator | None):
        self.used = trials > 1
        if not self.used:
            return
        length, dim = points.shape
        sample = points
        if length > _SAMPLE:
            sample = points[random_rows(length, _SAMPLE, generator, points.device)]
        bits = (51 - math.ceil(math.log2(max(dim, 1))) - math.ceil(math.log2(len(sample)))) // 2
        low, high = points.amin(0).double(), points.amax(0).double()
        self.middle = (low + high) / 2
        self.step = ((high - low).amax() / 2 / (2**bits - 1)).clamp(min=1e-300) if dim else low.new_ones(())
        self.sample = self._grid(sample)
        self.squares = self.sample.square().sum(1)
        self.closest = (self.sample - self._grid(points[first])).square().sum(1)

    def costs(self, drawn: Tensor) -> Tensor | None:
        """[count, S] squared distances of candidates from the sample."""
        if not self.used:
            return None
        grid = self._grid(drawn)
        costs = torch.addmm(self.squares, grid, self.sample.t(), alpha=-2)
        return costs.add_(grid.square().sum(1, keepdim=True))

    def best(self, costs: Tensor | None, offers: Tensor) -> int:
        """Which of the candidates leaves least; the sample then counts it as chosen."""
        if not self.used:
            return 0
        left = torch.minimum(costs[offers], self.closest)
        best = int(left.sum(1).argmin())
        self.closest = left[best]
        return best

    def _grid(self, points: Tensor) -> Tensor:
        return points.double().sub(self.middle).div_(self.step).round_()
