"""The cheapest table for a histogram: tables and symbols counted together, in bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from . import tables as T
from .bits import BitWriter
from .tables import Table

_CUTS = (1e-3, 1e-2, 5e-2)  # shares of the symbols that windows leave to the escapes, on each side
_MIXTURE_FROM = 256  # symbols; fewer do not pay for looking
_REMEMBERED = 512  # different values, at most, of a histogram whose table is remembered
_SMALLEST = 64  # bits of a parametric table, about
_HEAD = 24  # bits in front of the weights, about


@dataclass(frozen=True)
class Histogram:
    """Counts of the tokens of one window."""

    low: int
    direct: np.ndarray  # [n]
    escapes: np.ndarray  # [up to 64], the last one positive
    raw_bits: int
    shift: int

    def bound(self) -> float:
        """Bits below which no table of this window comes."""
        counts = np.concatenate([self.direct, self.escapes])
        counts = counts[counts > 0]
        return float(-(counts @ np.log2(counts / counts.sum()))) + self.raw_bits

    def cost(self, table: Table, bits: int) -> float:
        """Bits of the table and of the symbols by it."""
        freqs = table.freqs(bits)
        counts = np.concatenate([self.direct, self.escapes])
        used = counts > 0
        coded = float(counts[used] @ (bits - np.log2(freqs[: len(counts)][used]))) + self.raw_bits
        head = BitWriter()
        table.write(head)
        return coded + len(head)


def escape_of(
    values: np.ndarray, low: np.ndarray | int, n: np.ndarray | int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(token - n, raw value, raw width) of int64 values outside low ... low + n - 1."""
    below = values < low
    excess = np.where(below, low - 1 - values, values - low - n) + 1
    k = np.frexp(excess.astype(np.float64))[1] - 1  # floor(log2), exact below 2^53
    return 2 * k + below, excess - (np.int64(1) << k.astype(np.int64)), k


def fit(values: np.ndarray, counts: np.ndarray, bits: int) -> Table:
    """The cheapest table for `counts` [m] of the different, sorted `values` [m] int64."""
    if not len(values):
        return Table(0, 0)
    if len(values) > _REMEMBERED:
        return _fit(values, counts, bits)
    return _again(values.astype(np.int64).tobytes(), counts.astype(np.int64).tobytes(), bits)


@lru_cache(maxsize=512)
def _again(values: bytes, counts: bytes, bits: int) -> Table:
    """A coder that tries several ways to share tables asks for the same ones again and again."""
    return _fit(np.frombuffer(values, np.int64), np.frombuffer(counts, np.int64), bits)


def _fit(values: np.ndarray, counts: np.ndarray, bits: int) -> Table:
    best, price = None, np.inf
    for shift, low, n in sorted(_windows(values, counts)):
        seen = _histogram(values, counts, shift, low, n)
        if seen.bound() < price:
            table, cost = _cheapest(seen, bits)
            if best is None or cost < price:
                best, price, window = table, cost, seen
    if counts.sum() >= _MIXTURE_FROM and best.n > 2 and price > 1.01 * window.bound() + _SMALLEST:
        table = _mixture(window)
        if window.cost(table, bits) < window.cost(best, bits):
            best = table
    return best


