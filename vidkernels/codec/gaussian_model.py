"""What a Gaussian video's integers mean: from them to pictures, the same ones everywhere.

A number is an integer times a power of two, which float32 holds exactly. Positions count in sixteenths of a pixel, the
unit of motion, though what is coded of them comes in larger steps. A colour (Y, Co, Cg) becomes
R = (Y + Co) - Cg, G = Y + Cg, B = (Y - Co) - Cg, each operation rounded to float32; then docs/exact_decode.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..functional.splatting.decode import decode_splats
from .block_motion import UNITS, Motion
from .gaussian_bits import ATTRIBUTES, Changes, decode_key, pack, unpack
from .passes import PassReader

QUANTA_LOG2 = (-1, -1, -5, -5, -5, -8, -7, -7)
FINE_LOG2 = (-3, -3, -6, -6, -6, -9, -8, -8)  # where few steps must do, and size is no concern
_BLOCK = 32  # pixels; of the fine blocks of motion
_POSITION_LOG2 = -4
_MOST = 1 << 22


@dataclass(frozen=True)
class Grid:
    """The picture's size, the steps in which each number is coded, and the side of a block that moves as one."""

    height: int
    width: int
    quanta_log2: tuple[int, ...] = QUANTA_LOG2
    block: int = _BLOCK

    @classmethod
    def from_config(cls, config: dict, size: tuple[int, int]) -> Grid:
        """From a header's config, which may hold anything."""
        logs = config.get("quanta_log2")
        if (
            not isinstance(logs, list)
            or len(logs) != ATTRIBUTES
            or any(type(k) is not int or not -24 <= k <= 8 for k in logs)
            or min(logs[:2]) < _POSITION_LOG2
        ):
            raise ValueError("`quanta_log2` of the header's config is not 8 integers from -24 to 8, first two -4 to 8")
        block = config.get("block")
        if type(block) is not int or not 8 <= block <= 1 << 16 or block & (block - 1):
            raise ValueError("`block` of the header's config is not a power of two from 8 to 65536")
        return cls(*size, tuple(logs), block)

    @property
    def config(self) -> dict:
        """What `from_config` reads."""
        return {"quanta_log2": list(self.quanta_log2), "block": self.block}

    @property
    def quanta(self) -> np.ndarray:
        return np.exp2(np.array(self.quanta_log2, np.float64)).astype(np.float32)

    @property
    def steps(self) -> np.ndarray:
        """[8] int32: units in a coded step of each number."""
        return np.array([1 << k - _POSITION_LOG2 for k in self.quanta_log2[:2]] + [1] * 6, np.int32)

    def values(self, q: np.ndarray) -> torch.Tensor:
        """[N, 8] float32 of [N, 8] integers."""
        return torch.from_numpy(q.astype(np.float32) * (self.quanta / self.steps.astype(np.float32)))

    def rounded(self, values: torch.Tensor) -> np.ndarray:
        """The nearest number of steps, inside what a file may hold."""
        return np.clip(np.rint(values.numpy() / self.quanta), -(1 << 23), 1 << 23).astype(np.int32)

    def moved(self, q: np.ndarray, motion: Motion) -> np.ndarray:
        """The integers after the blocks have moved and the Gaussians in them, wherever they are outside, along."""
        whole = motion.whole()
        log2 = np.int32((self.block * UNITS).bit_length() - 1)  # of a block's side, a power of two
        column = np.clip(q[:, 0] >> log2, 0, whole.shape[2] - 1)
        row = np.clip(q[:, 1] >> log2, 0, whole.shape[1] - 1)
        at = row * np.int32(whole.shape[2]) + column
        out = q.copy()
        for k in range(2):
            out[:, k] += whole[k].reshape(-1)[at]
        return out

    def changes(self, count: int) -> Changes:
        """The coder of what happens to `count` Gaussians after a key frame."""
        return Changes(count, self.height, self.width, self.block)

    def draw(self, values: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """The picture [H, W, 3] uint8 of [N, 8] float32 numbers; at another size, everything scales along."""
        means, shapes = values[:, :2], values[:, 2:5]
        if size is not None and size != (self.height, self.width):
            sy, sx = size[0] / self.height, size[1] / self.width
            means, shapes = means * means.new_tensor([sx, sy]), _scaled(shapes, sx, sy)
        return decode_splats(means, shapes, rgb(values[:, 5:]), size=size or (self.height, self.width))


def _scaled(shapes: torch.Tensor, sx: float, sy: float) -> torch.Tensor:
    return shapes * shapes.new_tensor([sx, sy, sy])


def rgb(colors: torch.Tensor) -> torch.Tensor:
    """[N, 3] (R, G, B) of [N, 3] (Y, Co, Cg)."""
    y, co, cg = colors.unbind(1)
    return torch.stack([(y + co) - cg, y + cg, (y - co) - cg], 1)


def join_gop(count: int, key: bytes, changes: bytes) -> bytes:
    """A GOP of `count` Gaussians from its key frame and what `encode_passes` made of its changes."""
    return pack(count.to_bytes(4, "little"), key, changes)


def decode_gop(data: memoryview, frames: int, grid: Grid) -> Iterator[np.ndarray]:
    """The integers of each frame. Raises ValueError where the bytes cannot be a GOP of so many frames."""
    parts = unpack(data, 3)
    count = int.from_bytes(parts[0], "little")
    if len(parts[0]) != 4 or count > _MOST or count > 8 * len(parts[1]):
        raise ValueError(f"{count} Gaussians cannot be in {len(parts[1])} bytes")
    now = decode_key(parts[1], count) * grid.steps
    yield now
    reader, changes = PassReader(parts[2]), grid.changes(count)
    for _ in range(frames - 1):
        changes.step(lambda contexts, _: reader.take(len(contexts), contexts))
        now = grid.moved(now, changes.motion) + changes.change * grid.steps
        yield now
    if not reader.finished():
        raise ValueError(f"something lies behind the {frames} frames")
