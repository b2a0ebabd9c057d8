"""Banzhaf interaction: how much two players gain by joining a coalition together rather than one by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vidkernels import _check

__all__ = ["banzhaf_interaction", "late_interaction_banzhaf", "late_interaction_value"]

_MOST = 20  # players of an enumeration: a million coalitions
_BLOCK = 1 << 14  # coalitions given to the game at a time
_BLOCK_VALUES = 1 << 24  # similarities compared at a time: 64 MB in float32

Game = Callable[[Tensor], Tensor]


def banzhaf_interaction(
    game: Game,
    players: int,
    *,
    pairs: Tensor | None = None,
    samples: int | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Pairwise Banzhaf interaction of the players of any game, by enumeration or by sampling.

    I(i, j) = mean over coalitions C of the others of v(C + i + j) - v(C + i) - v(C + j) + v(C)
    Convention: exact: with signs s = +1 for a player inside and -1 outside, I(i, j) = 4 mean over all coalitions of
        s_i s_j v. Sampled: coalitions are drawn with their complements (antithetic), and all pairs share them: one
        coalition costs 1 + P + (number of pairs) values instead of four a pair.
    Args:
        game: takes coalitions [M, P] bool (True = inside) and returns their values [M, ...], floating point; trailing
            axes are games played at once.
        players: P, at most 20 without `samples`.
        pairs: [R, 2], integers, two different players each; None: all pairs.
        samples: number of coalitions drawn, rounded up to an even number; None: all 2^P.
        generator: source of the samples; None uses torch's default one.
        device: where coalitions are made; None takes that of `generator` or `pairs`, else torch's default.
    Returns:
        interaction: [P, P, ...] with zeros for i = j, or [R, ...] for the pairs given. Differentiable in what the
            game's values depend on.
    Raises:
        ValueError: fewer than two or too many players; wrong pairs; a game whose values do not fit.
    Backends: reference (plain torch). Deterministic: yes, given the generator's state.
    Source: Grabisch and Roubens 1999, "An axiomatic approach to the concept of interaction among players"; used by Jin
        et al. 2023, arXiv 2303.14369.
    Example:
        >>> both_needed = lambda c: (c[:, 0] & c[:, 1]).float()  # and a third player who does nothing
        >>> banzhaf_interaction(both_needed, 3).tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    name = "banzhaf_interaction"
    if players < 2 or (samples is None and players > _MOST):
        _check.fail(name, f"expected 2 to {_MOST} `players`, or `samples`.",
                    "pass samples=2000: the error falls with the square root of it.", players=players)  # fmt: skip
    if samples is not None and samples < 1:
        _check.fail(name, "expected at least one sample.", samples=samples)
    if pairs is not None:
        _check.is_tensor(name, "pairs", pairs, "[R, 2]")
        if pairs.shape[1] != 2 or bool(((pairs < 0) | (pairs >= players)).any() | (pairs[:, 0] == pairs[:, 1]).any()):
            _check.fail(name, "expected `pairs` [R, 2] of two different players each.", pairs=pairs, players=players)
    if device is None:
        device = generator.device if generator is not None else None if pairs is None else pairs.device
    if pairs is None:
        first, second = torch.triu_indices(players, players, 1, device=device)
    else:
        first, second = pairs.to(device=device, dtype=torch.int64).unbind(1)
    if samples is None:
        out = _enumerate(game, players, first, second, device)
    else:
        out = _sample(game, players, first, second, samples, generator, device)
    if pairs is not None:
        return out
    square = out.new_zeros(players, players, *out.shape[1:])
    return square.index_put((first, second), out).index_put((second, first), out)


def _values(game: Game, coalitions: Tensor) -> Tensor:
    parts = []
    for part in coalitions.split(_BLOCK):
        value = game(part)
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape[:1] != part.shape[:1]:
            got = f"{list(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            _check.fail("banzhaf_interaction", f"expected the game's values [M, ...], floating point, got {got}.",
                        coalitions=part)  # fmt: skip
        parts.append(value)
    return torch.cat(parts)


def _enumerate(game: Game, players: int, first: Tensor, second: Tensor, device) -> Tensor:
    total = None
    bits = torch.arange(players, device=device)
    for start in range(0, 1 << players, _BLOCK):
        number = torch.arange(start, min(start + _BLOCK, 1 << players), device=device)
        inside = (number[:, None] >> bits) & 1 == 1
        value = _values(game, inside)
        sign = (inside[:, first] == inside[:, second]).to(value.dtype) * 2 - 1  # [M, R]
        part = torch.tensordot(sign, value, dims=([0], [0]))
        total = part if total is None else total + part
    return total * (4 / (1 << players))


def _sample(game: Game, players: int, first: Tensor, second: Tensor, samples: int, generator, device) -> Tensor:
    half = -(-samples // 2)
    drawn = torch.rand(half, players, generator=generator, device=device) < 0.5
    total, step = None, max(1, _BLOCK // (1 + players + len(first)))
    # What is toggled: nobody, each player, each pair.
    toggles = torch.zeros(1 + players + len(first), players, dtype=torch.bool, device=first.device)
    rows = torch.arange(players, device=first.device)
    toggles[1 + rows, rows] = True
    rows = 1 + players + torch.arange(len(first), device=first.device)
    toggles[rows, first], toggles[rows, second] = True, True
    for part in drawn.split(step):
        both = torch.cat([part, ~part])
        value = _values(game, (both[:, None] ^ toggles).flatten(0, 1)).unflatten(0, (len(both), len(toggles)))
        change = value[:, :1] - value[:, 1 + first] - value[:, 1 + second] + value[:, 1 + players :]
        sign = (both[:, first] == both[:, second]).to(value.dtype) * 2 - 1
        part_sum = (sign.reshape(*sign.shape, *[1] * (value.dim() - 2)) * change).sum(0)
        total = part_sum if total is None else total + part_sum
    return total / (2 * half)


def late_interaction_value(
    similarity: Tensor,
    row_weight: Tensor,
    column_weight: Tensor,
    inside: Tensor | None = None,
    *,
    row_mask: Tensor | None = None,
    column_mask: Tensor | None = None,
) -> Tensor:
    """Weighted max-pool late interaction of a coalition of rows (words) and columns (frames).

    v(C) = 0.5 * (sum over rows t in C of w_t max over columns v in C of s_tv + the same with rows and columns swapped)
    Convention: players count rows first, then columns; the best of no partner is 0, so an empty side is worth 0.
    Args:
        similarity: [B, T, V], floating point.
        row_weight: [B, T]; column_weight: [B, V]. Usually softmax over their axis.
        inside: [M, T + V] bool, M coalitions for every sample; or None: everybody.
        row_mask: [B, T]; column_mask: [B, V], bool, True = there; others belong to no coalition. None: all are there.
    Returns:
        value: [M, B], or [B] for everybody. Differentiable in similarity and weights.
    Raises:
        ValueError: shapes that do not fit.
    Backends: reference (plain torch). Deterministic: yes.
    Source: Jin et al. 2023, arXiv 2303.14369, equation 3 (weights as there; coalitions mask both sides).
    Example:
        >>> s = torch.tensor([[[1.0, 3.0]]])
        >>> late_interaction_value(s, torch.ones(1, 1), torch.tensor([[0.5, 0.5]]))
        tensor([2.5000])
    """
    name = "late_interaction_value"
    row_mask, column_mask = _fits(name, similarity, row_weight, column_weight, row_mask, column_mask)
    batch, rows, columns = similarity.shape
    if inside is None:
        everybody = torch.ones(1, rows + columns, dtype=torch.bool, device=similarity.device)
        how = {"row_mask": row_mask, "column_mask": column_mask}
        return late_interaction_value(similarity, row_weight, column_weight, everybody, **how)[0]
    if inside.dim() != 2 or inside.shape[1] != rows + columns or inside.dtype is not torch.bool:
        _check.fail(name, f"expected `inside` [M, {rows + columns}] bool.", similarity=similarity, inside=inside)
    if rows == 0 or columns == 0:
        return similarity.new_zeros(len(inside), batch)
    parts = []
    for part in inside.split(max(1, _BLOCK_VALUES // max(1, similarity.numel()))):
        mine = part[:, None, :rows] & row_mask  # [M, B, T]
        others = part[:, None, rows:] & column_mask
        by_row = _best_partner(similarity, others) * row_weight * mine
        by_column = _best_partner(similarity.transpose(1, 2), mine) * column_weight * others
        parts.append(0.5 * (by_row.sum(2) + by_column.sum(2)))
    return torch.cat(parts) if parts else similarity.new_zeros(0, batch)


def _best_partner(s: Tensor, there: Tensor) -> Tensor:
    """[B, T, V] and who of V is there, [M, B, V] -> [M, B, T]; 0 where nobody is."""
    best = s.masked_fill(~there[:, :, None], -torch.inf).amax(3)
    return torch.where(there.any(2, keepdim=True), best, 0)


def late_interaction_banzhaf(
    similarity: Tensor,
    row_weight: Tensor,
    column_weight: Tensor,
    *,
    row_mask: Tensor | None = None,
    column_mask: Tensor | None = None,
) -> Tensor:
    """Exact Banzhaf interaction of every row (word) with every column (frame) in the max-pool late interaction game.

    The game of `late_interaction_value` is a sum over rows and over columns, so joining row t and column v changes two
    terms only. With s(0) >= s(1) >= ... the similarities of row t, and column v at place r among them,
        I(t, v) = 0.5 * (w_t 2^-r (s(r) - sum over q > r of 2^(r - q) s(q)) + the same for column v)
    because the best of a random coalition is s(q) with probability 2^-(q + 1). No coalition is listed or drawn.
    Args:
        similarity: [B, T, V], floating point.
        row_weight: [B, T]; column_weight: [B, V].
        row_mask: [B, T]; column_mask: [B, V], bool, True = there. None: all are there.
    Returns:
        interaction: [B, T, V], 0 for pairs that are not there. Differentiable in similarity and weights.
    Raises:
        ValueError: shapes that do not fit.
    Backends: reference (plain torch: two sorts and two cumulative sums). Deterministic: yes.
    Source: Jin et al. 2023, arXiv 2303.14369, equations 2 and 3; differs: they are solved instead of sampled (equal to
        `banzhaf_interaction` of that game).
    Example:
        >>> late_interaction_banzhaf(torch.tensor([[[2.0]]]), torch.ones(1, 1), torch.ones(1, 1))
        tensor([[[2.]]])
    """
    name = "late_interaction_banzhaf"
    row_mask, column_mask = _fits(name, similarity, row_weight, column_weight, row_mask, column_mask)
    by_row = _expected_gain(similarity, column_mask[:, None]) * row_weight[:, :, None]
    by_column = _expected_gain(similarity.transpose(1, 2), row_mask[:, None]).transpose(1, 2) * column_weight[:, None]
    return 0.5 * (by_row + by_column) * (row_mask[:, :, None] & column_mask[:, None])


def _expected_gain(s: Tensor, there: Tensor) -> Tensor:
    """[..., V] -> [..., V]: how much a member raises the maximum of a random coalition of the others (0 if empty)."""
    ordered, place = s.masked_fill(~there, -torch.inf).sort(dim=-1, descending=True, stable=True)
    # Those not there come last, so the ranks of the rest stand.
    ordered = torch.where(there.expand_as(s).gather(-1, place), ordered, 0)
    halves = torch.exp2(-torch.arange(s.shape[-1], device=s.device).to(s.dtype))
    worth = ordered * halves
    after = worth.flip(-1).cumsum(-1).flip(-1) - worth  # sum over q > r
    return torch.zeros_like(s).scatter(-1, place, worth - after)


def _fits(name: str, similarity: Tensor, row_weight: Tensor, column_weight: Tensor, row_mask, column_mask):
    _check.is_tensor(name, "similarity", similarity, "[B, T, V]")
    batch, rows, columns = similarity.shape
    if row_weight.shape != (batch, rows) or column_weight.shape != (batch, columns):
        _check.fail(name, "expected `row_weight` [B, T] and `column_weight` [B, V].",
                    similarity=similarity, row_weight=row_weight, column_weight=column_weight)  # fmt: skip
    masks = []
    for mask, size, label in ((row_mask, rows, "row_mask"), (column_mask, columns, "column_mask")):
        if mask is None:
            mask = torch.ones(batch, size, dtype=torch.bool, device=similarity.device)
        elif mask.shape != (batch, size) or mask.dtype is not torch.bool:
            _check.fail(name, f"expected `{label}` [B, {size}] bool.", similarity=similarity, **{label: mask})
        masks.append(mask)
    return masks
