"""Token merging: find tokens that are alike, average them, and put them back."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from vidkernels import _check
from vidkernels.functional.tokens.plan import MergePlan
from vidkernels.ops.gather_tokens.op import gather_tokens as _gather
from vidkernels.ops.merge_tokens.op import merge_tokens as _merge
from vidkernels.ops.nearest.op import nearest as _nearest

__all__ = ["MergePlan", "bipartite_soft_matching", "merge_tokens", "unmerge_tokens"]

_PAIRINGS = ("alternate", "spatial", "temporal", "joint", "cell")
_NONE = float("-inf")  # the similarity of what must not merge


@torch.no_grad()
def bipartite_soft_matching(
    metric: torch.Tensor,
    r: int,
    *,
    protect: int = 0,
    pairing: str = "alternate",
    grid: tuple[int, int, int] | None = None,
    threshold: float | None = None,
    cell: tuple[int, int] = (2, 2),
    generator: torch.Generator | None = None,
    backend: str | None = None,
) -> MergePlan:
    """Choose the r pairs of tokens that are most alike, each pair from two sides of a split of the tokens.

    Every source token finds its most similar destination; the r most similar sources join theirs.
    The result is [protected, sources that stay, destinations], each in the order they came in.
    Ties: the lowest token first, among destinations and among sources. A zero token has similarity 0 with all.
    Convention: tokens are [protected..., (t, h, w) raster]; who may join whom:
        alternate   even tokens are sources, odd ones destinations; any pair
        spatial     places with even h + w are sources; their (up to four) neighbours in the frame
        temporal    even frames are sources; the same place in the next frame
        joint       places with even t + h + w are sources; neighbours in the frame and the same place in the next one
        cell        one token of every whole (sy, sx) cell of every frame is a destination, the others sources; any pair
    Args:
        metric: [B, N, C], float16/bfloat16/float32/float64, compared by cosine. ToMe's is the key, averaged over heads.
        r: pairs to merge; at most as many are merged as the pairing has sources with a destination (for "alternate",
            half of the free tokens).
        protect: so many tokens in front (class, distillation) stay as they are, and nothing joins them.
        pairing: who may join whom, above.
        grid: (T, H, W) with protect + T * H * W = N, for all pairings but "alternate".
        threshold: pairs below this cosine do not merge. How many do then depends on the data, so that the plan keeps
            `count` = N, with the empty places last; they are zeros of size 0, which `proportional_attention` leaves
            out. `MergePlan.trim` cuts them off in eager code.
        cell: (sy, sx), for "cell".
        generator: for "cell", draws the destination of each cell, the same for the whole batch; None is the first.
        backend: force one of vidkernels' backends for the search; None chooses.
    Returns:
        plan: N - r places (N with a threshold). Not differentiable: it is a choice.
    Raises:
        ValueError: r or protect negative, an unknown pairing, a grid that does not fit, NaN or infinity in the metric
            (found on the CPU outside torch.compile; elsewhere such a number counts as zero).
    Backends: "alternate" and "cell" search with op `nearest` (reference, cpu, cuda) and store no similarities; the
        other pairings are torch on any device, a few products a token. Deterministic: yes.
    Source: Bolya et al. 2023, arXiv 2210.09461, section 3; differs: sources that stay keep their order also without
        a class token (the released code sorts them by similarity), and pairings in space and time. "cell" is
        Bolya and Hoffman 2023, arXiv 2303.17604, section 3.2.
    Example:
        >>> metric = torch.tensor([[[1.0, 0], [0, 1], [0, 2], [1, 1]]])
        >>> plan = bipartite_soft_matching(metric, 1)
        >>> plan.source.tolist(), plan.count
        ([[0, 1, 1, 2]], 3)
    """
    name = "bipartite_soft_matching"
    _check.is_tensor(name, "metric", metric, "[B, N, C]")
    batch, length, _ = metric.shape
    free = length - protect
    if not 0 <= protect <= length:
        _check.fail(name, "expected `protect` between 0 and the number of tokens.", metric=metric, protect=protect)
    if r < 0:
        _check.fail(name, "expected `r` to be at least 0.", metric=metric, r=r)
    if pairing not in _PAIRINGS:
        _check.fail(name, f"expected `pairing` to be one of {', '.join(_PAIRINGS)}.", pairing=pairing)
    if pairing != "alternate" and (grid is None or len(grid) != 3 or min(grid) < 1 or math.prod(grid) != free):
        _check.fail(name, f"expected `grid` (T, H, W) of the {free} tokens that are not protected.",
                    metric=metric, protect=protect, pairing=pairing, grid=grid)  # fmt: skip
    if min(cell) < 1:
        _check.fail(name, "expected `cell` (sy, sx) of at least 1.", cell=cell)
    if metric.is_cpu and not torch.compiler.is_compiling():
        _refuse_endless(name, metric)
    else:
        metric = metric.nan_to_num(0, 0, 0)
    r = min(r, _most(pairing, free, grid, cell))
    if r == 0:
        return MergePlan.identity(batch, length, metric.device)
    metric = metric[:, protect:]
    if pairing == "alternate":
        first = protect % 2
        source = _join_best(metric, slice(first, None, 2), slice(1 - first, None, 2), r, threshold, backend)
    elif pairing == "cell":
        is_source = _all_but_one(grid, cell, generator, metric.device)
        order = is_source.int().argsort(stable=True)  # destinations, then sources; how many is known beforehand
        cells = grid[0] * (grid[1] // cell[0]) * (grid[2] // cell[1])
        source = _join_best(metric, order[cells:], order[:cells], r, threshold, backend)
    else:
        source = _join_neighbours(_unit(metric), grid, pairing, r, threshold)
    if protect:
        front = torch.arange(protect, dtype=torch.int32, device=metric.device).expand(batch, protect)
        source = torch.cat([front, source + protect], 1)
    return MergePlan(source, length if threshold is not None else length - r)


def merge_tokens(
    x: torch.Tensor, plan: MergePlan, size: torch.Tensor | None = None, *, backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Average the tokens that a plan puts in one place, weighted by how many tokens each stands for already.

    merged[b, m] = sum of size[b, n] * x[b, n] over source[b, n] == m, divided by the sum of these sizes
    Args:
        x: [B, N, D], float16/bfloat16/float32/float64.
        plan: from `bipartite_soft_matching` or another clustering.
        size: [B, N], at least 0; None is 1 each. What the previous merge returned.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        merged: [B, count, D], the dtype of `x`. Differentiable in `x` (twice, and so on), not in `size`.
        size: [B, count], float32 (float64 with float64 tokens): the sums. Where it is 0, `merged` is 0.
    Raises:
        ValueError: shapes that do not fit; a place outside [0, count) (found on the CPU; on a GPU such a token is left
            out, because looking would stall the stream).
    Backends: reference, cpu, cuda (sm80+). Deterministic: yes (sums in ascending token order, in float32).
    Source: Bolya et al. 2023, arXiv 2210.09461, section 3 (tracking token size).
    Example:
        >>> plan = vk.functional.MergePlan(torch.tensor([[0, 1, 1]], dtype=torch.int32), 2)
        >>> merged, size = merge_tokens(torch.tensor([[[1.0], [2.0], [5.0]]]), plan, torch.tensor([[1.0, 2.0, 1.0]]))
        >>> merged.flatten().tolist(), size.tolist()
        ([1.0, 3.0], [[1.0, 3.0]])
    """
    name = "merge_tokens"
    _check.is_tensor(name, "x", x, "[B, N, D]")
    if plan.source.shape != x.shape[:2]:
        _check.fail(name, "expected a plan for the tokens of `x`, `plan.source` of shape [B, N].",
                    x=x, source=plan.source)  # fmt: skip
    if size is not None and size.shape != x.shape[:2]:
        _check.fail(name, "expected `size` of shape [B, N].", x=x, size=size)
    return _merge(x, plan.source, size, plan.count, backend=backend)


