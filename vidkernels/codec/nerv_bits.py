"""The numbers of a network video as bytes: weights that all frames share, latents of one group of pictures.

weights  for each tensor its step, then how spread out each output channel is, in classes, then the integers, a
         table for each class
latents  frame for frame, channel for channel: the integers minus what the frame before predicts, a table for each
         class of channels. The first frame of a group is predicted by nothing, so groups can be drawn alone.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bits import pack_varint, unpack_varint
from .entropy import decode_symbols, encode_symbols

PARTS = 64  # a channel's prediction is so many parts of the frame before
_FINENESS = (0, 1, 2, 4)  # classes for each doubling of the spread; 0: one class for all
_STEP = struct.Struct("<f")


@dataclass(frozen=True)
class Quantised:
    """Integers [rows, ...] int32, and what one is worth."""

    values: np.ndarray
    step: float

    def floats(self) -> np.ndarray:
        return self.values.astype(np.float32) * np.float32(self.step)


@dataclass(frozen=True)
class LatentCode:
    """How latents are coded: their step, and for each channel its prediction (in parts of 64) and its class."""

    step: float
    follow: np.ndarray  # [C] int32, 0 to 64
    kind: np.ndarray  # [C] uint8

    def predicted(self, before: np.ndarray) -> np.ndarray:
        """[C, h, w] of the frame before: follow / 64 of it, rounded half up, in integers."""
        return (before * self.follow[:, None, None] + PARTS // 2) // PARTS


def join(*parts: bytes) -> bytes:
    """Parts behind each other, each after its length."""
    return b"".join(pack_varint(len(p)) + bytes(p) for p in parts)


def split(data: memoryview, count: int) -> list[memoryview]:
    """The `count` parts; ValueError if there are fewer or more."""
    data, parts, at = memoryview(data), [], 0
    while at < len(data) and len(parts) < count:
        size, at = unpack_varint(data, at)
        if size > len(data) - at:
            raise ValueError(f"part {len(parts)} is cut short")
        parts.append(data[at : at + size])
        at += size
    if len(parts) != count or at != len(data):
        raise ValueError(f"expected {count} parts and nothing behind them")
    return parts


def encode_tensor(tensor: Quantised) -> bytes:
    """The cheapest of several finenesses of classes."""
    rows = tensor.values.reshape(len(tensor.values), -1)
    best = None
    for kind in choices(np.abs(rows).mean(1)):
        coded = join(
            encode_symbols(kind.astype(np.int32)),
            encode_symbols(rows.reshape(-1), np.repeat(kind, rows.shape[1])),
        )
        if best is None or len(coded) < len(best):
            best = coded
    return _STEP.pack(tensor.step) + best


def decode_tensor(data: memoryview, shape: Sequence[int]) -> Quantised:
    step = _read_step(data)
    streams = split(data[_STEP.size :], 2)
    kind = read_classes(streams[0], shape[0])
    values = decode_symbols(streams[1], int(np.prod(shape)), np.repeat(kind, int(np.prod(shape[1:]))))
    return Quantised(values.reshape(tuple(shape)), step)


def encode_latent_code(code: LatentCode) -> bytes:
    return _STEP.pack(code.step) + join(encode_symbols(code.follow), encode_symbols(code.kind.astype(np.int32)))


def decode_latent_code(data: memoryview, channels: int) -> LatentCode:
    step = _read_step(data)
    streams = split(data[_STEP.size :], 2)
    follow = decode_symbols(streams[0], channels)
    if ((follow < 0) | (follow > PARTS)).any():
        raise ValueError("a prediction is not between nothing and the frame before")
    return LatentCode(step, follow, read_classes(streams[1], channels))


def latent_code(q: np.ndarray, step: float, follow: np.ndarray, gop: int) -> LatentCode:
    """The code whose classes suit latents [T, C, h, w]."""
    blank = LatentCode(step, follow, np.zeros(q.shape[1], np.uint8))
    residuals = np.concatenate([residual(q[k : k + gop], blank) for k in range(0, len(q), gop)])
    spread = np.abs(residuals).mean((0, 2, 3))
    costs = []
    for kind in choices(spread):
        code = LatentCode(step, follow, kind)
        streams = [encode_latents(q[k : k + gop], code) for k in range(0, len(q), gop)]
        costs.append((sum(map(len, streams)) + len(encode_latent_code(code)), len(costs), code))
    return min(costs)[2]


def residual(q: np.ndarray, code: LatentCode) -> np.ndarray:
    """[T, C, h, w]: what the frame before does not predict; the first frame is all there."""
    out = q.copy()
    for t in range(1, len(q)):
        out[t] -= code.predicted(q[t - 1])
    return out


def encode_latents(q: np.ndarray, code: LatentCode) -> bytes:
    """[T, C, h, w] int32 latents of one group of pictures."""
    return encode_symbols(residual(q, code).reshape(-1), _latent_contexts(q.shape, code))


def decode_latents(data: memoryview, shape: tuple[int, int, int, int], code: LatentCode) -> np.ndarray:
    out = decode_symbols(data, int(np.prod(shape)), _latent_contexts(shape, code)).reshape(shape)
    if out.size and int(np.abs(out.astype(np.int64)).max()) > 1 << 20:
        raise ValueError("a latent number is far outside of what a decoder takes")
    for t in range(1, shape[0]):
        out[t] += code.predicted(out[t - 1])
    return out


def _latent_contexts(shape: Sequence[int], code: LatentCode) -> np.ndarray:
    return np.tile(np.repeat(code.kind, shape[2] * shape[3]), shape[0])


def choices(spread: np.ndarray) -> list[np.ndarray]:
    """Different ways to put rows into classes, the coarsest first."""
    ways = [_classes(spread, fine) for fine in _FINENESS]
    return [way for k, way in enumerate(ways) if not any(np.array_equal(way, before) for before in ways[:k])]


def _classes(spread: np.ndarray, fine: int) -> np.ndarray:
    """uint8 classes of mean magnitudes, evenly spaced on a logarithmic scale, counted without gaps."""
    level = np.round(fine * np.log2(np.maximum(spread, 2.0**-6))).astype(np.int64)
    kind = np.unique(level, return_inverse=True)[1].reshape(-1)
    return np.minimum(kind, 255).astype(np.uint8)


def read_classes(data: memoryview, count: int) -> np.ndarray:
    """[count] uint8 classes of rows; ValueError where the bytes hold none."""
    kind = decode_symbols(data, count)
    if ((kind < 0) | (kind > 255)).any():
        raise ValueError("a class is not between 0 and 255")
    return kind.astype(np.uint8)


def _read_step(data: memoryview) -> float:
    if len(data) < _STEP.size:
        raise ValueError("a step is cut short")
    (step,) = _STEP.unpack_from(data)
    if not 1e-12 < step < 1e12:
        raise ValueError("a step is out of range")
    return step
