"""How the blocks of one frame move to where they are in the next: a pyramid of Lucas and Kanade's steps.

Two grids: coarse blocks, whose vectors are coded for every frame, and fine blocks a quarter of their area, which get a
vector of their own only where it shows the next frame clearly better (at the edge of what moves). All is looked for in
frames of half the size, a quarter of the work: on Big Buck Bunny the compensated picture is 1% further off than with
the search in whole frames (mean absolute difference 1.789 and 1.770 grey levels).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _native

UNITS = 16  # of a pixel
_HALF = 2 * UNITS  # of a pixel of half size
_LEVELS = 3
_STEPS = 3
_SMALLEST = 8  # side of a block on the upper levels
_FLAT = 4.0  # added to the sums of squared slopes: keeps still what shows no structure
_CLEARLY = 1.0  # grey levels a pixel by which a fine block's own vector must be better


@dataclass(frozen=True)
class Motion:
    """Vectors (x, y) in sixteenths of a pixel.

    coarse: [2, ceil(H / 2b), ceil(W / 2b)] int32 for blocks of side 2b.
    fine: [2, ceil(H / b), ceil(W / b)] int32, added to those of the coarse block around a fine one.
    """

    coarse: np.ndarray
    fine: np.ndarray

    def whole(self) -> np.ndarray:
        """[2, ceil(H / b), ceil(W / b)]: the vector of each fine block."""
        rows, columns = self.fine.shape[1:]
        return self.coarse.repeat(2, 1).repeat(2, 2)[:, :rows, :columns] + self.fine


def shapes(height: int, width: int, block: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of the coarse and of the fine blocks."""
    return (-(-height // (2 * block)), -(-width // (2 * block))), (-(-height // block), -(-width // block))


def still(height: int, width: int, block: int) -> Motion:
    """No motion."""
    return Motion(*(np.zeros((2, *shape), np.int32) for shape in shapes(height, width, block)))


def block_motion(before: Tensor, after: Tensor, last: np.ndarray, block: int) -> Motion:
    """The motion from one frame [H, W, 3] uint8 to the next.

    Args:     last: the coarse vectors of the frame before, which are taken again where they show as much.
    Source:   Lucas and Kanade, "An iterative image registration technique", IJCAI 1981; coarse to fine after Bouguet.
    """
    if min(before.shape[:2]) < 2 * _SMALLEST:
        return still(*before.shape[:2], block)
    pyramid = [(_small(before), _small(after))]
    while len(pyramid) < _LEVELS and min(pyramid[-1][0].shape[2:]) >= 4 * _SMALLEST:
        pyramid.append(tuple(_pooled(x, 2) for x in pyramid[-1]))
    block, big = block // 2, block  # in the small frames
    vectors = torch.zeros(1, 2, 1, 1)
    for level in range(len(pyramid) - 1, 0, -1):
        old, new = pyramid[level]
        side = max(_SMALLEST, big >> level)
        vectors = _resized(vectors, old, side)
        vectors = 2 * _descended(old, new, vectors, side, _around)
    old, new = pyramid[0]
    found = _rounded(_descended(old, new, _resized(vectors, old, big), big))
    repeated = torch.from_numpy(last.astype(np.float32) / _HALF)[None]
    smooth = F.unfold(F.pad(found, (1, 1, 1, 1), mode="replicate").transpose(0, 1), 3).median(1).values.view_as(found)
    # In this order where they are equally good: the cheaper ones first.
    candidates = [repeated, torch.zeros_like(found), smooth, found]
    errors = torch.stack([_error(old, new, v, big) for v in candidates])
    best = errors.argmin(0).expand(1, 2, -1, -1)
    coarse = torch.stack(candidates).gather(0, best[None])[0]
    rows, columns = _pooled(old, block).shape[2:]
    inherited = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :rows, :columns]
    own = _rounded(_descended(old, new, inherited, block))
    better = _error(old, new, own, block) + _CLEARLY < _error(old, new, inherited, block)
    fine = torch.where(better, own - inherited, torch.zeros_like(own))
    return Motion(*((_HALF * v[0]).round().to(torch.int32).numpy() for v in (coarse, fine)))


def _small(frame: Tensor) -> Tensor:
    """Grey, of half the size."""
    return _pooled((frame.float() @ torch.full((3,), 1 / 3))[None, None], 2)


def _pooled(x: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(x, side, side, ceil_mode=True, count_include_pad=False)


def _around(x: Tensor) -> Tensor:
    """Blocks together with their neighbours: on the upper levels they are small."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _resized(vectors: Tensor, image: Tensor, side: int) -> Tensor:
    height, width = image.shape[2:]
    return F.interpolate(vectors, (-(-height // side), -(-width // side)), mode="bilinear", align_corners=False)


def _rounded(vectors: Tensor) -> Tensor:
    return (vectors * _HALF).round() / _HALF


def _error(old: Tensor, new: Tensor, vectors: Tensor, side: int) -> Tensor:
    """Mean absolute difference in each block."""
    return _sums(old, new, old, old, vectors, side)[:, 2:]  # which slopes does not matter


def _descended(old: Tensor, new: Tensor, vectors: Tensor, side: int, spread=lambda x: x) -> Tensor:
    """Gauss-Newton steps of each block's vector towards where `new` looks like `old`."""
    down, across = (slope[None, None] for slope in torch.gradient(old[0, 0]))
    products = torch.cat([across * across, across * down, down * down], 1)
    xx, xy, yy = spread(_pooled(products, side)).split(1, 1)
    xx, yy = xx + _FLAT, yy + _FLAT
    determinant = xx * yy - xy * xy
    for _ in range(_STEPS):
        bx, by = spread(_sums(old, new, across, down, vectors, side)[:, :2]).split(1, 1)
        step = torch.cat([yy * bx - xy * by, xx * by - xy * bx], 1) / determinant
        vectors = vectors + step.clamp(-2, 2)
    return vectors


def _sums(old: Tensor, new: Tensor, across: Tensor, down: Tensor, vectors: Tensor, side: int) -> Tensor:
    """[1, 3, R, C]: means over each block of across * off, down * off and |off|; csrc/ops/block_sums/block_sums.h."""
    kernel = getattr(_native._C, "block_sums_cpu", None)
    if kernel is None:
        return _sums_in_torch(old, new, across, down, vectors, side)
    out = vectors.new_empty(1, 3, *vectors.shape[2:])
    kernel(*(x[0, 0].contiguous() for x in (old, new, across, down)), vectors[0].contiguous(), out[0], side)
    return out


def _sums_in_torch(old: Tensor, new: Tensor, across: Tensor, down: Tensor, vectors: Tensor, side: int) -> Tensor:
    height, width = new.shape[2:]
    each = vectors[0].repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :height, :width]
    x = (each[0] + torch.arange(0.5, width)) * (2 / width) - 1
    y = (each[1] + torch.arange(0.5, height)[:, None]) * (2 / height) - 1
    seen = F.grid_sample(new, torch.stack([x, y], -1)[None], padding_mode="border", align_corners=False)
    off = old - seen
    return _pooled(torch.cat([across * off, down * off, off.abs()], 1), side)
