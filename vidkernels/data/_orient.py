"""The display matrix of a file: how the stored picture is turned and mirrored to be shown upright.

x' = a x + c y        matrix = | a b u |     (a, b, c, d) are 0 or +-1 for the eight turns by quarter circles;
y' = b x + d y                 | c d v |     any other matrix is ignored.
                               | x y w |     16.16 fixed point, rows as stored
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Orientation:
    transpose: bool = False  # swap x and y first
    flip_x: bool = False  # then mirror left-right
    flip_y: bool = False  # then mirror top-bottom

    @classmethod
    def of(cls, frame) -> Orientation:
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return cls()
        matrix = np.frombuffer(bytes(data), dtype=np.int32)
        a, b, c, d = (round(int(value) / 65536) for value in matrix[[0, 1, 3, 4]])
        if abs(a) == abs(d) == 1 and b == c == 0:
            return cls(False, a < 0, d < 0)
        if abs(b) == abs(c) == 1 and a == d == 0:
            return cls(True, c < 0, b < 0)
        return cls()

    @property
    def degrees(self) -> int:
        """Clockwise turn applied to the stored picture (a mirrored file: the turn that follows the mirroring)."""
        if self.transpose:
            return 90 if self.flip_x else 270
        return 180 if self.flip_y else 0

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Turn [H, W, ...] upright."""
        if self.transpose:
            array = array.swapaxes(0, 1)
        if self.flip_x:
            array = array[:, ::-1]
        if self.flip_y:
            array = array[::-1]
        return array

    def apply_vectors(self, field: np.ndarray) -> np.ndarray:
        """Turn a field [2, H, W] of (x, y) vectors upright: its grid and its components."""
        grid = self.apply(np.moveaxis(field, 0, 2)).copy()
        if self.transpose:
            grid = grid[..., ::-1].copy()
        grid[..., 0] *= -1 if self.flip_x else 1
        grid[..., 1] *= -1 if self.flip_y else 1
        return np.moveaxis(grid, 2, 0)
