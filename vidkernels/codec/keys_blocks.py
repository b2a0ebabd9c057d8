"""Pictures as blocks of transform coefficients and back: colours, transforms, smoothing of the edges between blocks.

What a decoder does is arithmetic on integers (matrix products in float64, whose sums stay below 2^53, are exact in any
order), so every machine gives the same pixels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

SIZES = (8, 16, 32)  # of luma blocks
SUPER = 32
_BASIS_BITS = 14
_FRACTION = 4  # bits of a step behind the point
_SAMPLE = 1023  # of a decoded sample, at most: colours are made in 32 bits


def to_planes(frame: np.ndarray) -> list[np.ndarray]:
    """[H, W, 3] uint8, even sides -> Y [H, W] around 0, Cb and Cr [H / 2, W / 2]; BT.601 weights, full range."""
    r, g, b = np.moveaxis(frame.astype(np.float64), 2, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return [y - 128, *(_halved((c - y) * f) for c, f in ((b, 0.5 / 0.886), (r, 0.5 / 0.701)))]


def to_frame(planes: list[np.ndarray]) -> np.ndarray:
    """[H, W, 3] uint8 of integer planes, in 14-bit fixed point."""
    y, cb, cr = planes[0] + 128, _doubled(planes[1]), _doubled(planes[2])  # chroma: 4 bits behind the point
    half = np.int32(1 << 17)
    red, blue = 22970 * cr + half >> 18, 29032 * cb + half >> 18
    out = np.empty((*y.shape, 3), np.uint8)
    for channel, values in enumerate((y + red, y - (5638 * cb + 11700 * cr + half >> 18), y + blue)):
        out[:, :, channel] = values.clip(0, 255)
    return out


def _halved(plane: np.ndarray) -> np.ndarray:
    h, w = plane.shape
    return plane.reshape(h // 2, 2, w // 2, 2).mean((1, 3))


def _doubled(plane: np.ndarray) -> np.ndarray:
    """Twice the size, bilinear between the samples' centres, times 16; integers."""
    for axis in (0, 1):
        p = plane.swapaxes(0, axis)
        both = np.empty((len(p), 2, *p.shape[1:]), plane.dtype)
        both[:, 0], both[:, 1] = 3 * p, 3 * p
        both[1:, 0] += p[:-1]
        both[0, 0] += p[0]
        both[:-1, 1] += p[1:]
        both[-1, 1] += p[-1]
        plane = both.reshape(2 * len(p), -1).swapaxes(0, axis)
    return plane


@lru_cache(maxsize=4)
def basis(size: int) -> np.ndarray:
    """[size, size] float64, integers: the orthonormal cosine transform times 2^14."""
    k, n = np.arange(size)[:, None], np.arange(size)[None]
    rows = np.cos(np.pi * (2 * n + 1) * k / (2 * size)) * np.sqrt(2 / size)
    rows[0] /= np.sqrt(2)
    return np.round(rows * (1 << _BASIS_BITS))


def forward(blocks: np.ndarray) -> np.ndarray:
    """[B, N, N] float64 coefficients."""
    matrix = basis(blocks.shape[1]) / (1 << _BASIS_BITS)
    return matrix @ blocks @ matrix.T


def inverse(q: np.ndarray, step: int) -> np.ndarray:
    """[B, N, N] int32 samples of integers times a step in sixteenths."""
    matrix = basis(q.shape[1])
    rows = matrix.T @ (q * float(step))
    rows = np.floor(rows * 2.0 ** -(_BASIS_BITS - 4) + 0.5)
    shift = _BASIS_BITS + 4 + _FRACTION
    samples = np.floor(rows @ matrix * 2.0**-shift + 0.5)
    return samples.clip(-_SAMPLE, _SAMPLE, out=samples).astype(np.int32)


def cut(plane: np.ndarray, size: int) -> np.ndarray:
    """[h, w, size, size] of a plane."""
    h, w = plane.shape
    return plane.reshape(h // size, size, w // size, size).swapaxes(1, 2)


def smooth(plane: np.ndarray, edges: np.ndarray, strength: int) -> np.ndarray:
    """Integers with the steps at block edges softened.

    edges: [h, w] bool on cells of 8 x 8, whether a cell's left edge (or upper one, for the transpose) parts two blocks.
    strength: the quantisation step; differences that it can explain are taken for its doing.
    """
    columns = plane.reshape(plane.shape[0], -1, 8)
    p1, p0, q0, q1 = columns[:, :-1, 6], columns[:, :-1, 7], columns[:, 1:, 0], columns[:, 1:, 1]
    bound = strength // 2 + 1
    flat = (np.abs(p0 - q0) < 2 * bound) & (np.abs(p1 - p0) < bound) & (np.abs(q1 - q0) < bound)
    flat &= np.repeat(edges[:, 1:], 8, 0)
    delta = np.where(flat, ((q0 - p0) * 4 + (p1 - q1) + 4 >> 3).clip(-bound, bound), 0)
    out = columns.copy()
    out[:, :-1, 7] += delta
    out[:, 1:, 0] -= delta
    out[:, :-1, 6] += delta + 1 >> 2
    out[:, 1:, 1] -= delta + 1 >> 2
    return out.reshape(plane.shape)
