"""What a Gaussian video's integers mean: from them to pictures, the same ones everywhere.

A number is an integer times a power of two, which float32 holds exactly; a colour (Y, Co, Cg) becomes
R = (Y + Co) - Cg, G = Y + Cg, B = (Y - Co) - Cg, each operation rounded to float32; then docs/exact_decode.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..functional.splatting.decode import decode_splats
from .gaussian_bits import ATTRIBUTES, decode_change, decode_key, pack, unpack

QUANTA_LOG2 = (-1, -1, -5, -5, -5, -8, -7, -7)
FINE_LOG2 = (-3, -3, -6, -6, -6, -9, -8, -8)  # where few steps must do, and size is no concern
_MOST = 1 << 22


@dataclass(frozen=True)
class Grid:
    """The picture's size and what one unit of each number is worth."""

    height: int
    width: int
    quanta_log2: tuple[int, ...] = QUANTA_LOG2

    @classmethod
    def from_config(cls, config: dict, size: tuple[int, int]) -> Grid:
        """From a header's config, which may hold anything."""
        logs = config.get("quanta_log2")
        if (
            not isinstance(logs, list)
            or len(logs) != ATTRIBUTES
            or any(type(k) is not int or not -24 <= k <= 8 for k in logs)
        ):
            raise ValueError("`quanta_log2` of the header's config is not 8 integers from -24 to 8")
        return cls(*size, tuple(logs))

    @property
    def quanta(self) -> np.ndarray:
        return np.exp2(np.array(self.quanta_log2, np.float64)).astype(np.float32)

    def values(self, q: np.ndarray) -> torch.Tensor:
        """[N, 8] float32 of [N, 8] integers."""
        return torch.from_numpy(q.astype(np.float32) * self.quanta)

    def rounded(self, values: torch.Tensor) -> np.ndarray:
        """The nearest integers, inside what a file may hold."""
        return np.clip(np.rint(values.numpy() / self.quanta), -(1 << 23), 1 << 23).astype(np.int32)

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


def join_gop(count: int, frames: list[bytes]) -> bytes:
    """A GOP of `count` Gaussians from its coded key frame and changes."""
    return pack(count.to_bytes(4, "little"), *frames)


def decode_gop(data: memoryview, frames: int) -> Iterator[np.ndarray]:
    """The integers of each frame. Raises ValueError where the bytes cannot be a GOP of so many frames."""
    parts = unpack(data, frames + 1)
    count = int.from_bytes(parts[0], "little")
    if len(parts[0]) != 4 or count > _MOST or count > 8 * len(parts[1]):
        raise ValueError(f"{count} Gaussians cannot be in {len(parts[1])} bytes")
    now = decode_key(parts[1], count)
    yield now
    before = np.zeros_like(now)
    for part in parts[2:]:
        before = decode_change(part, before)
        now = now + before
        yield now
