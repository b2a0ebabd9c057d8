"""Bits and variable-length integers, least significant first."""

from __future__ import annotations

import numpy as np


class BitWriter:
    def __init__(self):
        self._value, self._length = 0, 0
        self._done = bytearray()

    def put(self, value: int, width: int) -> None:
        """The `width` low bits of `value`."""
        self._value |= value << self._length
        self._length += width
        while self._length >= 8:
            self._done.append(self._value & 255)
            self._value >>= 8
            self._length -= 8

    def unary(self, value: int) -> None:
        """`value` ones and a zero."""
        self.put((1 << value) - 1, value + 1)

    def __len__(self) -> int:
        """Bits so far."""
        return 8 * len(self._done) + self._length

    def to_bytes(self) -> bytes:
        return bytes(self._done) + (bytes([self._value]) if self._length else b"")


class BitReader:
    """Raises ValueError when bits are asked for that are not there."""

    def __init__(self, data: bytes | memoryview):
        self._data, self._at = data, 0

    def take(self, width: int) -> int:
        begin, end = self._at, self._at + width
        if end > 8 * len(self._data):
            raise ValueError("the tables are cut short")
        self._at = end
        value = int.from_bytes(self._data[begin >> 3 : (end + 7) >> 3], "little")
        return value >> (begin & 7) & ((1 << width) - 1)

    def unary(self, most: int) -> int:
        at, shift = self._at >> 3, self._at & 7
        window = int.from_bytes(self._data[at : at + (most >> 3) + 2], "little") >> shift
        value = (~window & window + 1).bit_length() - 1  # the ones before the first zero
        if value > most:
            raise ValueError("a number of the tables is out of range")
        self.take(value + 1)
        return value

    def finished(self) -> bool:
        """Only zero bits are left, fewer than eight."""
        rest = 8 * len(self._data) - self._at
        return rest < 8 and self.take(rest) == 0


def pack_fields(values: np.ndarray, widths: np.ndarray) -> bytes:
    """`widths[i]` (at most 32) low bits of every value, one behind the other."""
    ends = np.cumsum(widths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    some = widths > 0
    begins = (ends - widths)[some]
    shifted = values[some].astype(np.uint64) << (begins & 31).astype(np.uint64)
    word = begins >> 5
    first = np.flatnonzero(np.diff(word, prepend=-1))  # the first field that begins in each word
    out = np.zeros(total // 32 + 2, np.uint64)
    if len(first):
        at = word[first]
        out[at] += np.add.reduceat(shifted & np.uint64(0xFFFFFFFF), first)
        out[at + 1] += np.add.reduceat(shifted >> np.uint64(32), first)
    return out.astype("<u4").tobytes()[: (total + 7) // 8]


def unpack_fields(data: bytes | memoryview, widths: np.ndarray) -> np.ndarray:
    """What `pack_fields` packed, as uint64; ValueError if `data` is not exactly as long as it must be."""
    ends = np.cumsum(widths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    if len(data) != (total + 7) // 8:
        raise ValueError("the raw bits of large symbols have the wrong length")
    padded = np.zeros(len(data) + 8, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    some = np.flatnonzero(widths)
    begins, masks = (ends - widths)[some], (np.uint64(1) << widths[some].astype(np.uint64)) - np.uint64(1)
    fields = np.zeros(len(some), np.uint64)
    for byte in range(5):
        fields |= padded[(begins >> 3) + byte].astype(np.uint64) << np.uint64(8 * byte)
    values = np.zeros(len(widths), np.uint64)
    values[some] = fields >> (begins & 7).astype(np.uint64) & masks
    return values


def pack_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def unpack_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """(number below 2^35, offset behind it)."""
    value = 0
    for i in range(5):
        if at + i >= len(data):
            raise ValueError("the stream is cut short")
        value |= (data[at + i] & 127) << 7 * i
        if data[at + i] < 128:
            return value, at + i + 1
    raise ValueError("a length of the stream is out of range")
