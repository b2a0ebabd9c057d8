"""The numbers of a Gaussian video as bytes: key frames, and what changes from one frame to the next.

A Gaussian is eight integers (x, y, l11, l21, l22, Y, Co, Cg), multiples of the quanta in the header. Those of a key
frame are sorted along a Z-order curve, and every later frame keeps that order, so neighbours in the list are neighbours
in the picture: most of what the contexts below know comes from that, and from the frame before.

    key     positions as differences along the curve; shapes and colours in classes of how far the next one is
    change  which Gaussians change: the even ones given what changed around them one frame before, then the odd ones
            given also their two neighbours; then the eight differences of those that do, in classes of how much the
            same number changed before
"""

from __future__ import annotations

import numpy as np

from .entropy import decode_symbols, encode_symbols

ATTRIBUTES = 8
_POSITION_LIMIT = 1 << 24
_KEY_CLASSES, _CHANGE_CLASSES = 4, 2


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


def encode_change(change: np.ndarray, before: np.ndarray) -> bytes:
    """[N, 8] int32 differences, and those of the frame before (zeros after a key frame)."""
    active = _any_of_eight(change)
    parts = []
    for places, contexts in _activity_contexts(before):
        context = contexts(active)
        parts.append(encode_symbols(active[places].astype(np.int32), context, bits=14))
    parts.append(encode_symbols(change[active].T.reshape(-1), _change_contexts(before[active])))
    return pack(*parts)


def decode_change(data: memoryview, before: np.ndarray) -> np.ndarray:
    streams = unpack(data, 3)
    active = np.zeros(len(before), bool)
    for stream, (places, contexts) in zip(streams[:2], _activity_contexts(before), strict=True):
        values = decode_symbols(stream, len(active[places]), contexts(active))
        if ((values != 0) & (values != 1)).any():
            raise ValueError("a flag is neither 0 nor 1")
        active[places] = values == 1
    count = int(active.sum())
    change = np.zeros_like(before)
    change[active] = (
        decode_symbols(streams[2], ATTRIBUTES * count, _change_contexts(before[active])).reshape(ATTRIBUTES, count).T
    )
    return change


def _activity_contexts(before: np.ndarray):
    """For the even places, then the odd ones: (the places, f(active so far) -> uint8 contexts)."""
    was = _any_of_eight(before).view(np.uint8)
    around = _sum_of_neighbours(was)

    def even(active):
        return (was * np.uint8(2) + (around > 0))[0::2]

    def odd(active):
        return (was * np.uint8(3) + _sum_of_neighbours(active.view(np.uint8)))[1::2]

    return (slice(0, None, 2), even), (slice(1, None, 2), odd)


def _sum_of_neighbours(x: np.ndarray) -> np.ndarray:
    out = np.zeros_like(x)
    out[1:] += x[:-1]
    out[:-1] += x[1:]
    return out


def _any_of_eight(rows: np.ndarray) -> np.ndarray:
    """rows.any(1) of [N, 8] int32, by columns: numpy is slow along a short axis."""
    columns = (rows != 0).T
    found = columns[0].copy()
    for column in columns[1:]:
        found |= column
    return found


def _change_contexts(before: np.ndarray) -> np.ndarray:
    first = np.arange(ATTRIBUTES, dtype=np.uint8)[:, None] * np.uint8(_CHANGE_CLASSES)
    return (first + (before != 0).T).reshape(-1)


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
