"""The source of a fit as every model reads it: frames a stretch at a time, their times, sound and colour."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch

from .. import _check
from .audio import Audio, read_audio
from .container import Color
from .protocol import Source, read_source


class Clip:
    """The frames of a source, decoded a stretch at a time, and their times."""

    def __init__(self, source: Source):
        self.source = source
        self.fingerprint = fingerprint(source.path)
        self.numbers: range = range(0)

        def first(count):
            self.numbers = range(count)
            return [0]

        frames, self.rate, _ = read_source(source, first)
        self.size = (int(frames.shape[1]), int(frames.shape[2]))
        self._begin, self._frames = 0, frames
        self.seconds: list[float] = []

    def __len__(self) -> int:
        return len(self.numbers)

    def load(self, begin: int, end: int) -> torch.Tensor:
        """The frames [T, H, W, 3] from `begin` to `end`, which indexing then finds; their times are in `seconds`."""
        self._frames, _, seconds = read_source(self.source, lambda count: range(begin, end))
        self._begin, self.seconds = begin, seconds
        return self._frames

    def __getitem__(self, i: int) -> torch.Tensor:
        return self._frames[i - self._begin]


def fingerprint(path: Path) -> str:
    """Of a file's length and its two ends, which hold what a container says about all of it."""
    end = 1 << 20
    with open(path, "rb") as file:
        digest = hashlib.blake2b(file.read(end), digest_size=16)
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - end))
        digest.update(file.read(end))
    return f"{length}:{digest.hexdigest()}"


def whole_audio(source: Source) -> Audio | None:
    """The source's audio, if all of it is wanted."""
    return read_audio(source.path) if source.start is None and source.end is None else None


def color_of(path: Path) -> Color:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0].codec_context
        return Color(int(stream.color_primaries or 2), int(stream.color_trc or 2), int(stream.colorspace or 2),
                     int(stream.color_range or 0) == 2)  # fmt: skip


def timestamps(seconds: Sequence[float], rate: Fraction) -> tuple[Fraction, list[int]]:
    """(time base, times): frame numbers where the frames come evenly, else the usual clock of video."""
    even = all(abs(s - seconds[0] - i / rate) < 0.25 / rate for i, s in enumerate(seconds))
    base = 1 / rate if even else Fraction(1, 90_000)
    return base, list(range(len(seconds))) if even else [round((s - seconds[0]) / base) for s in seconds]


def ticks_behind(seconds: Sequence[float], base: Fraction, end: int) -> list[int]:
    """Times of appended frames on the clock of a file that ends at `end`. ValueError: the clock is too coarse."""
    ticks = [end + round((s - seconds[0]) / base) for s in seconds]
    if any(b <= a for a, b in itertools.pairwise(ticks)):
        _check.fail("append", f"the clip's frames come faster than the file's clock ticks, every {float(base):g} s.",
                    "choose a clip of the file's frame rate")  # fmt: skip
    return ticks


def decibels(square: float) -> float:
    """PSNR of a mean squared error of pixels in [0, 1]; equal pictures count as 100."""
    return 10 * math.log10(1 / max(square, 1e-10))