def unmerge_tokens(x: torch.Tensor, plan: MergePlan, *, backend: str | None = None) -> torch.Tensor:
    """Give every token of before the merge the value of the token that it became.

    out[b, n] = x[b, source[b, n]]
    Args:
        x: [B, count, D], float16/bfloat16/float32/float64, in the order of the merged tokens.
        plan: the plan that merged them, or several plans chained with `MergePlan.then`.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        out: [B, N, D], the dtype of `x`. Differentiable in `x` (twice, and so on): a merged token gets the sum of the
            gradients of its tokens.
    Raises:
        ValueError: `x` has not the number of tokens that the plan leaves.
    Backends: reference, cpu, cuda (sm80+). Deterministic: yes (sums in ascending token order, in float32).
    Source: Bolya and Hoffman 2023, arXiv 2303.17604, section 3.1 (unmerging).
    Example:
        >>> plan = vk.functional.MergePlan(torch.tensor([[0, 1, 1]], dtype=torch.int32), 2)
        >>> unmerge_tokens(torch.tensor([[[1.0], [3.0]]]), plan).flatten().tolist()
        [1.0, 3.0, 3.0]
    """
    name = "unmerge_tokens"
    _check.is_tensor(name, "x", x, "[B, count, D]")
    if x.shape[0] != plan.source.shape[0] or x.shape[1] != plan.count:
        _check.fail(name, f"expected `x` to hold the {plan.count} tokens that the plan leaves, of the same batch.",
                    x=x, source=plan.source)  # fmt: skip
    return _gather(x, plan.source, backend=backend)


