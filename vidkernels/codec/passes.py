"""Entropy coding in passes: what codes a later pass's symbols may depend on all symbols of the earlier ones.

    data = encode_passes([(symbols, contexts), ...])
    reader = PassReader(data)
    first = reader.take(len(first), contexts)           # then the contexts of the next pass can be worked out

All passes share the tables, one for each context. See entropy.py for the coder.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .bits import BitReader, BitWriter, pack_fields, pack_varint, unpack_varint
from .entropy import columns, histograms, raw_widths, tokenised, valued
from .fit import fit
from .rans import LOW, rans_decode, rans_encode
from .tables import Table

_BITS = 14
_WIDE = 32  # lanes of a long pass; a short one has one, whose state costs 4 bytes instead of 128
_WIDE_FROM = 1 << 15  # symbols
_SEEN = 256  # symbols from -256 to 255 are told apart by an estimate
_TABLE, _WEIGHT = 25.0, 5.0  # bits of a table and of each symbol in it, about


def encode_passes(passes: Sequence[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Code [(symbols [count] int32, contexts [count] uint8)]; the contexts are what the decoder can tell by then."""
    values = np.concatenate([np.zeros(0, np.int32), *(s for s, _ in passes)]).astype(np.int64)
    contexts = np.concatenate([np.zeros(0, np.uint8), *(c for _, c in passes)])
    count = int(contexts.max()) + 1 if len(contexts) else 1
    tables = [fit(*histogram, _BITS) for histogram in histograms(values, contexts, count)]
    head = BitWriter()
    for table in tables:
        table.write(head)
    packed, freqs = head.to_bytes(), np.stack([table.freqs(_BITS) for table in tables])
    out = [bytes([count - 1]), pack_varint(len(packed)), packed]
    for symbols, of in passes:
        tokens, raw, widths = tokenised(symbols.astype(np.int64), of, tables)
        lanes = _WIDE if len(symbols) >= _WIDE_FROM else 1
        states, words = rans_encode(tokens, of, freqs, _BITS, lanes)
        certain = not words and bool((states == LOW).all())
        out.append(pack_varint(0 if certain else len(words) // 2 + 1))
        if not certain:
            out += [states.astype("<i4").tobytes(), words]
        out.append(pack_fields(raw, widths))
    return b"".join(out)


class Estimate:
    """Bytes that passes take together, nearly, without coding them: the entropy of what was seen, and the tables."""

    def __init__(self):
        self._counts = np.zeros((256, 2 * _SEEN), np.int64)

    def add(self, passes: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        for symbols, contexts in passes:
            at = np.clip(symbols, -_SEEN, _SEEN - 1) + _SEEN + contexts.astype(np.int64) * 2 * _SEEN
            self._counts += np.bincount(at, minlength=self._counts.size).reshape(self._counts.shape)

    def bytes(self) -> int:
        counts, totals = self._counts[self._counts > 0], self._counts.sum(1)
        totals = totals[totals > 0]
        bits = totals @ np.log2(totals) - counts @ np.log2(counts) + _TABLE * len(totals) + _WEIGHT * len(counts)
        return int(bits / 8)


class PassReader:
    """Passes in the order they were coded. Raises ValueError where the bytes are damaged."""

    def __init__(self, data: bytes | memoryview):
        self._data = memoryview(data).cast("B")
        if not len(self._data):
            raise ValueError("there are no tables")
        size, at = unpack_varint(self._data, 1)
        if size > len(self._data) - at:
            raise ValueError("the tables are cut short")
        reader = BitReader(self._data[at : at + size])
        tables = [Table.read(reader) for _ in range(self._data[0] + 1)]
        if not reader.finished():
            raise ValueError("something lies behind the tables")
        self._freqs, self._columns = np.stack([table.freqs(_BITS) for table in tables]), columns(tables)
        self._at = at + size

    def take(self, count: int, contexts: np.ndarray) -> np.ndarray:
        """[count] int32 of the next pass."""
        first, last = (int(contexts.min()), int(contexts.max())) if count else (0, 0)
        if last >= len(self._freqs):
            raise ValueError("a context has no table")
        words, at = unpack_varint(self._data, self._at)
        lanes = _WIDE if count >= _WIDE_FROM else 1
        states = np.full(lanes, LOW, np.int32)
        if words:
            if 4 * lanes + 2 * (words - 1) > len(self._data) - at:
                raise ValueError("a pass is cut short")
            states = np.frombuffer(self._data, "<i4", lanes, at)
            at += 4 * lanes
        end = at + 2 * max(0, words - 1)
        freqs = self._freqs[first : last + 1]  # the coder expands each table that it is given
        tokens = rans_decode(states, self._data[at:end], contexts - np.uint8(first), freqs, _BITS, count)
        widths = raw_widths(tokens, contexts, self._columns)
        at = end + (int(widths.sum()) + 7) // 8
        self._at = at
        return valued(tokens, contexts, self._columns, self._data[end:at], widths)

    def finished(self) -> bool:
        return self._at == len(self._data)
