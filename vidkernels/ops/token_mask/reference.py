"""Plain torch, the oracle: Philox in int64 arithmetic, score fields, and the selection of an exact count.

A score field gives every candidate a 32-bit score; the `count` smallest by (score, position) are masked. Positions
differ, so every count is exact and ties need no luck.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

CELLS, SAMPLE = 0, 1
"""Last word of the Philox counter: scores of cells, draws that a whole sample shares."""

_LOW = 0xFFFFFFFF


def philox4x32(counter: Sequence[torch.Tensor | int], key: Sequence[torch.Tensor | int]) -> tuple[torch.Tensor, ...]:
    """Philox4x32-10 (Salmon et al. 2011) of broadcastable int64 tensors that hold 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap, which leaves both 32-bit halves right.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((b >> 32) & _LOW) ^ c1 ^ k0, b & _LOW, ((a >> 32) & _LOW) ^ c3 ^ k1, a & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def layout(kind: str, grid: Sequence[int]) -> tuple[int, int, int]:
    """(groups, length, repeat): `groups` selections of `length` candidates each, one after the other along the token
    axis; or one selection that `repeat` frames share."""
    frames, cells = grid[0], grid[1] * grid[2]
    return {
        "tube": (1, cells, frames),
        "random": (1, frames * cells, 1),
        "running_cell": (frames, cells, 1),
        "block": (1, cells, frames),
    }[kind]


def _key(seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return seed[0] & _LOW, (seed[0] >> 32) & _LOW


def _random_words(seed: torch.Tensor, batch: int, groups: int, length: int) -> torch.Tensor:
    """[B, groups, length]: word p % 4 of counter (p // 4, group, sample, CELLS)."""
    calls = (length + 3) // 4
    arange = lambda n: torch.arange(n, device=seed.device)  # noqa: E731
    counter = (arange(calls), arange(groups)[:, None], arange(batch)[:, None, None], seed.new_tensor(CELLS))
    words = torch.stack(torch.broadcast_tensors(*philox4x32(counter, _key(seed))), -1)
    return words.expand(batch, groups, calls, 4).reshape(batch, groups, calls * 4)[..., :length]


def _sample_words(seed: torch.Tensor, batch: int, draws: int) -> torch.Tensor:
    """[B, draws, 4]: counter (draw, 0, sample, SAMPLE)."""
    draw, sample = torch.arange(draws, device=seed.device), torch.arange(batch, device=seed.device)[:, None]
    words = philox4x32((draw, seed.new_tensor(0), sample, seed.new_tensor(SAMPLE)), _key(seed))
    return torch.stack(torch.broadcast_tensors(*words), -1).expand(batch, draws, 4)


def _below(word: torch.Tensor, bound: torch.Tensor | int) -> torch.Tensor:
    return (word * bound) >> 32


def _running_cell_class(seed: torch.Tensor, batch: int, grid: Sequence[int]) -> torch.Tensor:
    """[B, T, H*W] in 0..3: the place of a cell in its group's cycle; one step a frame, from a random start."""
    frames, height, width = grid
    y = torch.arange(height, device=seed.device)[:, None]
    x = torch.arange(width, device=seed.device)
    if height == 1 or width == 1:
        place = (x + y) % 4  # a 2 x 2 group would have empty corners: go round along the line instead
    else:
        place = y % 2 * 2 + x % 2
    phase = _sample_words(seed, batch, 1)[:, :, :1]  # [B, 1, 1]
    return (place.flatten() + torch.arange(frames, device=seed.device)[:, None] + phase) & 3


def _in_a_block(seed: torch.Tensor, batch: int, grid: Sequence[int], blocks: Sequence[int]) -> torch.Tensor:
    """[B, H*W]: covered by one of blocks[0] rectangles; their (height, width) are drawn from blocks[1:]."""
    _, height, width = grid
    sizes = torch.tensor(list(blocks[1:]), device=seed.device, dtype=torch.int64).view(-1, 2)
    words = _sample_words(seed, batch, blocks[0])
    h, w = sizes[_below(words[..., 0], len(sizes))].unbind(-1)
    top, left = _below(words[..., 1], height - h + 1), _below(words[..., 2], width - w + 1)
    y = torch.arange(height, device=seed.device)[:, None]
    x = torch.arange(width, device=seed.device)
    at = lambda v: v[..., None, None]  # noqa: E731
    inside = (y >= at(top)) & (y < at(top + h)) & (x >= at(left)) & (x < at(left + w))
    return inside.any(1).flatten(1)


def _select(scores: torch.Tensor, counts: torch.Tensor | None, repeat: int, low: int, high: int):
    """[B, groups, length] scores -> padded ascending indices of the visible and of the masked tokens."""
    batch, groups, length = scores.shape
    if counts is None:
        counts = torch.full((batch,), high, device=scores.device)
    counts = counts.long().clamp(low, high)
    order = scores.argsort(dim=-1, stable=True)
    rank = torch.empty_like(order).scatter_(-1, order, torch.arange(length, device=order.device).expand_as(order))
    tokens = groups * repeat * length
    masked = (rank < counts[:, None, None])[:, :, None].expand(-1, -1, repeat, -1).reshape(batch, tokens)
    place = torch.arange(tokens, device=scores.device)

    def ascending(chosen, width):
        index = torch.where(chosen, place, tokens).sort(-1).values[:, :width]
        return torch.where(index < tokens, index, -1).int()

    times = groups * repeat
    return ascending(~masked, times * (length - low)), ascending(masked, times * high)


def token_mask(
    seed: torch.Tensor,
    counts: torch.Tensor | None,
    kind: str,
    batch: int,
    grid: Sequence[int],
    low: int,
    high: int,
    blocks: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    groups, length, repeat = layout(kind, grid)
    scores = _random_words(seed, batch, groups, length)
    if kind == "running_cell":
        scores = (_running_cell_class(seed, batch, grid) << 30) | (scores >> 2)
    elif kind == "block":
        scores = ((~_in_a_block(seed, batch, grid, blocks)).long()[:, None] << 31) | (scores >> 1)
    return _select(scores, counts, repeat, low, high)


def score_mask(
    scores: torch.Tensor, counts: torch.Tensor | None, groups: int, low: int, high: int, largest: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, tokens = scores.shape
    bits = (scores + 0.0).view(torch.int32).long() & _LOW  # + 0.0: both zeros are one score
    rising = torch.where(bits >> 31 == 1, bits ^ _LOW, bits | 0x80000000)
    rising = torch.where(scores.isnan(), 0, rising)
    key = rising ^ _LOW if largest else rising
    return _select(key.view(batch, groups, tokens // groups), counts, 1, low, high)
