"""What the commands ask of a codec: how a fit is started, reports and is resumed, and what an opened file can do.

A model is a module, named in `MODELS`, with two functions:

    fit(source: Source, out: Path, goal: Goal, *, gop: int | None) -> Generator[Progress, None, Source]
    resume(state: Path) -> Generator[Progress, None, Source]

Both are generators that do the work between two `yield`s and return the source at the end. `out` exists, complete and
under its own name, when the generator ends; until then the work lives in `state_path(out)`, which holds all that
`resume` needs (the source's path and cut, the goal, the parameters; `out` is its name without the suffix) and is
removed at the end. Closing the generator, or killing the process, at
any moment leaves a state from which `resume` goes on to the same bytes as an uninterrupted fit. (A Gaussian fit with a
goal of seconds goes on to its end in that time: its steps follow the clock, so no two such fits give the same bytes.)

A model whose files take more frames has a third one, in the same form:

    append(path: Path, source: Source, goal: Goal, *, gop: int | None) -> Generator[Progress, None, Source]

It adds the source's frames behind those of `path`, which stays what it was until the generator ends; `goal.bytes` are
those that the file may grow by. `resume` goes on with an append as it does with a fit. A model of networks also takes
`mask` (a picture or video) in `fit` and `append`.

`vidkernels.codec.open(path)` returns a `Video` for a finished file of any model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from vidkernels import _check

if TYPE_CHECKING:
    from .reader import Report

MODELS = {
    "gaussian": "vidkernels.codec.gaussian",
    "pfnr": "vidkernels.codec.nerv_pfnr",
    "latent": "vidkernels.codec.nerv_latent",
    "flow": "vidkernels.codec.nerv_flow",
    "nerv": "vidkernels.codec.nerv_nerv",
    "hnerv": "vidkernels.codec.nerv_hnerv",
}


@dataclass(frozen=True)
class Source:
    """Which frames of which file: [start, end) in seconds on its clock, scaled to (height, width) or a short side."""

    path: Path
    start: float | None = None
    end: float | None = None
    size: tuple[int, int] | int | None = None


@dataclass(frozen=True)
class Goal:
    """When to stop: seconds of fitting, bytes of the file, or decibels of mean PSNR.

    Bytes or decibels together with seconds: what is fitted is made for these, and the time decides how much work that
    is. The bytes are kept to then, whatever it takes; decibels are aimed at, and may be missed.
    """

    seconds: float | None = None
    bytes: int | None = None
    psnr: float | None = None

    def __post_init__(self):
        if self.bytes is not None and self.psnr is not None:
            _check.fail("Goal", "expected one of bytes and psnr, not both.", "the other one is what comes of it",
                        **vars(self))  # fmt: skip
        if self.seconds is None and self.bytes is None and self.psnr is None:
            _check.fail("Goal", "expected seconds, bytes or psnr.", **vars(self))

    @property
    def only_time(self) -> bool:
        return self.bytes is None and self.psnr is None

    def single(self, caller: str, model: str) -> None:
        """ValueError where time is set beside bytes or decibels, for a model that cannot follow both."""
        if self.seconds is not None and not self.only_time:
            _check.fail(caller, f"the model {model!r} takes a time, or bytes, or decibels, not a time with another.",
                        "leave out the time, or take a network: latent, flow, nerv, hnerv, pfnr", **vars(self),
                        )  # fmt: skip


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
    """An opened `.vkv` file. Frames are uint8 RGB; `size` is (height, width); `bytes` those of the file.

    `at(seconds)` counts from the first frame, and may draw a moment between two frames. `verify()` decodes everything
    and returns the container's `Report`.
    """

    model: str
    fps: float | Fraction
    size: tuple[int, int]
    bytes: int
    audio: object | None

    def __len__(self) -> int: ...
    def __getitem__(self, key: int | slice) -> torch.Tensor: ...
    def __iter__(self) -> Iterator[torch.Tensor]: ...
    def at(self, seconds: float) -> torch.Tensor: ...
    def verify(self) -> Report: ...


class Model(Protocol):
    """A module that can fit."""

    def fit(self, source: Source, out: Path, goal: Goal, *, gop: int | None) -> Generator[Progress, None, Source]: ...
    def resume(self, state: Path) -> Generator[Progress, None, Source]: ...


def appending(path: Path) -> Model:
    """The module of a file's model, which has `append`. ValueError: the model takes no more frames."""
    from .container import ContainerReader

    with ContainerReader(path) as reader:
        name = reader.header.model
    found = import_module(MODELS[name]) if name in MODELS else None
    if not hasattr(found, "append"):
        _check.fail("append", f"a file of the model {name!r} takes no more frames.", path=str(path))
    return found


def model(name: str) -> Model:
    """The module of a model; imported only now."""
    if name not in MODELS:
        _check.fail("fit", f"no model named {name!r}.", f"one of {', '.join(MODELS)}.")
    return import_module(MODELS[name])


STATE = ".state"


def state_path(out: str | os.PathLike) -> Path:
    """Where an unfinished fit of `out` keeps its state: beside it. A state's path is its own."""
    out = Path(out)
    return out if out.suffix == STATE else out.with_name(out.name + STATE)


def state_model(state: Path) -> str:
    """The name of the model that an unfinished fit is of."""
    from .state import state_facts

    return str(state_facts(state).get("model", "gaussian"))


def open_video(path: str | os.PathLike, **more) -> Video:
    """`vidkernels.codec.open`, found when it is called."""
    return import_module("vidkernels.codec").open(path, **more)


def read_source(
    source: Source, pick: Callable[[int], Sequence[int]] = range
) -> tuple[torch.Tensor, Fraction, list[float]]:
    """The frames [T, H, W, 3] of a source, its rate, and the second at which each frame appears.

    Args:     pick: from the number of frames in the cut, which of them to decode; all by default.
    Raises:   ValueError: an unreadable file, or no frame in the cut.
    """
    from ..data import VideoReader

    with VideoReader(source.path, size=source.size) as reader:
        times = reader.timestamps.tolist()
        low = -float("inf") if source.start is None else source.start - 1e-9
        high = float("inf") if source.end is None else source.end - 1e-9
        numbers = [i for i, t in enumerate(times) if low <= t < high]
        if not numbers:
            _check.fail(
                "read_source",
                "the cut holds no frame.",
                path=str(source.path),
                start=source.start,
                end=source.end,
                frames_from=times[0],
                frames_to=times[-1],
            )
        numbers = [numbers[i] for i in pick(len(numbers))]
        rate = Fraction(reader.fps).limit_denominator(100_000)
        return reader.get_frames(numbers), rate, [times[i] for i in numbers]