def _refuse_endless(name: str, metric: torch.Tensor) -> None:
    # One quick pass; a sum may also overflow by itself.
    wide = torch.float64 if metric.dtype is torch.float64 else torch.float32
    if not math.isfinite(metric.sum(dtype=wide).item()):
        rows = (~metric.isfinite()).any(2).nonzero().tolist()
        if rows:
            shown = ", ".join(f"({b}, {n})" for b, n in rows[:5]) + (", ..." if len(rows) > 5 else "")
            _check.fail(name, f"the metric has NaN or infinity in tokens (batch, token) {shown}.", metric=metric)


def _most(pairing: str, free: int, grid: tuple[int, int, int] | None, cell: tuple[int, int]) -> int:
    """How many sources have a destination that they could join."""
    if pairing == "alternate":
        return free // 2
    t, h, w = grid
    if pairing == "cell":
        destinations = t * (h // cell[0]) * (w // cell[1])
        return free - destinations if destinations else 0
    if pairing == "temporal" or (pairing == "joint" and h * w == 1):
        return t // 2 * h * w
    if h * w == 1:
        return 0
    return (t * h * w + 1) // 2 if pairing == "joint" else t * ((h * w + 1) // 2)


def _all_but_one(
    grid: tuple[int, int, int], cell: tuple[int, int], generator: torch.Generator | None, device: torch.device
) -> torch.Tensor:
    """[T * H * W] bool: False at one place of every whole cell."""
    (t, h, w), (sy, sx) = grid, cell
    chosen = torch.zeros(t, h // sy, w // sx, dtype=torch.int64, device=device)
    if generator is not None:
        chosen = torch.randint(sy * sx, chosen.shape, generator=generator, device=generator.device).to(device)
    inside = torch.arange(sy * sx, device=device).view(sy, 1, sx) != chosen[:, :, None, :, None]
    inside = inside.reshape(t, h // sy * sy, w // sx * sx)
    return F.pad(inside, (0, w % sx, 0, h % sy), value=True).flatten()


def _unit(metric: torch.Tensor) -> torch.Tensor:
    """Rows of length 1 in float32; zeros stay zeros. Divided by the root of the length twice, so that nothing
    overflows whatever the size of the numbers."""
    wide = metric if metric.dtype is torch.float64 else metric.float()
    root = torch.linalg.vector_norm(wide, dim=2, keepdim=True, dtype=torch.float64).sqrt().to(wide.dtype)
    return (wide / root).div_(root).nan_to_num_(0, 0, 0)


def _join_best(
    metric: torch.Tensor,
    sources: slice | torch.Tensor,
    destinations: slice | torch.Tensor,
    r: int,
    threshold: float | None,
    backend: str | None,
) -> torch.Tensor:
    """[B, N] int32: the places when the r best sources join the best of all destinations."""
    index, value = _nearest(metric[:, sources], metric[:, destinations], 1, "cosine", "all", True, backend=backend)
    target, similarity = index[..., 0], value[..., 0]
    merging = _top(similarity, r, threshold)
    stays = (~merging).cumsum(1, dtype=torch.int32)
    places = torch.empty(metric.shape[:2], dtype=torch.int32, device=metric.device)
    places[:, sources] = torch.where(merging, target.int() + stays[:, -1:], stays - 1)
    count = metric.shape[1] - similarity.shape[1]
    places[:, destinations] = torch.arange(count, dtype=torch.int32, device=metric.device) + stays[:, -1:]
    return places


def _join_neighbours(
    unit: torch.Tensor, grid: tuple[int, int, int], pairing: str, r: int, threshold: float | None
) -> torch.Tensor:
    """The same among neighbours on the grid."""
    similarity, target, is_source = _best_neighbour(unit, grid, pairing)
    merging = _top(similarity, r, threshold)
    stays = (is_source & ~merging).cumsum(1, dtype=torch.int32)
    place = stays[:, -1:] + (~is_source).cumsum(0, dtype=torch.int32)
    return torch.where(is_source, torch.where(merging, place.gather(1, target), stays), place) - 1


def _best_neighbour(
    unit: torch.Tensor, grid: tuple[int, int, int], pairing: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For every token its best neighbour and how similar it is (-inf where it is no source), and who is a source. Each
    pair of neighbours is compared once."""
    _, height, width = grid
    batch, length, _ = unit.shape
    cells = unit.unflatten(1, grid)
    t, h, w = (torch.arange(n, device=unit.device) for n in grid)
    axis = {"spatial": (0, 1, 1), "temporal": (1, 0, 0), "joint": (1, 1, 1)}[pairing]
    even = (t[:, None, None] * axis[0] + h[:, None] * axis[1] + w * axis[2]) % 2 == 0
    candidates = []  # (step to the destination, similarity [B, T, H, W]), lowest destination first
    if pairing != "temporal":
        down = (cells[:, :, 1:] * cells[:, :, :-1]).sum(4)
        right = (cells[:, :, :, 1:] * cells[:, :, :, :-1]).sum(4)
        candidates += [
            (-width, F.pad(down, (0, 0, 1, 0), value=_NONE)),
            (-1, F.pad(right, (1, 0), value=_NONE)),
            (1, F.pad(right, (0, 1), value=_NONE)),
            (width, F.pad(down, (0, 0, 0, 1), value=_NONE)),
        ]
    if pairing != "spatial":
        following = (cells[:, 1:] * cells[:, :-1]).sum(4)
        candidates.append((height * width, F.pad(following, (0, 0, 0, 0, 0, 1), value=_NONE)))
    best = unit.new_full((batch, *grid), _NONE)
    step = torch.zeros((batch, *grid), dtype=torch.int64, device=unit.device)
    for candidate, value in candidates:
        better = (value > best) & even
        best = torch.where(better, value, best)
        step = torch.where(better, candidate, step)
    target = torch.arange(length, device=unit.device) + step.flatten(1)
    return best.flatten(1), target, even.flatten()


def _top(value: torch.Tensor, r: int, threshold: float | None) -> torch.Tensor:
    """[B, N] bool: the r largest of each row, of equal ones those in front, less those below the threshold."""
    least = value.topk(r, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, level = value > least, value == least
    rank = level.cumsum(1, dtype=torch.int32) + above.sum(1, keepdim=True, dtype=torch.int32)
    chosen = above | (level & (rank <= r))
    return chosen if threshold is None else chosen & (value >= threshold)
