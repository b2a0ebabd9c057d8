"""Masks of video tokens: one engine from a score field to index lists of an exact count."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch

from vidkernels import _check
from vidkernels.functional.masking.token_mask import TokenMask, check_grid
from vidkernels.ops.token_mask.op import score_mask as _score_mask
from vidkernels.ops.token_mask.op import token_mask as _token_mask

Ratio = float | tuple[float, float] | torch.Tensor
_ASPECTS = 16


def tube_mask(
    batch: int,
    grid: tuple[int, int, int] = (8, 14, 14),
    ratio: Ratio = 0.9,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    seed: torch.Tensor | None = None,
    backend: str | None = None,
) -> TokenMask:
    """Tube masks: one random set of spatial cells per clip, masked in every frame.

    Each frame masks exactly int(ratio * H * W) cells, the same ones over time (0.9 of 14 x 14: 176; 160 of the 1568
    tokens of 8 frames stay visible).
    Convention: tokens count in (t, h, w) raster order; masked = hidden from the encoder.
    Args:
        batch: number of clips B.
        grid: (T, H, W), the tokens of a clip along time, height, width.
        ratio: masked share in [0, 1). A tuple (low, high) draws each sample's count uniformly between the two
            counts; a tensor [B] gives each sample its own (read on the host).
        generator: torch generator on `device`; None uses the default one (torch.manual_seed).
        device: where the mask is made; None takes that of `seed` or `generator`, else torch's default.
        seed: int64 [1] tensor to use instead of drawing one. The same seed gives the same mask on every backend.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        mask: TokenMask with int32 `visible_index` [B, Nv] and `masked_index` [B, Nm], both ascending. Not
            differentiable.
    Raises:
        ValueError: a ratio outside [0, 1), an empty grid, no visible token left.
    Backends: reference, cpu, cuda (sm80+); the same bits on each. One launch, no host synchronisation.
    Source: Tong et al. 2022, arXiv 2203.12602, section 3.2; random numbers: Salmon et al. 2011, Philox4x32-10.
    Example:
        >>> mask = tube_mask(2, (2, 2, 2), 0.5)
        >>> bool((mask.visible_index[:, :2] + 4 == mask.visible_index[:, 2:]).all())
        True
    """
    frames, cells = _frames_and_cells("tube_mask", batch, grid)
    count = _at_most("tube_mask", "ratio", cells, lambda r: int(r * cells))
    return _make("tube_mask", "tube", batch, grid, ratio, count, frames, (), generator, device, seed, backend)


def random_mask(
    batch: int,
    grid: tuple[int, int, int] = (8, 14, 14),
    ratio: Ratio = 0.9,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    seed: torch.Tensor | None = None,
    backend: str | None = None,
) -> TokenMask:
    """Random masks: any token of space and time, all sets of one size equally likely.

    Exactly int(N * (1 - ratio)) tokens of the N = T*H*W stay visible (0.9 of 1568: 156).
    Convention: tokens count in (t, h, w) raster order; masked = hidden from the encoder.
    Args:
        ratio: masked share of the clip's tokens in [0, 1); or a range, or one per sample (see `tube_mask`).
        batch, grid, generator, device, seed, backend: see `tube_mask`.
    Returns:
        mask: TokenMask with int32 `visible_index` [B, Nv] and `masked_index` [B, Nm]; see `tube_mask`.
    Raises:
        ValueError: a ratio outside [0, 1), an empty grid, no visible token left.
    Backends: reference, cpu, cuda (sm80+); the same bits on each.
    Source: Feichtenhofer et al. 2022, arXiv 2205.09113, section 3 (space-time-agnostic sampling).
    Example:
        >>> random_mask(3).visible_index.shape
        torch.Size([3, 156])
    """
    frames, cells = _frames_and_cells("random_mask", batch, grid)
    tokens = frames * cells
    count = _at_most("random_mask", "ratio", tokens, lambda r: tokens - int(tokens * (1 - r)))
    return _make("random_mask", "random", batch, grid, ratio, count, 1, (), generator, device, seed, backend)


def running_cell_mask(
    batch: int,
    grid: tuple[int, int, int] = (8, 14, 14),
    ratio: Ratio = 0.5,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    seed: torch.Tensor | None = None,
    backend: str | None = None,
) -> TokenMask:
    """Running-cell masks: in every 2 x 2 group of cells the masked ones advance by one place each frame.

    Place of cell (y, x) at frame t: p = (2 * (y % 2) + x % 2 + t + phase) % 4, with a random phase per sample. Each
    frame masks exactly int(ratio * H * W) cells, those with small p first; where a frame's count cuts through one
    p (odd grids, or 4 * ratio not whole), cells of that p are chosen at random. With ratio 0.5 every cell of a grid of
    two cells or more is both masked and visible within four frames. One cell wide grids run along the line.
    Convention: tokens count in (t, h, w) raster order; masked = hidden from the encoder.
    Args:
        ratio: masked share of each frame in [0, 1); or a range, or one per sample (see `tube_mask`).
        batch, grid, generator, device, seed, backend: see `tube_mask`.
    Returns:
        mask: TokenMask with int32 `visible_index` [B, Nv] and `masked_index` [B, Nm]; see `tube_mask`.
    Raises:
        ValueError: a ratio outside [0, 1), an empty grid, no visible token left.
    Backends: reference, cpu, cuda (sm80+); the same bits on each.
    Source: Wang et al. 2023, arXiv 2303.16727, section 3.2 (decoder masking); differs: odd grids work.
    Example:
        >>> mask = running_cell_mask(1, (4, 2, 2)).to_bool().reshape(4, 4)
        >>> mask.sum(0).tolist(), mask.sum(1).tolist()
        ([2, 2, 2, 2], [2, 2, 2, 2])
    """
    frames, cells = _frames_and_cells("running_cell_mask", batch, grid)
    count = _at_most("running_cell_mask", "ratio", cells, lambda r: int(r * cells))
    return _make(
        "running_cell_mask", "running_cell", batch, grid, ratio, count, frames, (), generator, device, seed, backend
    )


def block_mask(
    batch: int,
    grid: tuple[int, int, int] = (8, 14, 14),
    blocks: int = 8,
    scale: float = 0.15,
    aspect: tuple[float, float] = (0.75, 1.5),
    ratio: Ratio | None = None,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    seed: torch.Tensor | None = None,
    backend: str | None = None,
) -> TokenMask:
    """Multi-block masks: the union of random rectangles, over the full time of the clip.

    A rectangle covers about int(scale * H * W) cells, with height / width one of 16 even steps of `aspect`, anywhere in
    the frame. Every sample masks the same number of cells: where the union has more, randomly chosen cells of it become
    visible; where it has fewer, randomly chosen cells outside become masked (no raster order is favoured).
    Convention: see `tube_mask`. V-JEPA uses two masks of a clip: blocks=8, scale=0.15 and blocks=2, scale=0.7.
    Args:
        blocks: rectangles per sample, at most 128.
        scale: share of the frame that one rectangle covers, in (0, 1].
        aspect: least and largest height / width.
        ratio: masked share in [0, 1), int(ratio * H * W) cells a frame; None takes the expected size of the union.
        batch, grid, generator, device, seed, backend: see `tube_mask`.
    Returns:
        mask: TokenMask with int32 `visible_index` [B, Nv] and `masked_index` [B, Nm]; see `tube_mask`.
    Raises:
        ValueError: as `tube_mask`; a number, scale or aspect of blocks that makes no sense.
    Backends: reference, cpu, cuda (sm80+); the same bits on each.
    Source: Bardes et al. 2024, arXiv 2404.08471, section 3.3; differs: equal counts by random moves instead of
        cutting each sample's list at the shortest; each rectangle draws its own aspect.
    Example:
        >>> mask = block_mask(2, (2, 6, 6), blocks=2, scale=0.25, ratio=0.5)
        >>> mask.masked_index.shape
        torch.Size([2, 36])
    """
    frames, cells = _frames_and_cells("block_mask", batch, grid)
    if not 1 <= blocks <= 128 or not 0 < scale <= 1 or not 0 < aspect[0] <= aspect[1]:
        _check.fail("block_mask", "expected blocks in 1..128, scale in (0, 1] and 0 < aspect[0] <= aspect[1].",
                    blocks=blocks, scale=scale, aspect=aspect)  # fmt: skip
    sizes, expected = _block_sizes(grid[1], grid[2], blocks, scale, aspect[0], aspect[1])
    if ratio is None:
        ratio, rule = 0.0, lambda r: min(round(expected), cells - 1)
    else:
        rule = lambda r: int(r * cells)  # noqa: E731
    count = _at_most("block_mask", "ratio", cells, rule)
    blocks = (blocks, *sizes)
    return _make("block_mask", "block", batch, grid, ratio, count, frames, blocks, generator, device, seed, backend)


def score_mask(
    scores: torch.Tensor,
    ratio: Ratio | None = None,
    *,
    count: int | None = None,
    groups: int = 1,
    largest: bool = True,
    grid: tuple[int, int, int] | None = None,
    backend: str | None = None,
) -> TokenMask:
    """Mask the tokens with the largest scores, an exact number of them: the engine below every other mask.

    Convention: equal scores are masked in ascending order of position; NaN counts as the lowest score.
    Args:
        scores: [B, N], any floating or integer dtype, compared as float32.
        ratio: masked share in [0, 1): int(ratio * N / groups) tokens of each group; or a tensor [B] (see `tube_mask`).
        count: instead of `ratio`, the masked tokens of each group.
        groups: N is cut into this many equal runs, each with its own exact count (the frames, for a per-frame choice).
        largest: False masks the lowest scores instead.
        grid: (T, H, W) of the tokens; None takes (groups, 1, N / groups).
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        mask: TokenMask with int32 `visible_index` [B, Nv] and `masked_index` [B, Nm]; see `tube_mask`.
            Not differentiable.
    Raises:
        ValueError: N no multiple of `groups`, a ratio or count that leaves nothing visible, a grid of another size.
    Backends: reference, cpu, cuda (sm80+); the same bits on each.
    Source: own; used by importance and motion guided masking.
    Example:
        >>> score_mask(torch.tensor([[0.1, 0.9, 0.5, 0.5]]), count=2).masked_index.tolist()
        [[1, 2]]
    """
    _check.is_tensor("score_mask", "scores", scores, "[B, N]")
    batch, tokens = scores.shape
    if groups < 1 or tokens == 0 or tokens % groups:
        _check.fail("score_mask", "expected N >= 1 to be a multiple of `groups`.", scores=scores, groups=groups)
    if (ratio is None) == (count is None):
        _check.fail("score_mask", "give either `ratio` or `count`.", ratio=ratio, count=count)
    length = tokens // groups
    if count is None:
        rule = _at_most("score_mask", "ratio", length, lambda r: int(r * length))
    else:
        if not 0 <= count < length:
            _check.fail("score_mask", f"expected `count` in [0, {length}).", count=count)
        ratio, rule = 0.0, lambda r: count
    if grid is None:
        grid = (groups, 1, length)
    else:
        grid = check_grid("score_mask", scores, grid)
    counts, low, high = _counts("score_mask", batch, ratio, rule, scores.device, None)
    scores = scores.detach().float()
    visible, masked = _score_mask(scores, counts, groups, low, high, largest, backend=backend)
    return _with_counts(visible, masked, grid, counts, groups, length)


def _make(name, kind, batch, grid, ratio, count, times, blocks, generator, device, seed, backend) -> TokenMask:
    if device is None:
        device = seed.device if seed is not None else generator.device if generator is not None else None
    if seed is None:
        # Stays on the device: no host synchronisation, and a CUDA graph replays it with fresh numbers.
        seed = torch.randint(2**63 - 1, (1,), generator=generator, device=device)
    elif seed.dtype is not torch.int64 or seed.shape != (1,):
        _check.fail(name, "expected `seed` of shape [1] and dtype int64.", seed=seed)
    counts, low, high = _counts(name, batch, ratio, count, seed.device, generator)
    visible, masked = _token_mask(seed, counts, kind, batch, grid, low, high, blocks, backend=backend)
    return _with_counts(visible, masked, grid, counts, times, math.prod(grid) // times)


def _with_counts(visible, masked, grid, counts, times: int, length: int) -> TokenMask:
    if counts is None:
        return TokenMask(visible, masked, grid)
    return TokenMask(visible, masked, grid, (length - counts) * times, counts * times)


def _counts(name, batch, ratio, count_of: Callable[[float], int], device, generator):
    """(counts per sample or None, least, largest) of one selection."""
    if isinstance(ratio, float | int):
        count = count_of(ratio)
        return None, count, count
    if isinstance(ratio, tuple) and len(ratio) == 2:
        low, high = count_of(ratio[0]), count_of(ratio[1])
        if low > high:
            _check.fail(name, "expected a range (low, high) with low <= high.", ratio=ratio)
        return torch.randint(low, high + 1, (batch,), generator=generator, device=device, dtype=torch.int32), low, high
    if isinstance(ratio, torch.Tensor) and ratio.shape == (batch,):
        each = [count_of(r) for r in ratio.tolist()]
        return torch.tensor(each, dtype=torch.int32, device=device), min(each, default=0), max(each, default=0)
    _check.fail(name, "expected `ratio` to be a number, a range (low, high) or a tensor [B].", ratio=ratio, batch=batch)


def _at_most(name: str, argument: str, length: int, rule: Callable[[float], int]) -> Callable[[float], int]:
    """`rule` with its ratio checked, and at least one of `length` left visible."""

    def count_of(ratio: float) -> int:
        if not 0 <= ratio < 1:
            _check.fail(name, f"expected `{argument}` in [0, 1).", **{argument: ratio})
        count = rule(ratio)
        if count >= length:
            _check.fail(name, f"nothing is left visible: {count} of {length} tokens would be masked.",
                        "take a smaller ratio.", **{argument: ratio})  # fmt: skip
        return count

    return count_of


def _frames_and_cells(name: str, batch: int, grid: Sequence[int]) -> tuple[int, int]:
    if len(grid) != 3 or min(grid) < 1:
        _check.fail(name, "expected `grid` to be three positive sizes (T, H, W).", grid=grid)
    if batch < 0:
        _check.fail(name, "expected `batch` >= 0.", batch=batch)
    return grid[0], grid[1] * grid[2]


@functools.lru_cache(maxsize=64)
def _block_sizes(
    height: int, width: int, blocks: int, scale: float, low: float, high: float
) -> tuple[tuple[int, ...], float]:
    """Height and width of a block for each step of the aspect, and the expected number of cells that a union covers.

    A list of whole numbers instead of a formula on the device: every backend then draws the same rectangles.
    """
    area = int(scale * height * width)
    sizes, outside = [], [[0.0] * width for _ in range(height)]

    def chance(place: int, size: int, extent: int) -> float:
        """Share of the starts 0..extent-size whose block reaches over `place`."""
        return (min(place, extent - size) - max(0, place - size + 1) + 1) / (extent - size + 1)

    for i in range(_ASPECTS):
        aspect = low + (high - low) * (i + 0.5) / _ASPECTS
        h = min(max(round(math.sqrt(area * aspect)), 1), height)
        w = min(max(round(math.sqrt(area / aspect)), 1), width)
        sizes += [h, w]
        for y in range(height):
            for x in range(width):
                outside[y][x] += (1 - chance(y, h, height) * chance(x, w, width)) / _ASPECTS
    return tuple(sizes), height * width - sum(p**blocks for row in outside for p in row)
