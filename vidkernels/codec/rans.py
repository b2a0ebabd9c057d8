"""Interleaved rANS over bytes: the compiled kernel, or the same bytes from numpy. See csrc/ops/rans/rans.h.

Not an op: entropy coding has no gradient and no place in a graph, so nothing is registered with torch.
"""

from __future__ import annotations

import numpy as np

from .. import _native
from .._check import fail

LOW = 1 << 16
_LENDS_READ_ONLY = np.lib.NumpyVersion(np.__version__) >= "2.1.0"  # before, DLPack could not say "read-only"
MAX_BITS = 14


def _kernel(name: str, backend: str | None):
    """The compiled function, or None for numpy; a forced "cpu" that is missing is an error."""
    if backend not in (None, "cpu", "reference"):
        fail(name, 'expected `backend` None, "cpu" or "reference".', backend=backend)
    found = None if backend == "reference" else getattr(_native._C, f"{name}_cpu", None)
    if backend == "cpu" and found is None:
        fail(name, f"no compiled kernel: {_native.why_missing('_C')}", error=RuntimeError)
    return found


def _lent(array: np.ndarray | None) -> np.ndarray | None:
    """The array in a form that the kernel can borrow."""
    if array is None:
        return None
    return np.ascontiguousarray(array) if _LENDS_READ_ONLY or array.flags.writeable else array.copy()


def rans_encode(
    symbols: np.ndarray,
    contexts: np.ndarray | None,
    freqs: np.ndarray,
    bits: int,
    lanes: int = 32,
    backend: str | None = None,
) -> tuple[np.ndarray, bytes]:
    """Code bytes with one frequency table per context.

    Args:     symbols: [count] uint8.
              contexts: [count] uint8, the table of each symbol; None: table 0.
              freqs: [tables, 256] int32, rows sum to 2^bits; a coded symbol's frequency is at least 1.
              bits: 8 to 14.
              lanes: interleaved states, 1 to 32; 32 decode fastest.
    Returns:  (states [lanes] int32, the bits of unsigned 32-bit words; 16-bit little-endian words as bytes).
    Raises:   ValueError: a symbol without frequency, tables that do not sum to 2^bits.
    Backends: cpu (AVX-512, AVX2, portable), reference (numpy). The same bytes from all.
    """
    kernel, states = _kernel("rans_encode", backend), np.empty(lanes, np.int32)
    if kernel is not None:
        words = np.empty(2 * len(symbols), np.uint8)
        written = kernel(_lent(symbols), _lent(contexts), _lent(freqs), bits, states, words)
        return states, words[len(words) - 2 * written :].tobytes()
    _check_tables(freqs, bits)
    starts = np.cumsum(freqs, 1, dtype=np.int64) - freqs
    at = symbols.astype(np.int64) if contexts is None else contexts.astype(np.int64) * 256 + symbols
    if at.size and (int(at.max()) >= freqs.size or (freqs.reshape(-1)[at] == 0).any()):
        fail("rans_encode", "a symbol has frequency 0, or its context has no table.", tables=len(freqs))
    freq, start = freqs.reshape(-1)[at].astype(np.uint64), starts.reshape(-1)[at].astype(np.uint64)
    x, groups = np.full(lanes, LOW, np.uint64), []
    sixteen, shift = np.uint64(16), np.uint64(bits)
    for begin in range((len(symbols) - 1) // lanes * lanes, -1, -lanes) if len(symbols) else ():
        f, s = freq[begin : begin + lanes], start[begin : begin + lanes]
        state = x[: len(f)]
        full = state >= f << np.uint64(32 - bits)
        groups.append(state[full].astype("<u2"))
        state = np.where(full, state >> sixteen, state)
        x[: len(f)] = (state // f << shift) + state % f + s
    return x.astype(np.uint32).view(np.int32), b"".join(g.tobytes() for g in reversed(groups))


def rans_decode(
    states: np.ndarray,
    words: bytes | memoryview,
    contexts: np.ndarray | None,
    freqs: np.ndarray,
    bits: int,
    count: int,
    backend: str | None = None,
) -> np.ndarray:
    """The [count] uint8 symbols that `rans_encode` coded.

    Raises:   ValueError: the stream is not whole: words are missing or left over, or the states do not come back to
              where the encoder began. Nothing outside the arguments is read or written, whatever they hold.
    Backends: cpu (AVX-512, AVX2, portable), reference (numpy).
    """
    kernel = _kernel("rans_decode", backend)
    data = np.frombuffer(words, np.uint8)
    if len(data) % 2:
        fail("rans_decode", "damaged stream: an odd number of bytes.", bytes=len(data))
    if kernel is not None:
        symbols = np.empty(count, np.uint8)
        whole = kernel(_lent(data), _lent(states), _lent(contexts), _lent(freqs), bits, symbols)
    else:
        _check_tables(freqs, bits)
        symbols, whole = _decode_numpy(states, data.view("<u2"), contexts, freqs, bits, count)
    if not whole:
        fail("rans_decode", "damaged stream: words or states do not end where they should.", count=count)
    return symbols


def _decode_numpy(states, words, contexts, freqs, bits, count):
    size, lanes = 1 << bits, len(states)
    by_slot = np.stack([np.repeat(np.arange(256, dtype=np.uint8), row) for row in freqs]).reshape(-1)
    starts = (np.cumsum(freqs, 1, dtype=np.int64) - freqs).astype(np.uint64).reshape(-1)
    freq = freqs.astype(np.uint64).reshape(-1)
    table = np.zeros(count, np.uint64) if contexts is None else contexts.astype(np.uint64)
    whole = contexts is None or not count or int(contexts.max()) < len(freqs)
    table[table >= len(freqs)] = 0
    x, at = states.view(np.uint32).astype(np.uint64), 0
    symbols, shift = np.empty(count, np.uint8), np.uint64(bits)
    for begin in range(0, count, lanes):
        k = table[begin : begin + lanes]
        state = x[: len(k)]
        slot = state & np.uint64(size - 1)
        s = by_slot[(k << shift) + slot]
        symbols[begin : begin + lanes] = s
        row = k * np.uint64(256) + s
        state = freq[row] * (state >> shift) + slot - starts[row]
        low = np.flatnonzero(state < LOW)
        if len(low):
            have = words[at : at + len(low)]
            whole &= len(have) == len(low)
            at += len(have)
            state[low] <<= np.uint64(16)
            state[low[: len(have)]] |= have.astype(np.uint64)
        x[: len(k)] = state
    return symbols, whole and at == len(words) and bool((x == LOW).all())


def _check_tables(freqs: np.ndarray, bits: int) -> None:
    shape = freqs.ndim == 2 and freqs.shape[1] == 256 and 1 <= len(freqs) <= 256
    if not shape or not 8 <= bits <= MAX_BITS or (freqs < 0).any() or (freqs.sum(1, dtype=np.int64) != 1 << bits).any():
        fail("rans", "expected `freqs` [1 to 256, 256], rows not negative and summing to 2^bits, `bits` 8 to 14.")
