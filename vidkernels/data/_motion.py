"""Codec motion vectors: FFmpeg's block list as tensors, and painted as a dense field."""

from __future__ import annotations

import numpy as np
import torch


def block_table(frame) -> dict[str, torch.Tensor]:
    """The blocks of one decoded frame; empty tensors where the frame has none (intra frames, other codecs)."""
    raw = _raw(frame)
    scale = np.maximum(raw["motion_scale"].astype(np.float32), 1)[:, None]
    # FFmpeg gives the step from the block to its source; we give the way the content went.
    motion = -np.stack([raw["motion_x"], raw["motion_y"]], 1).astype(np.float32) / scale

    def pair(x: str, y: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([raw[x], raw[y]], 1).astype(np.int32))

    return {
        "source": torch.from_numpy(raw["source"].astype(np.int32)),
        "block": pair("w", "h"),
        "src": pair("src_x", "src_y"),
        "dst": pair("dst_x", "dst_y"),
        "motion": torch.from_numpy(motion),
    }


def dense_field(blocks: dict[str, torch.Tensor], height: int, width: int) -> np.ndarray:
    """Paint the blocks into [2, height, width]; a reference in the past wins over one in the future."""
    field = np.zeros((2, height, width), np.float32)
    source = blocks["source"].numpy()
    for future in (True, False):  # the past is painted last, over the future
        chosen = (source > 0) == future
        sign = -1.0 if future else 1.0
        size = blocks["block"].numpy()[chosen]
        centre = blocks["dst"].numpy()[chosen]
        motion = blocks["motion"].numpy()[chosen] * sign
        for w, h in np.unique(size, axis=0):
            same = (size == (w, h)).all(1)
            x = centre[same, 0, None, None] - w // 2 + np.arange(w)[None, None, :]
            y = centre[same, 1, None, None] - h // 2 + np.arange(h)[None, :, None]
            x, y = np.broadcast_arrays(x, y)
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            for axis in (0, 1):
                values = np.broadcast_to(motion[same, axis, None, None], x.shape)
                field[axis][y[inside], x[inside]] = values[inside]
    return field


_FIELDS = ("source", "w", "h", "src_x", "src_y", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale")


def _raw(frame) -> np.ndarray:
    data = frame.side_data.get("MOTION_VECTORS")
    if data is None:
        return np.zeros(0, dtype=[(name, np.int32) for name in _FIELDS])
    return data.to_ndarray()