def _windows(values: np.ndarray, counts: np.ndarray) -> set[tuple[int, int, int]]:
    """(shift, low, n): the middle of the values, whole or cut to the most that a table covers."""
    below, most = np.cumsum(counts), T.MAX_DIRECT
    found = set()
    for cut in (0, *_CUTS):
        low = int(values[np.searchsorted(below, cut * below[-1])])
        high = int(values[np.searchsorted(below, (1 - cut) * below[-1])])
        shift = 0
        while (high >> shift) - (low >> shift) >= most:
            shift += 1
        found.add((shift, low >> shift, (high >> shift) - (low >> shift) + 1))
        if shift and cut:
            middle = int(values[np.searchsorted(below, 0.5 * below[-1])])
            low = max(low, middle - most // 2)
            found.add((0, low, min(high, low + most - 1) - low + 1))
    return found


def _histogram(values: np.ndarray, counts: np.ndarray, shift: int, low: int, n: int) -> Histogram:
    raw = shift * int(counts.sum())
    values = values >> shift
    inside = (values >= low) & (values < low + n)
    direct = np.bincount(values[inside] - low, counts[inside], minlength=n).astype(np.int64)
    tokens, _, widths = escape_of(values[~inside], low, n)
    escapes = np.bincount(tokens, counts[~inside]).astype(np.int64) if len(tokens) else np.zeros(0, np.int64)
    return Histogram(low, direct, escapes, raw + int(widths @ counts[~inside]), shift)


def _cheapest(h: Histogram, bits: int) -> tuple[Table, float]:
    """The cheapest explicit or one-shape table of a window, and what it costs up to the rounding of frequencies."""
    n, total = len(h.direct), int(h.direct.sum())
    stored = _parts(h.escapes, total, T.SCALE + 1)
    if n == 1 and not len(stored):
        return Table(h.low, 1, weights=(1,), shift=h.shift), h.raw_bits + float(_HEAD)
    parts = _parts(h.direct, total, T.SCALE)
    weights, escapes, heads, tables = [], [], [], []
    for index, kept in enumerate(T.PRECISIONS):
        weights.append(_rounded(parts, kept))
        escapes.append(_rounded(stored, kept))
        heads.append(_stored_bits(parts, kept) + _stored_bits(stored, kept))
        tables.append(Table(h.low, n, precision=index, shift=h.shift))
    if n > 2:
        center, spread, deviation = _moments(h.direct)
        far = np.abs(4.0 * np.arange(n) - center)
        basis = Table(h.low, n, precision=1, center=center, shift=h.shift)
        rare = _rounded(stored, T.PRECISIONS[1])
        head = 16 + _stored_bits(stored, T.PRECISIONS[1])
        for kind, width in ((T.LAPLACE, deviation), (T.GAUSSIAN, spread)):
            level = round(4 * np.log2(max(width, 0.1))) + 12
            for near in range(level - 2, level + 3):
                near = min(max(near, 0), T.LEVELS - 1)
                quarters = 2 ** (near / 4)  # eight times as many as the width
                power = far / quarters if kind == T.LAPLACE else (far / quarters) ** 2
                weights.append(np.exp(-2 * power) + 2.0**-48)
                escapes.append(rare)
                heads.append(head)
                tables.append(replace(basis, kind=kind, levels=(near, 0)))
    shares = np.array(weights, np.float64)
    shares *= (1 << T.SCALE) / shares.sum(1, keepdims=True)
    shares = np.concatenate([shares, np.array(escapes, np.float64)], 1)
    counts = np.concatenate([h.direct, h.escapes])
    used = counts > 0
    chances = np.maximum(shares[:, used] / shares.sum(1, keepdims=True), 0.5**bits)
    costs = h.raw_bits + _HEAD + np.array(heads) - np.log2(chances) @ counts[used]
    k = int(np.argmin(costs))
    explicit = tuple(weights[k].tolist()) if tables[k].kind == T.EXPLICIT else ()
    return replace(tables[k], weights=explicit, escapes=tuple(escapes[k].tolist())), float(costs[k])


def _parts(counts: np.ndarray, total: int, most: int) -> np.ndarray:
    return np.where(counts > 0, np.clip((counts << T.SCALE) // max(total, 1), 1, (1 << most) - 1), 0)


def _sizes(weights: np.ndarray) -> np.ndarray:
    return np.frexp(weights.astype(np.float64))[1].astype(np.int64)


def _rounded(weights: np.ndarray, kept: int) -> np.ndarray:
    """`tables.rounded` of each."""
    drop = np.maximum(_sizes(weights) - 1 - kept, 0)
    return (weights >> drop << drop) + (1 << drop >> 1)


def _stored_bits(weights: np.ndarray, kept: int) -> int:
    """Bits that a table writes them in."""
    sizes = _sizes(weights)
    change = sizes.copy()
    change[1:] -= sizes[:-1]
    each = 2 * np.abs(change) + (change >= 0) + np.minimum(np.maximum(sizes - 1, 0), kept)
    return int(each.sum())


def _moments(direct: np.ndarray) -> tuple[int, float, float]:
    """(centre in quarters, standard deviation, mean distance from the centre)."""
    at, share = np.arange(len(direct)), direct / direct.sum()
    mean = float(at @ share)
    spread = float(np.sqrt((at - mean) ** 2 @ share))
    return min(max(round(4 * mean), 0), 4 * len(direct) - 1), spread, float(np.abs(at - mean) @ share)


@lru_cache(maxsize=1)
def _gaussians() -> np.ndarray:
    """[levels, quarters] float weights, every second level."""
    quarters = np.arange(4 * T.MAX_DIRECT)[None, :] / 4
    sigma = 2 ** ((np.arange(0, T.LEVELS, 2)[:, None] - 12) / 4)
    return np.exp(-0.5 * (quarters / sigma) ** 2)


def _mixture(h: Histogram) -> Table:
    n, (center, _, _) = len(h.direct), _moments(h.direct)
    shapes = _gaussians()[:, np.abs(4 * np.arange(n) - center)] + 1e-9
    shapes /= shapes.sum(1, keepdims=True)
    used = h.direct > 0
    shapes, counts = shapes[:, used], h.direct[used]
    best, price = (0, 1, 1), np.inf
    for share in range(1, 8):
        mixed = share / 8 * shapes[:, None, :] + (1 - share / 8) * shapes[None, :, :]
        costs = -np.log2(mixed) @ counts
        costs[np.tril_indices(len(costs))] = np.inf
        found = np.unravel_index(np.argmin(costs), costs.shape)
        if costs[found] < price:
            best, price = (*found, share), costs[found]
    stored = tuple(_rounded(_parts(h.escapes, int(h.direct.sum()), T.SCALE + 1), 1).tolist())
    levels = 2 * int(best[0]), 2 * int(best[1])
    return Table(h.low, n, T.MIXTURE, 1, (), center, levels, best[2], stored, h.shift)
