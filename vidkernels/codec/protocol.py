"""What the commands ask of a codec: how a fit is started, reports and is resumed, and what an opened file can do.

A model is a module, named in `MODELS`, with two functions:

    fit(source: Source, out: Path, goal: Goal, *, gop: int | None) -> Iterator[Progress]
    resume(state: Path) -> Iterator[Progress]

Both are generators that do the work between two `yield`s. `out` exists, complete and under its own name, when the
generator ends; until then the work lives in `state_path(out)`, which holds all that `resume` needs (the source's path
and cut, the goal, `out`, the parameters) and is removed at the end. Closing the generator, or killing the process, at
any moment leaves a state from which `resume` goes on to the same bytes as an uninterrupted fit.

`vidkernels.codec.open(path)` returns a `Video` for a finished file of any model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Protocol

import torch

from vidkernels import _check

MODELS = {"gaussian": "vidkernels.codec.gaussian"}


@dataclass(frozen=True)
class Source:
    """Which frames of which file: [start, end) in seconds on the file's own clock, scaled to (height, width)."""

    path: Path
    start: float | None = None
    end: float | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Goal:
    """When to stop: exactly one is set. Seconds of fitting, bytes of the file, or decibels of mean PSNR."""

    seconds: float | None = None
    bytes: int | None = None
    psnr: float | None = None

    def __post_init__(self):
        if sum(value is not None for value in (self.seconds, self.bytes, self.psnr)) != 1:
            _check.fail("Goal", "expected exactly one of seconds, bytes and psnr.", **vars(self))


@dataclass(frozen=True)
class Progress:
    """Where a fit stands.

    Args:     done, total: units of work (frames, iterations: the model's choice), for the bar; done <= total.
              frame: frames that are fitted so far.
              gop: the GOP in work.
              psnr: mean over the frames fitted so far, decibels; None before there is one.
              bytes: of the file as far as it is known.
              elapsed: seconds of fitting, those before an interruption included.
    """

    done: int
    total: int
    frame: int
    gop: int
    psnr: float | None
    bytes: int
    elapsed: float


class Video(Protocol):
    """An opened `.vkv` file. Frames are uint8 RGB; `size` is (height, width); `bytes` those of the file."""

    model: str
    fps: float | Fraction
    size: tuple[int, int]
    bytes: int

    def __len__(self) -> int: ...
    def __getitem__(self, key: int | slice) -> torch.Tensor: ...
    def __iter__(self) -> Iterator[torch.Tensor]: ...
    def at(self, seconds: float) -> torch.Tensor: ...


class Model(Protocol):
    """A module that can fit."""

    def fit(self, source: Source, out: Path, goal: Goal, *, gop: int | None) -> Iterator[Progress]: ...
    def resume(self, state: Path) -> Iterator[Progress]: ...


def model(name: str) -> Model:
    """The module of a model; imported only now."""
    if name not in MODELS:
        _check.fail("fit", f"no model named {name!r}.", f"one of {', '.join(MODELS)}.")
    return import_module(MODELS[name])


def state_path(out: str | os.PathLike) -> Path:
    """Where an unfinished fit of `out` keeps its state: beside it."""
    out = Path(out)
    return out.with_name(out.name + ".state")


def open_video(path: str | os.PathLike) -> Video:
    """`vidkernels.codec.open`, found when it is called."""
    return import_module("vidkernels.codec").open(path)


def read_source(source: Source) -> tuple[torch.Tensor, Fraction, list[float]]:
    """The frames [T, H, W, 3] of a source, its rate, and the second at which each frame appears.

    Raises:   ValueError: an unreadable file, or no frame in the cut.
    """
    from ..data import VideoReader

    with VideoReader(source.path, size=source.size) as reader:
        times = reader.timestamps.tolist()
        low = times[0] if source.start is None else source.start
        high = times[-1] + 1 if source.end is None else source.end
        numbers = [i for i, t in enumerate(times) if low - 1e-9 <= t < high - 1e-9]
        if not numbers:
            _check.fail(
                "fit",
                "the cut holds no frame.",
                path=str(source.path),
                start=source.start,
                end=source.end,
                frames_from=times[0],
                frames_to=times[-1],
            )
        frames = reader.get_frames(numbers)
        return frames, Fraction(reader.fps).limit_denominator(100_000), [times[i] for i in numbers]
