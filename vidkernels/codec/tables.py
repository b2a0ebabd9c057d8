"""Frequency tables for signed integers: how they are chosen, stored in few bits and rebuilt exactly.

A table first cuts `shift` low bits off, which are stored raw; then it covers the values low ... low + n - 1 with the
tokens 0 ... n - 1. Any other value is an escape: token n + 2k + side, and k raw bits, where side is 1 below the range,
e >= 0 counts from its edge and k = floor(log2(e + 1)).
The weights of the tokens are explicit, or a Laplace or Gaussian shape or a mixture of two Gaussians with quantised
parameters. All arithmetic that a decoder needs is on integers, so every machine rebuilds the same table.
docs/container.md gives the bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache

import numpy as np

from .bits import BitReader, BitWriter

MAX_DIRECT = 192
ESCAPES = 64
SCALE = 14  # escapes are stored as parts of 2^14
_ONE = 48  # fixed point of the shapes
LEVELS = 48  # widths 2^((level - 12) / 4)
PRECISIONS = (0, 1, 2, 4)  # bits kept below the leading one of an explicit weight
EXPLICIT, LAPLACE, GAUSSIAN, MIXTURE = range(4)
_EXACT = Context(prec=50, rounding=ROUND_HALF_EVEN)


@dataclass(frozen=True)
class Table:
    """n = 0: no symbol has this context. `weights` [n] of an explicit table are relative to each other, `escapes`
    [up to 64] are relative to a total of 2^14 for all direct tokens."""

    low: int
    n: int
    kind: int = EXPLICIT
    precision: int = 0
    weights: tuple[int, ...] = ()
    center: int = 0  # in quarters, from low
    levels: tuple[int, int] = (0, 0)
    share: int = 0  # of the first Gaussian of a mixture, in eighths
    escapes: tuple[int, ...] = ()
    shift: int = 0

    def write(self, out: BitWriter) -> None:
        out.put(self.n, 8)
        if not self.n:
            return
        zigzag = 2 * self.low if self.low >= 0 else -2 * self.low - 1
        out.put(zigzag.bit_length(), 6)
        out.put(zigzag, zigzag.bit_length())
        for number, width in ((self.shift, 5), (len(self.escapes), 7)):
            out.put(number > 0, 1)
            out.put(number, width if number else 0)
        if self.n == 1 and not self.escapes:
            return
        out.put(self.kind, 2)
        out.put(self.precision, 2)
        if self.kind == EXPLICIT:
            _write_weights(out, self.weights, PRECISIONS[self.precision])
        else:
            out.put(self.center, 10)
            out.put(self.levels[0], 6)
            if self.kind == MIXTURE:
                out.put(self.levels[1], 6)
                out.put(self.share, 3)
        if self.escapes:
            _write_weights(out, self.escapes, PRECISIONS[self.precision])

    @classmethod
    def read(cls, bits: BitReader) -> Table:
        n = bits.take(8)
        if n > MAX_DIRECT:
            raise ValueError("a table covers too many values")
        if not n:
            return cls(0, 0)
        zigzag = bits.take(bits.take(6))
        low = zigzag >> 1 if zigzag % 2 == 0 else -(zigzag + 1 >> 1)
        if not -(1 << 31) <= low <= (1 << 31) - n:
            raise ValueError("a table lies outside the 32-bit integers")
        shift, count = (bits.take(width) if bits.take(1) else 0 for width in (5, 7))
        if count > ESCAPES:
            raise ValueError("a table has too many escapes")
        if n == 1 and not count:
            return cls(low, 1, weights=(1,), shift=shift)
        kind, precision = bits.take(2), bits.take(2)
        weights, center, levels, share = (), 0, (0, 0), 0
        if kind == EXPLICIT:
            weights = _read_weights(bits, n, PRECISIONS[precision])
        else:
            center, first = bits.take(10), bits.take(6)
            levels, share = ((first, bits.take(6)), bits.take(3)) if kind == MIXTURE else ((first, 0), 0)
            if max(levels) >= LEVELS or center >= 4 * n:
                raise ValueError("a parameter of a table is out of range")
        escapes = _read_weights(bits, count, PRECISIONS[precision])
        return cls(low, n, kind, precision, weights, center, levels, share, escapes, shift)

    def freqs(self, bits: int) -> np.ndarray:
        """[256] int32 that sum to 2^bits."""
        direct = self.weights or (1,)  # a table that nobody uses still has to sum up
        if self.kind != EXPLICIT:
            direct = shape_weights(self.n, self.kind, self.center, self.levels, self.share)
        total = sum(direct)
        if total == 0 and not any(self.escapes):
            raise ValueError("the weights of a table are all zero")
        scaled = [max((w << SCALE + 10) // total, 1) if w else 0 for w in direct]
        weights = np.array([*scaled, *(e << 10 for e in self.escapes)], np.int64)
        out = np.zeros(256, np.int32)
        out[: len(weights)] = normalize(weights, 1 << bits)
        return out


def normalize(weights: np.ndarray, total: int) -> np.ndarray:
    """Integers that sum to `total`, in proportion to `weights` [at most 256] (below 2^31), at least 1 where the weight
    is positive. The largest remainders are rounded up; too many ones are paid for by the largest frequencies."""
    whole = int(weights.sum())
    freqs, remainders = np.divmod(weights * total, whole)
    freqs = np.maximum(freqs, weights > 0)
    missing = total - int(freqs.sum())
    if missing > 0:
        freqs[np.argsort(-remainders, kind="stable")[:missing]] += 1
    while missing < 0:
        largest = int(np.argmax(freqs))
        take = min(-missing, max(1, int(freqs[largest]) // 8))
        freqs[largest] -= take
        missing += take
    return freqs.astype(np.int32)


@lru_cache(maxsize=256)
def _profile(kind: int, level: int) -> tuple[int, ...]:
    """Weights at 0, 1/4, 2/4, ... from the centre, in parts of 2^48: a power sequence in integers."""
    c = _EXACT
    width = c.sqrt(c.sqrt(c.power(Decimal(2), level)))  # 2^(level / 4); times 1/8 below
    if kind == LAPLACE:
        ratio = _fixed(c.exp(c.divide(Decimal(-2), width)))  # exp(-1 / (4 width/8))
        growth = 1 << _ONE
    else:
        ratio = _fixed(c.exp(c.divide(Decimal(-2), c.multiply(width, width))))  # exp(-1 / (32 (width/8)^2))
        growth = ratio * ratio >> _ONE
    out, value = [], 1 << _ONE
    for _ in range(4 * MAX_DIRECT):
        out.append(value)
        value, ratio = value * ratio >> _ONE, ratio * growth >> _ONE
    return tuple(out)


def _fixed(value: Decimal) -> int:
    return int(_EXACT.multiply(value, Decimal(1 << _ONE)).to_integral_value(ROUND_HALF_EVEN, _EXACT))


def shape_weights(n: int, kind: int, center: int, levels: tuple[int, int], share: int) -> list[int]:
    """Weights [n] of a shape, at least 1."""
    at = [abs(4 * i - center) for i in range(n)]
    if kind != MIXTURE:
        profile = _profile(kind, levels[0])
        return [max(1, profile[d]) for d in at]
    first, second = _profile(GAUSSIAN, levels[0]), _profile(GAUSSIAN, levels[1])
    sums = sum(first[d] for d in at), sum(second[d] for d in at)
    a, b = (share << _ONE) // max(sums[0], 1), (8 - share << _ONE) // max(sums[1], 1)
    return [max(1, first[d] * a + second[d] * b >> 16) for d in at]


def _write_weights(out: BitWriter, weights: tuple[int, ...], precision: int) -> None:
    before = 0
    for w in weights:
        size = w.bit_length()
        change = size - before
        out.unary(2 * change if change >= 0 else -2 * change - 1)
        kept = min(precision, max(size - 1, 0))
        if kept:
            out.put((w >> size - 1 - kept) & ((1 << kept) - 1), kept)
        before = size


def _read_weights(bits: BitReader, count: int, precision: int) -> tuple[int, ...]:
    out, size = [], 0
    for _ in range(count):
        code = bits.unary(2 * SCALE + 4)
        size += code >> 1 if code % 2 == 0 else -(code + 1 >> 1)
        if not 0 <= size <= SCALE + 1:
            raise ValueError("a weight of a table is out of range")
        kept = min(precision, max(size - 1, 0))
        out.append(rounded(1 << size - 1 | bits.take(kept) << size - 1 - kept, precision) if size else 0)
    return tuple(out)


def rounded(weight: int, precision: int) -> int:
    """The weight that a decoder puts in place of `weight`: the middle of those with the same leading bits."""
    drop = weight.bit_length() - 1 - precision
    return weight if drop <= 0 else (weight >> drop << drop) + (1 << drop - 1)
