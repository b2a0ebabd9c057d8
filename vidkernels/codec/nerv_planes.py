"""Weights in planes: coarse ones that draw a picture already, then what makes them fine.

fine integers q = 3 c + r, r of -1, 0, 1: what rounding q / 3 to c has lost; c can be split again. Where c is below 0, r
is coded with its sign turned. A table for each class of rows and for whether c is 0.
"""

from __future__ import annotations

import numpy as np

from .entropy import decode_symbols, encode_symbols
from .nerv_bits import choices, join, read_classes, split

MOST_PLANES = 4
_MOST_CLASSES = 128


def coarser(fine: np.ndarray) -> np.ndarray:
    """The nearest thirds."""
    return (np.sign(fine) * ((np.abs(fine) + 1) // 3)).astype(np.int32)


def encode_refinement(fine: np.ndarray, coarse: np.ndarray) -> bytes:
    """What `fine` [O, ...] int32 is beyond three times `coarse`."""
    rows, above = fine.reshape(len(fine), -1), coarse.reshape(len(fine), -1)
    rest = (rows - 3 * above) * np.where(above < 0, -1, 1)
    best = None
    for kind in choices(np.abs(rows).mean(1)):
        if kind.max() < _MOST_CLASSES:
            coded = join(
                encode_symbols(kind.astype(np.int32)), encode_symbols(rest.reshape(-1), _contexts(kind, above))
            )
            if best is None or len(coded) < len(best):
                best = coded
    return best


def decode_refinement(data: memoryview, coarse: np.ndarray) -> np.ndarray:
    """`fine` again; ValueError where the bytes cannot be what `encode_refinement` made for `coarse`."""
    above = coarse.reshape(len(coarse), -1)
    streams = split(data, 2)
    kind = read_classes(streams[0], len(above))
    if kind.max() >= _MOST_CLASSES:
        raise ValueError("a class of a refinement is not between 0 and 127")
    rest = decode_symbols(streams[1], above.size, _contexts(kind, above)).reshape(above.shape)
    if np.abs(rest.astype(np.int64)).max() > 1:
        raise ValueError("a refinement is not -1, 0 or 1")
    return (3 * above + rest * np.where(above < 0, -1, 1)).astype(np.int32).reshape(coarse.shape)


def _contexts(kind: np.ndarray, above: np.ndarray) -> np.ndarray:
    return (2 * kind[:, None] + (above != 0)).astype(np.uint8).reshape(-1)
