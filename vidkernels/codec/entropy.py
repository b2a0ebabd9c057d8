"""Entropy coding of integers: any int32 values, one or several frequency tables, in close to the fewest bits.

    data = encode_symbols(symbols, contexts)            # contexts: [count] uint8, known to the decoder beforehand
    same = decode_symbols(data, len(symbols), contexts)

Tables are chosen per context by total cost (their own bits counted), see tables.py; symbols are coded by interleaved
rANS, see rans.py; rare large values escape into raw bits. A stream decodes to the same symbols on every machine, and
every backend writes the same bytes. docs/container.md, "Entropy coding", has the format.
"""

from __future__ import annotations

import numpy as np
import torch

from .._check import fail
from .bits import BitReader, BitWriter, pack_fields, pack_varint, unpack_fields, unpack_varint
from .fit import escape_of, fit
from .rans import LOW, rans_decode, rans_encode
from .tables import Table

MAX_COUNT = 1 << 31
_WIDE = 32  # lanes of a long stream; a short one has one, whose state costs 4 bytes instead of 128
_WIDE_FROM = 1 << 16  # bits that the tables expect
_DENSE = 1 << 22  # bins of a histogram that is counted instead of sorted


def encode_symbols(
    symbols: np.ndarray | torch.Tensor,
    contexts: np.ndarray | torch.Tensor | None = None,
    *,
    bits: int = 12,
    backend: str | None = None,
) -> bytes:
    """Code integers in few bytes.

    Args:     symbols: [count] integers of 32 bits.
              contexts: [count] uint8: which table codes each symbol; None: one table. The decoder must have the same.
              bits: precision of the frequencies, 12 to 14: more for streams of almost equal symbols, less for speed.
    Returns:  the stream; its length is what it costs, tables included.
    Raises:   ValueError: wrong shapes or types.
    Backends: cpu, reference (numpy). The same bytes from both.
    Source:   asymmetric numeral systems: Duda 2013, arXiv:1311.2540; interleaving: Giesen 2014, arXiv:1402.3392.
    Example:  >>> import numpy as np
              >>> values = np.array([0, 0, 1, -1, 0, 2, 0, 100000, 0], np.int32)
              >>> data = encode_symbols(values)
              >>> bool((decode_symbols(data, 9) == values).all())
              True
    """
    values = _vector("encode_symbols", "symbols", symbols)
    if len(values) and not -(1 << 31) <= int(values.min()) <= int(values.max()) < 1 << 31:
        fail("encode_symbols", "expected `symbols` of at most 32 bits.", low=int(values.min()), high=int(values.max()))
    table_of = _contexts("encode_symbols", contexts, len(values))
    if not 12 <= bits <= 14:
        fail("encode_symbols", "expected `bits` from 12 to 14.", bits=bits)
    values = values.astype(np.int64)
    count = int(table_of.max()) + 1 if table_of is not None and len(values) else 1
    tables = [fit(*histogram, bits) for histogram in histograms(values, table_of, count)]
    head = BitWriter()
    for table in tables:
        table.write(head)
    freqs = np.stack([table.freqs(bits) for table in tables])

    tokens, values, widths = tokenised(values, table_of, tables)
    expected = _expected_bits(tokens, table_of, freqs, bits)
    lanes = _WIDE if expected >= _WIDE_FROM else 1
    states, words = rans_encode(tokens, table_of, freqs, bits, lanes, backend)
    if not words and (states == LOW).all():
        lanes, states = 0, states[:0]  # every symbol was certain
    packed = head.to_bytes()
    start = bytes([(bits - 12) | (0, 1, _WIDE).index(lanes) << 2, count - 1])
    lengths = pack_varint(len(packed)) + pack_varint(len(words) // 2)
    fields = pack_fields(values, widths)
    return b"".join([start, lengths, packed, states.astype("<i4").tobytes(), words, fields])


def decode_symbols(
    data: bytes | memoryview,
    count: int,
    contexts: np.ndarray | torch.Tensor | None = None,
    *,
    backend: str | None = None,
) -> np.ndarray:
    """The [count] int32 symbols that `encode_symbols` coded.

    Args:     data: the stream, whole and nothing behind it.
              count: how many symbols it holds; memory is proportional to it, so check it where it comes from.
              contexts: [count] uint8 as given to the encoder.
    Raises:   ValueError: the stream is damaged, or count or contexts are not those it was made with (which the final
              states of the decoder betray in all but about one case in 2^16). Never anything else.
    """
    if not isinstance(count, int | np.integer) or not 0 <= count < MAX_COUNT:
        fail("decode_symbols", f"expected `count` from 0 to {MAX_COUNT - 1}.", count=count)
    table_of = _contexts("decode_symbols", contexts, count)
    data = memoryview(data).cast("B")
    try:
        return _decode(data, int(count), table_of, backend)
    except ValueError as error:
        reason = str(error).splitlines()[0].removeprefix("rans_decode: damaged stream: ").rstrip(".")
        fail("decode_symbols", f"damaged stream: {reason}.", bytes=len(data), count=count)


def _decode(data: memoryview, count: int, table_of: np.ndarray | None, backend: str | None) -> np.ndarray:
    if len(data) < 4 or data[0] >> 4 or data[0] & 3 > 2 or data[0] >> 2 > 2:
        raise ValueError("it does not begin like a stream of symbols")
    bits, lanes = 12 + (data[0] & 3), (0, 1, _WIDE)[data[0] >> 2]
    packed, at = unpack_varint(data, 2)
    words, at = unpack_varint(data, at)
    if packed + 4 * lanes + 2 * words > len(data) - at:
        raise ValueError("the stream is cut short")
    reader = BitReader(data[at : at + packed])
    tables = [Table.read(reader) for _ in range(data[1] + 1)]
    if not reader.finished():
        raise ValueError("something lies behind the tables")
    at += packed
    freqs = np.stack([table.freqs(bits) for table in tables])
    states = np.frombuffer(data, "<i4", lanes, at) if lanes else np.full(1, LOW, np.int32)
    at += 4 * lanes
    tokens = rans_decode(states, data[at : at + 2 * words], table_of, freqs, bits, count, backend)
    at += 2 * words
    of_tables = columns(tables)
    return valued(tokens, table_of, of_tables, data[at:], raw_widths(tokens, table_of, of_tables))


def tokenised(
    values: np.ndarray, table_of: np.ndarray | None, tables: list[Table]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens uint8, raw numbers, how many bits of each are kept) of int64 values."""
    low, n, shift = columns(tables)
    raw = widths = np.zeros(0, np.int64)
    if shift.any():
        widths = np.broadcast_to(_of(shift, table_of), len(values))
        raw, values = values & (np.int64(1) << widths) - 1, values >> widths
    tokens = values - _of(low, table_of)
    outside = np.flatnonzero(tokens.view(np.uint64) >= _of(n.astype(np.uint64), table_of))  # below the range wraps
    rows = 0 if table_of is None else table_of[outside]
    extra, beyond, more = escape_of(values[outside], low[rows], n[rows])
    tokens[outside] = n[rows] + extra
    return tokens.astype(np.uint8), np.concatenate([raw, beyond]), np.concatenate([widths, more])


def raw_widths(tokens: np.ndarray, table_of: np.ndarray | None, of_tables: np.ndarray) -> np.ndarray:
    """Bits of each raw number that belongs to decoded tokens; `of_tables`: their `columns`."""
    _, n, shift = of_tables
    outside = np.flatnonzero(tokens >= _of(n.astype(np.uint8), table_of))
    kind = tokens[outside].astype(np.int64) - n[0 if table_of is None else table_of[outside]]
    cut = np.broadcast_to(_of(shift, table_of), len(tokens)) if shift.any() else np.zeros(0, np.int64)
    return np.concatenate([cut, kind >> 1])


def valued(
    tokens: np.ndarray, table_of: np.ndarray | None, of_tables: np.ndarray, raw: bytes | memoryview, widths: np.ndarray
) -> np.ndarray:
    """[count] int32 of decoded tokens and the bytes of their raw numbers."""
    low, n, _ = of_tables
    values = tokens.astype(np.int32)  # 32 bits all the way: what an escape makes wrap here is replaced below
    values += _of(low.astype(np.int32), table_of)
    outside = np.flatnonzero(tokens >= _of(n.astype(np.uint8), table_of))
    rows = 0 if table_of is None else table_of[outside]
    kind = tokens[outside].astype(np.int64) - n[rows]
    fields = unpack_fields(raw, widths).astype(np.int64)
    cut = len(widths) - len(outside)
    excess = (np.int64(1) << (kind >> 1)) - 1 + fields[cut:]
    exact = np.where(kind & 1, low[rows] - 1 - excess, low[rows] + n[rows] + excess)
    _fits(exact)
    values[outside] = exact
    if cut:
        exact = (values.astype(np.int64) << widths[:cut]) + fields[:cut]
        _fits(exact)
        values = exact.astype(np.int32)
    return values


def _fits(values: np.ndarray) -> None:
    if len(values) and not -(1 << 31) <= int(values.min()) <= int(values.max()) < 1 << 31:
        raise ValueError("a symbol has more than 32 bits")


def columns(tables: list[Table]) -> np.ndarray:
    """[3, tables] int64: low, n and shift."""
    return np.array([(table.low, table.n, table.shift) for table in tables], np.int64).T


def _of(column: np.ndarray, table_of: np.ndarray | None):
    """The value of each symbol's table; one number if there is one table."""
    return column[0] if table_of is None else column[table_of]


def histograms(values: np.ndarray, table_of: np.ndarray | None, count: int):
    """(different values, their counts) of each table."""
    first, last = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    width = last - first + 1
    if width * count <= _DENSE:
        at = values - first if table_of is None else values - first + table_of.astype(np.int64) * width
        for row in np.bincount(at, minlength=width * count).reshape(count, width):
            used = np.flatnonzero(row)
            yield used + first, row[used]
    else:
        for k in range(count):
            yield np.unique(values if table_of is None else values[table_of == k], return_counts=True)


def _expected_bits(tokens: np.ndarray, table_of: np.ndarray | None, freqs: np.ndarray, bits: int) -> float:
    at = tokens.astype(np.int64) if table_of is None else table_of.astype(np.int64) * 256 + tokens
    counts = np.bincount(at, minlength=freqs.size)
    used = counts > 0
    return float(counts[used] @ (bits - np.log2(freqs.reshape(-1)[used])))


def _vector(where: str, name: str, value: np.ndarray | torch.Tensor) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "iu" or len(array) >= MAX_COUNT:
        fail(where, f"expected `{name}` [count] of integers.", shape=array.shape, dtype=array.dtype)
    return array


def _contexts(where: str, value: np.ndarray | torch.Tensor | None, count: int) -> np.ndarray | None:
    if value is None:
        return None
    array = _vector(where, "contexts", value)
    if len(array) != count or array.dtype != np.uint8:
        fail(where, f"expected `contexts` [{count}] of uint8.", shape=array.shape, dtype=array.dtype)
    return np.ascontiguousarray(array)
