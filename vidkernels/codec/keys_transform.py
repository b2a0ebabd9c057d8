"""Key frames by our own transform coder: blocks of 8 to 32 samples, cosine transforms, contexts from what is known.

Coefficients are coded in passes from low to high frequency, all blocks of all pictures at once, so that the contexts of
a pass may look at lower frequencies of the same block and of the blocks around. docs/network_video.md has the format.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from .keys_blocks import SIZES, SUPER, cut, forward, inverse, smooth, to_frame, to_planes
from .passes import PassReader, encode_passes

_HEAD = struct.Struct("<HHHB")  # height, width, luma step in sixteenths, pictures modulo 256
_CELL = 8
_FLAGS, _DC, _AC = 0, 2, 7  # first contexts
_LARGEST = 1 << 20  # of a coefficient times the luma step; what pictures have is below 2^17
_MOST_STEP = 1 << 12

# Of the encoder alone.
_PRICE = 0.11  # squared error, in squared steps, that a bit is worth
_ROUND = 0.36  # added to a magnitude before what is behind the point is dropped

# What tells about a coefficient's magnitude, in 64ths, for luma and chroma: the two beside it towards lower
# frequencies, the one between them, the two behind; its block so far, the blocks around, and for chroma the luma
# there. By least squares on two sizes of one clip, rounded.
_WEIGHTS = np.array([[6, 4, 1, 2, 28, 0], [5, 1, 0, 3, 8, 8]], np.int32)
_BOUNDS = np.array([1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 512], np.int32)  # of levels of it
_LEVELS = len(_BOUNDS) + 1


@lru_cache(maxsize=1)
def _bands() -> list[range]:
    """The passes: frequencies in units of 1/32 of the highest horizontal one."""
    edges = [*range(16), *range(16, 32, 2), *range(32, 64, 4)]
    return [range(a, b) for a, b in zip(edges, [*edges[1:], 64])]


@lru_cache(maxsize=256)
def _places(size: int, band: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the coefficients of a block that a pass codes."""
    u, v = np.indices((size, size))
    found = np.isin((u + v) * (SUPER // size), _bands()[band])
    return u[found], v[found]


@dataclass
class _Blocks:
    """All blocks of one size of luma (or of both chroma planes), and where they lie."""

    chroma: bool
    size: int
    plane: np.ndarray  # [B] number of picture, or of picture and chroma plane
    row: np.ndarray  # [B] in cells of 8 samples
    column: np.ndarray
    q: np.ndarray  # [size, size, B] int32
    seen: np.ndarray  # [size + 2, size + 2, B]: magnitudes of the passes so far, behind two rows and columns of zeros

    def cells(self, grid: np.ndarray) -> np.ndarray:
        """[B, n, n] of [planes, rows, columns] cells."""
        n = self.size // _CELL
        windows = np.lib.stride_tricks.sliding_window_view(grid, (n, n), (1, 2))
        return windows[self.plane, self.row, self.column]


def _arranged(sizes: np.ndarray) -> list[_Blocks]:
    """Blocks for [K, H / 16, W / 16] luma sizes: luma 8, 16, 32, chroma 8, 16; along the rows of super blocks."""
    count, rows, columns = sizes.shape
    quads = sizes.reshape(count, rows // 2, 2, columns // 2, 2).swapaxes(2, 3).reshape(-1, 2, 2)
    k, y, x = (a.reshape(-1) for a in np.indices((count, rows // 2, columns // 2)))
    out = []
    for size in SIZES:
        n = SUPER // size
        i, j = np.indices((n, n))
        mine = (quads == size)[:, i * 2 // n, j * 2 // n]
        at = np.nonzero(mine)
        out.append(
            _made(False, size, k[at[0]], (n * y[at[0]] + at[1]) * size // _CELL, (n * x[at[0]] + at[2]) * size // _CELL)
        )
    for size in (8, 16):
        n = 16 // size
        mine = np.flatnonzero((quads[:, 0, 0] == SUPER) == (size == 16))
        i, j = (a.reshape(-1) for a in np.indices((n, n)))
        row, column = (2 * y[mine, None] + i).reshape(-1), (2 * x[mine, None] + j).reshape(-1)
        plane = np.repeat(k[mine], n * n)
        out.append(_made(True, size, np.concatenate([2 * plane, 2 * plane + 1]), np.tile(row, 2), np.tile(column, 2)))
    return out


def _made(chroma: bool, size: int, plane: np.ndarray, row: np.ndarray, column: np.ndarray) -> _Blocks:
    q, seen = (np.zeros((side, side, len(plane)), np.int32) for side in (size, size + 2))
    return _Blocks(chroma, size, plane, row, column, q, seen)


class _Activity:
    """How much the blocks hold, of the frequencies so far, on cells of 8 samples of every plane."""

    def __init__(self, shape: tuple[int, int, int]):
        count, rows, columns = shape  # in luma cells
        self.grids = [
            np.zeros((count, rows, columns), np.int64),
            np.zeros((2 * count, rows // 2, columns // 2), np.int64),
        ]
        self.around()

    def around(self) -> None:
        """Work out what surrounds each cell, after a pass."""
        self.sums = []
        for grid in self.grids:
            padded = np.pad(grid, ((0, 0), (1, 1), (1, 1)), mode="edge")
            wide = padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]
            self.sums.append(wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:])
        count, rows, columns = self.grids[0].shape
        below = self.grids[0].reshape(count, rows // 2, 2, columns // 2, 2).sum((2, 4))
        self.luma = np.repeat(below, 2, 0)

    def of(self, blocks: _Blocks) -> list[np.ndarray]:
        """[B] each: of a block itself, around it, and of luma there."""
        kind = int(blocks.chroma)
        n2 = (blocks.size // _CELL) ** 2
        own = blocks.cells(self.grids[kind])[:, 0, 0]
        near = blocks.cells(self.sums[kind]).sum((1, 2)) // (9 * n2)
        luma = blocks.cells(self.luma).sum((1, 2)) // (4 * n2) if blocks.chroma else np.zeros_like(own)
        return [own, near, luma]

    def add(self, blocks: _Blocks, magnitudes: np.ndarray) -> None:
        """[coefficients, B] of a pass."""
        if not magnitudes.size:
            return
        mean = magnitudes.sum(0) * 64 // len(magnitudes)
        grid, n = self.grids[int(blocks.chroma)], blocks.size // _CELL
        for i in range(n):
            for j in range(n):
                at = blocks.plane, blocks.row + i, blocks.column + j
                grid[at] = (grid[at] + mean) // 2


def _expected(blocks: _Blocks, band: int, activity: _Activity) -> np.ndarray:
    """[coefficients, B]: how large the coefficients of a pass may be, in 64ths."""
    u, v = _places(blocks.size, band)
    seen = blocks.seen
    beside = seen[u + 1, v + 2] + seen[u + 2, v + 1]
    behind = seen[u, v + 2] + seen[u + 2, v]
    w = _WEIGHTS[int(blocks.chroma)]
    inside = w[0] * beside + w[1] * seen[u + 1, v + 1] + w[2] * behind
    around = sum(weight * values for weight, values in zip(w[3:], activity.of(blocks)))
    return inside + (around >> 6)


Code = Callable[[np.ndarray, "list[tuple[int, np.ndarray, np.ndarray]]"], np.ndarray]


def _walk(all_blocks: list[_Blocks], cells: tuple[int, int, int], step: int, code: Code) -> None:
    """Fill the blocks' coefficients pass by pass, first what is constant. `code` gets contexts, and the (kind, rows,
    columns) of what they are about, and gives the numbers."""
    corner = np.zeros(1, np.intp), np.zeros(1, np.intp)
    contexts = [np.full(len(b.plane), _DC + kind, np.uint8) for kind, b in enumerate(all_blocks)]
    first = code(np.concatenate(contexts), [(kind, *corner) for kind in range(len(all_blocks))])
    activity = _Activity(cells)
    for band in range(1, len(_bands())):
        places = [(kind, *_places(b.size, band)) for kind, b in enumerate(all_blocks)]
        places = [p for p in places if len(p[1])]
        contexts = []
        for kind, _, _ in places:
            level = np.searchsorted(_BOUNDS, _expected(all_blocks[kind], band, activity), side="right")
            contexts.append((_AC + _LEVELS * all_blocks[kind].chroma + level).astype(np.uint8).reshape(-1))
        numbers = code(np.concatenate(contexts), places)
        at = 0
        for kind, u, v in places:
            blocks = all_blocks[kind]
            mine = numbers[at : at + len(blocks.plane) * len(u)].reshape(len(u), -1)
            blocks.q[u, v] = mine
            blocks.seen[u + 2, v + 2] = magnitudes = np.abs(mine)
            activity.add(blocks, magnitudes)
            at += mine.size
        activity.around()
    at = 0
    for blocks in all_blocks:  # as differences from block to block
        values = np.cumsum(first[at : at + len(blocks.plane)], dtype=np.int64)
        _check_range(values, step)
        blocks.q[0, 0] = values
        at += len(values)


def _check_range(numbers: np.ndarray, step: int) -> None:
    """Larger ones would not fit the decoder's integers."""
    if np.abs(numbers.astype(np.int64)).max(initial=0) * step > _LARGEST:
        raise ValueError("a coefficient is out of range")


def encode_transform(frames: torch.Tensor, quality: int) -> bytes:
    """[K, H, W, 3] uint8 as blocks of coefficients.

    Args:     quality: 1 to 63, the larger the fewer bytes; every nine of it double the step.
    """
    count, height, width = frames.shape[:3]
    step = round(16 * 2 ** (quality / 9))
    padded = np.pad(frames.numpy(), ((0, 0), (0, -height % SUPER), (0, -width % SUPER), (0, 0)), mode="edge")
    planes = [to_planes(frame) for frame in padded]
    sizes = np.stack([_chosen(luma, step / 16) for luma, _, _ in planes])
    all_blocks = _arranged(sizes)
    cells = count, *(side // _CELL for side in padded.shape[1:3])
    grids = [np.stack([cut(luma, _CELL) for luma, _, _ in planes]),
             np.stack([cut(chroma, _CELL) for _, *both in planes for chroma in both])]  # fmt: skip
    truth = []
    for blocks, each in zip(all_blocks, _steps(all_blocks, step)):
        samples = np.zeros((len(blocks.plane), blocks.size, blocks.size))
        for i, j, part in _parts(blocks, samples):
            part[:] = grids[int(blocks.chroma)][blocks.plane, blocks.row + i, blocks.column + j]
        truth.append(np.moveaxis(_rounded(forward(samples), each / 16), 0, 2).copy())
    passes = []

    def code(contexts, places):
        numbers = [truth[kind][u, v].reshape(-1) for kind, u, v in places]
        if not passes:  # the first are coded as differences
            numbers = [np.diff(values, prepend=0) for values in numbers]
        passes.append((np.concatenate(numbers), contexts))
        return passes[-1][0]

    _walk(all_blocks, cells, step, code)
    quads = sizes.reshape(count, cells[1] // 4, 2, cells[2] // 4, 2).swapaxes(2, 3).reshape(-1, 4)
    whole = quads[:, 0] == SUPER
    flags = [whole, (quads[~whole] == 16).reshape(-1)]
    coded_flags = [(f.astype(np.int32), np.full(len(f), _FLAGS + k, np.uint8)) for k, f in enumerate(flags)]
    return _HEAD.pack(height, width, step, count % 256) + encode_passes(coded_flags + passes)


def decode_transform(data: bytes | memoryview, size: tuple[int, int], count: int) -> torch.Tensor:
    """[K, H, W, 3] uint8. Raises ValueError where the bytes are not so many key frames of this size."""
    if len(data) < _HEAD.size:
        raise ValueError("the key frames are cut short")
    height, width, step, number = _HEAD.unpack_from(data)
    if (height, width) != tuple(size) or number != count % 256:
        raise ValueError("the key frames are of another size or number")
    if not 1 <= step <= _MOST_STEP:
        raise ValueError("the key frames have an impossible step")
    reader = PassReader(memoryview(data)[_HEAD.size :])
    rows, columns = -(-height // SUPER), -(-width // SUPER)
    whole = _flags(reader, count * rows * columns, 0)
    quads = np.full((len(whole), 4), SUPER)
    quads[~whole] = np.where(_flags(reader, 4 * int((~whole).sum()), 1), 16, 8).reshape(-1, 4)
    sizes = quads.reshape(count, rows, columns, 2, 2).swapaxes(2, 3).reshape(count, 2 * rows, 2 * columns)
    all_blocks, cells = _arranged(sizes), (count, 4 * rows, 4 * columns)

    def code(contexts, places):
        numbers = reader.take(len(contexts), contexts)
        _check_range(numbers, step)
        return numbers

    _walk(all_blocks, cells, step, code)
    if not reader.finished():
        raise ValueError("something lies behind the key frames")
    return torch.from_numpy(_drawn(all_blocks, cells, step)[:, :height, :width].copy())


def _flags(reader: PassReader, count: int, which: int) -> np.ndarray:
    values = reader.take(count, np.full(count, _FLAGS + which, np.uint8))
    if ((values != 0) & (values != 1)).any():
        raise ValueError("a block has an impossible size")
    return values == 1


def _steps(all_blocks: list[_Blocks], step: int) -> list[int]:
    """Of each kind, in sixteenths: a chroma sample counts for four pixels, so its step is 9/16 of luma's."""
    return [max(1, step * 9 // 16) if b.chroma else step for b in all_blocks]


def _parts(blocks: _Blocks, samples: np.ndarray):
    """(row, column, view [B, 8, 8]) of each cell of the blocks' samples."""
    for i in range(blocks.size // _CELL):
        for j in range(blocks.size // _CELL):
            yield i, j, samples[:, _CELL * i : _CELL * (i + 1), _CELL * j : _CELL * (j + 1)]


def _drawn(all_blocks: list[_Blocks], cells: tuple[int, int, int], step: int) -> np.ndarray:
    """[K, H, W, 3] uint8 of padded pictures."""
    count, rows, columns = cells
    shapes = [(count, rows, columns), (2 * count, rows // 2, columns // 2)]
    grids = [np.zeros((*shape, _CELL, _CELL), np.int32) for shape in shapes]
    left, upper = [[np.zeros(shape, bool) for shape in shapes] for _ in range(2)]
    steps = _steps(all_blocks, step)
    for blocks, each in zip(all_blocks, steps):
        kind, samples = int(blocks.chroma), inverse(np.moveaxis(blocks.q, 2, 0), each)
        for i, j, part in _parts(blocks, samples):
            at = blocks.plane, blocks.row + i, blocks.column + j
            grids[kind][at] = part
            left[kind][at], upper[kind][at] = j == 0, i == 0
    frames = []
    for k in range(count):
        planes = []
        for kind, number, each in ((0, k, steps[0]), (1, 2 * k, steps[-1]), (1, 2 * k + 1, steps[-1])):
            plane = grids[kind][number].swapaxes(1, 2).reshape(-1, _CELL * shapes[kind][2])
            plane = smooth(plane, left[kind][number], each // 16)
            planes.append(smooth(plane.T, upper[kind][number].T, each // 16).T)
        frames.append(to_frame(planes))
    return np.stack(frames)


def _rounded(coefficients: np.ndarray, step: float) -> np.ndarray:
    return (np.sign(coefficients) * np.floor(np.abs(coefficients) / step + _ROUND)).astype(np.int32)


def _chosen(luma: np.ndarray, step: float) -> np.ndarray:
    """[H / 16, W / 16] sizes of blocks that cost least, error and bits together; bits by a rule of thumb."""
    cost = {}
    for size in SIZES:
        c = forward(cut(luma, size).reshape(-1, size, size))
        q = _rounded(c, step)
        bits = (2 * np.log2(1.0 + np.abs(q)) + 1.5 * (q != 0)).sum((1, 2)) + 2
        error = ((c - q * step) ** 2).sum((1, 2))
        cost[size] = (error + _PRICE * step * step * bits).reshape(luma.shape[0] // size, -1)
    small = _fours(cost[8])
    middle = np.minimum(small, cost[16])
    whole = np.repeat(np.repeat(cost[SUPER] < _fours(middle), 2, 0), 2, 1)
    return np.where(whole, SUPER, np.where(cost[16] < small, 16, 8))


def _fours(cost: np.ndarray) -> np.ndarray:
    h, w = cost.shape
    return cost.reshape(h // 2, 2, w // 2, 2).sum((1, 3))
