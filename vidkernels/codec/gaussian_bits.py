"""The numbers of a Gaussian video as bytes: key frames, and what changes from one frame to the next.

A Gaussian is eight integers (x, y, l11, l21, l22, Y, Co, Cg), multiples of the quanta in the header. Those of a key
frame are sorted along a Z-order curve, and every later frame keeps that order, so neighbours in the list are neighbours
in the picture: most of what the contexts below know comes from that, and from the frame before.

    key     positions as differences along the curve; shapes and colours in classes of how far the next one is
    change  how the blocks of the picture move, which takes the Gaussians in them along; then for each Gaussian a mask
            that says which of its numbers change beyond that: the even ones given what changed around them one frame
            before, then the odd ones given also their two neighbours; then the differences that are not zero, in
            classes of which way the same number changed before and how many of this Gaussian's do now
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .block_motion import Motion, still
from .entropy import decode_symbols, encode_symbols

ATTRIBUTES = 8
_POSITION_LIMIT = 1 << 24
_KEY_CLASSES = 4


def z_order(positions: np.ndarray, quanta_per_cell: int) -> np.ndarray:
    """The order that sorts [N, 2] integer positions along a Z-order curve over cells; equal cells by x, y, index."""
    low = positions - positions.min(0, initial=0)
    cell = low // max(1, quanta_per_cell)
    key = _spread(cell[:, 0]) | _spread(cell[:, 1]) << np.int64(1)
    return np.lexsort((low[:, 1], low[:, 0], key))


def _spread(x: np.ndarray) -> np.ndarray:
    """Bits 0..20 of x moved to the even places."""
    x = np.minimum(x.astype(np.int64), (1 << 21) - 1)
    for shift, mask in ((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F),
                        (2, 0x3333333333333333), (1, 0x5555555555555555)):  # fmt: skip
        x = (x | x << np.int64(shift)) & mask
    return x


def encode_key(q: np.ndarray) -> bytes:
    """[N, 8] int32, in Z-order."""
    steps = np.diff(q[:, :2].astype(np.int64), axis=0, prepend=0).astype(np.int32)
    return pack(
        encode_symbols(steps.T.reshape(-1), np.repeat(np.arange(2, dtype=np.uint8), len(q))),
        encode_symbols(q[:, 2:].T.reshape(-1), _key_contexts(steps)),
    )


def decode_key(data: memoryview, count: int) -> np.ndarray:
    streams = unpack(data, 2)
    steps = decode_symbols(streams[0], 2 * count, np.repeat(np.arange(2, dtype=np.uint8), count)).reshape(2, count).T
    positions = np.cumsum(steps, 0, dtype=np.int64)
    if count and np.abs(positions).max() > _POSITION_LIMIT:
        raise ValueError("a position lies far outside of any picture")
    rest = decode_symbols(streams[1], 6 * count, _key_contexts(steps)).reshape(6, count).T
    return np.concatenate([positions.astype(np.int32), rest], 1)


def _key_contexts(steps: np.ndarray) -> np.ndarray:
    """A table for each of the six other numbers and for each class of distance to the neighbours: small Gaussians
    stand close together."""
    distance = np.abs(steps.astype(np.int64)).sum(1)
    distance = distance + np.append(distance[1:], distance[-1:])
    bounds = (
        np.sort(distance)[[len(distance) * k // _KEY_CLASSES for k in range(1, _KEY_CLASSES)]] if len(steps) else []
    )
    kind = np.searchsorted(bounds, distance, side="right")
    return (np.arange(6)[:, None] * _KEY_CLASSES + kind[None]).astype(np.uint8).reshape(-1)


Code = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""Takes contexts [count] uint8 and, to write, symbols [count]; returns the symbols."""

# First contexts of what is coded: 1 or 2 of motion, 48 for even and for odd masks, 12 for each attribute.
_COARSE, _OWN, _FINE, _MASKS, _VALUES = 0, 2, 3, 5, 101
_BIT = np.array([0, 1, 5, 7, 6, 2, 3, 4], np.uint8)  # of an attribute in a mask: what changes often is low
_ONES = np.array([i.bit_count() for i in range(256)], np.uint8)
_KINDS = np.array([(i & 3 > 0) + 2 * (i & 28 > 0) + 4 * (i >> 5 > 0) for i in range(256)], np.uint8)
"""Of a mask: whether position, colour and shape changed."""


