"""The contact sheet: what went in, what came out, and where they differ."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vidkernels import _check
from vidkernels.metrics import frame_psnr

GAIN = 4
_LABEL, _GAP, _LEFT = 18, 4, 74


def error_picture(decoded: torch.Tensor, source: torch.Tensor, gain: int = GAIN) -> torch.Tensor:
    """|decoded - source| times `gain`, per channel, clipped: black where they agree. [..., H, W, 3] uint8."""
    apart = (decoded.to(torch.int16) - source.to(torch.int16)).abs_()
    return apart.mul_(gain).clamp_(max=255).to(torch.uint8)


def contact_sheet(
    path: str | os.PathLike,
    source: torch.Tensor,
    decoded: torch.Tensor,
    labels: Sequence[str],
    *,
    title: str = "",
    width: int = 320,
) -> None:
    """Draw selected frames into one picture: a column per frame, rows source, decoded, error x 4.

    Args:
        path: .png or .jpg.
        source: [K, H, W, 3] uint8.
        decoded: the same shape.
        labels: K texts above the columns, such as "frame 17"; the PSNR of the frame is added to each.
        title: a line at the top.
        width: pixels of a column; frames that are wider are scaled down (after the error is taken).
    Raises:
        ValueError: shapes that differ, no frame, a wrong number of labels, another suffix.
        ImportError: Pillow is missing.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        _check.fail("contact_sheet", "expected a name that ends with .png or .jpg.", path=str(path))
    values = frame_psnr(decoded, source).tolist()
    if source.dim() != 4 or len(labels) != len(source):
        _check.fail("contact_sheet", "expected frames [K, H, W, 3] and K labels.", source=source, labels=list(labels))
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        _check.fail("contact_sheet", "drawing needs Pillow.", "pip install pillow", error=ImportError)
    rows = [("source", source), ("decoded", decoded), (f"error x {GAIN}", error_picture(decoded, source))]
    wide = min(width, source.shape[2])
    high = max(round(source.shape[1] * wide / source.shape[2]), 1)
    top = _LABEL * (2 if title else 1) + _GAP
    size = (_LEFT + len(source) * (wide + _GAP), top + len(rows) * (high + _GAP))
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_GAP, 2), title, fill=(0, 0, 0))
    for column, (label, value) in enumerate(zip(labels, values)):
        x = _LEFT + column * (wide + _GAP)
        draw.text((x, top - _LABEL), f"{label}  {value:.2f} dB", fill=(0, 0, 0))
        for row, (name, frames) in enumerate(rows):
            y = top + row * (high + _GAP)
            if column == 0:
                draw.text((_GAP, y + high // 2 - 6), name, fill=(0, 0, 0))
            picture = Image.fromarray(np.ascontiguousarray(frames[column].numpy()))
            sheet.paste(picture.resize((wide, high), Image.Resampling.BOX), (x, y))
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        sheet.save(temporary, quality=92)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def spread(count: int, frames: int) -> list[int]:
    """`count` frame numbers from the first to the last, evenly; fewer if there are not so many."""
    count = min(count, frames)
    return [round(i * (frames - 1) / max(count - 1, 1)) for i in range(count)]
