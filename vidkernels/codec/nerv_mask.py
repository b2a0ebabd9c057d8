"""Masks of a fit: which pixels do not count, so that the model may draw there what it likes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from .. import _check

_PICTURES = (".png", ".bmp", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif")


def counted_pixels(path: Path, frames: int, size: tuple[int, int]) -> torch.Tensor:
    """[1 or T, H, W] bool, True where pixels count: where the mask is dark.

    Args:     path: a picture for all frames, or a video with as many frames as the clip; bright hides
              (from 128 of 255 on).
    Raises:   ValueError: another size or number of frames, an unreadable file, or a mask that hides everything.
    """
    if not path.is_file():
        _check.fail("mask", "no such file.", error=FileNotFoundError, path=str(path))
    if path.suffix.lower() in _PICTURES:
        masks = _picture(path)
    else:
        from ..data import VideoReader

        with VideoReader(path) as reader:
            masks = reader.get_frames(range(len(reader)))
    if len(masks) not in (1, frames) or tuple(masks.shape[1:3]) != tuple(size):
        _check.fail(
            "mask", "expected one picture, or as many as the clip has frames, of the clip's size.",
            "cut and scale the mask like the clip", mask=(len(masks), *masks.shape[1:3]), clip=(frames, *size),
        )  # fmt: skip
    counted = masks.float().mean(-1) < 128
    if not counted.any():
        _check.fail("mask", "no pixel is left to fit.", "white hides, black counts.", path=str(path))
    return counted


def _picture(path: Path) -> torch.Tensor:
    try:
        from PIL import Image
    except ImportError:
        _check.fail("mask", "reading a picture needs Pillow.", "pip install pillow", error=ImportError)
    try:
        with Image.open(path) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB")))[None]
    except OSError as error:
        _check.fail("mask", f"not a readable picture: {error}.", path=str(path))