class Changes:
    """Codes what changes in a group of pictures, frame after frame: `step` says the same things in the same order to a
    writer and to a reader, and keeps what the contexts of the next frame are told from.

    Args:     count: Gaussians. height, width, block: see block_motion.py.
    """

    def __init__(self, count: int, height: int, width: int, block: int):
        self.change = np.zeros((count, ATTRIBUTES), np.int32)
        self.motion = still(height, width, block)
        self._mask = np.zeros(count, np.uint8)
        self._mask_before = self._mask

    def step(self, code: Code, motion: Motion | None = None, change: np.ndarray | None = None) -> None:
        """One frame. A writer is given its motion and the differences [N, 8] int32; a reader leaves them, as an
        encoder does, in `motion` and `change`."""
        self.motion = self._moving(code, motion)
        mask = self._masks(code, None if change is None else _mask_of(change))
        changed = (mask >> _BIT[:, None] & 1).astype(bool)  # [8, N]
        attribute, row = np.nonzero(changed)
        sign = np.sign(self.change.T[changed]).astype(np.int8) + 1
        many = np.minimum(_ONES[mask[row]], 4) - 1
        contexts = _VALUES + (attribute * 3 + sign) * 4 + many
        values = code(contexts.astype(np.uint8), None if change is None else change.T[changed])
        if change is None:
            change = np.zeros_like(self.change)
            change.T[changed] = values
        self._mask_before, self._mask, self.change = self._mask, mask, change

    def _moving(self, code: Code, motion: Motion | None) -> Motion:
        last, still_fine = self.motion.coarse, np.zeros_like(self.motion.fine)
        x_then_y = np.repeat(np.arange(2, dtype=np.uint8), last[0].size)
        steps = None if motion is None else np.diff(motion.coarse - last, axis=2, prepend=0).reshape(-1)
        steps = code(_COARSE + x_then_y, steps).reshape(last.shape)
        own = None if motion is None else motion.fine.any(0).reshape(-1)
        own = _flags(code(np.full(still_fine[0].size, _OWN, np.uint8), own)).reshape(still_fine.shape[1:])
        fine = None if motion is None else motion.fine[:, own].reshape(-1)
        fine = code(_FINE + np.repeat(np.arange(2, dtype=np.uint8), own.sum()), fine)
        still_fine[:, own] = fine.reshape(2, -1)
        return Motion(last + np.cumsum(steps, 2, dtype=np.int32), still_fine)

    def _masks(self, code: Code, mask: np.ndarray | None) -> np.ndarray:
        """[N] uint8: which numbers of each Gaussian change; first those at even places."""
        own = _KINDS[self._mask] * np.uint8(2) + (self._mask_before != 0)
        around = _sum_of_neighbours(self._mask != 0)
        now = np.zeros_like(self._mask)
        for phase in range(2):
            contexts = (_MASKS + 48 * phase + own * 3 + around)[phase::2]
            got = code(contexts.astype(np.uint8), None if mask is None else mask[phase::2])
            if ((got < 0) | (got > 255)).any():
                raise ValueError("a mask has more than eight bits")
            now[phase::2] = got
            around = _sum_of_neighbours(now != 0)
        return now


def _mask_of(change: np.ndarray) -> np.ndarray:
    mask = np.zeros(len(change), np.uint8)
    for column, bit in zip(change.T, _BIT, strict=True):
        mask |= (column != 0).view(np.uint8) << bit
    return mask


def _flags(values: np.ndarray) -> np.ndarray:
    if ((values != 0) & (values != 1)).any():
        raise ValueError("a flag is neither 0 nor 1")
    return values.astype(bool)


def _sum_of_neighbours(x: np.ndarray) -> np.ndarray:
    out = np.zeros(len(x), np.uint8)
    out[1:] += x[:-1]
    out[:-1] += x[1:]
    return out


class Written:
    """The writer of `Changes.step`: keeps the passes of a frame for `encode_passes`."""

    def __init__(self):
        self.passes: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, contexts: np.ndarray, symbols: np.ndarray | None) -> np.ndarray:
        symbols = symbols.astype(np.int32)
        self.passes.append((symbols, contexts))
        return symbols


def pack(*parts: bytes) -> bytes:
    """Parts behind each other, each after its length of four bytes."""
    return b"".join(len(p).to_bytes(4, "little") + bytes(p) for p in parts)


def unpack(data: memoryview, count: int | None = None) -> list[memoryview]:
    """The parts; `count`: how many there must be."""
    data, parts, at = memoryview(data), [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if len(data) - at < 4 or size > len(data) - at - 4:
            raise ValueError(f"a part is cut short at byte {at}")
        parts.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    if count is not None and len(parts) != count:
        raise ValueError(f"expected {count} parts, found {len(parts)}")
    return parts
