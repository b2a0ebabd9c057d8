"""An opened `.vkv` file as a sequence of frames."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from threading import Lock

import torch

from .. import _check
from .container import Audio, ContainerReader, Gop, Report
from .errors import damaged
from .gaussian_model import Grid, decode_gop

_KEPT_GOPS = 2
_KEPT_BYTES = 1 << 28  # of decoded Gaussians; what a file beyond it holds is decoded again where needed


def open(path: str | os.PathLike) -> GaussianFile:
    """Open a `.vkv` file: frames by index, slice and time, as uint8 tensors.

    Args:
        path: the file.
    Returns:
        video: len(video) frames; video[i] is [H, W, 3], video[a:b] is [T, H, W, 3], video.at(seconds) a moment.
    Raises:
        ValueError: not a .vkv file, damaged (with the place), made by a newer version, or of a model that this version
            does not know.
    Example:
        >>> from vidkernels.codec import open
        >>> open("clip.vkv")[10].shape  # doctest: +SKIP
        torch.Size([720, 1280, 3])
    """
    reader = ContainerReader(path)
    if reader.header.model != "gaussian":
        reader.close()
        _check.fail("open", f"{path} holds a model {reader.header.model!r} that this version cannot draw.",
                    "it needs a newer vidkernels.")  # fmt: skip
    return GaussianFile(reader)


class _Stretch:
    """The Gaussians of a GOP, decoded as far as they were asked for, and kept as far as memory is meant for it."""

    def __init__(self, make: Callable[[], Iterator[torch.Tensor]]):
        self._make = make
        self._restart()

    def _restart(self) -> None:
        self._frames, self._kept, self._at, self._last = self._make(), [], -1, None

    def __getitem__(self, k: int) -> torch.Tensor:
        if k < len(self._kept):
            return self._kept[k]
        if k < self._at:
            self._restart()
        try:
            while self._at < k:
                self._last = next(self._frames)
                self._at += 1
                if len(self._kept) == self._at and (self._at + 1) * self._last.numel() * 4 <= _KEPT_BYTES:
                    self._kept.append(self._last)
        except Exception:
            self._restart()
            raise
        return self._last


class GaussianFile:
    """A Gaussian video in a file. The Gaussians of a GOP are decoded when one of its frames is asked for."""

    model = "gaussian"

    def __init__(self, reader: ContainerReader):
        self.reader = reader
        self.size = (reader.header.height, reader.header.width)
        self.bytes = reader.end
        self._gops: OrderedDict[int, _Stretch] = OrderedDict()
        self._lock = Lock()  # iterating decodes ahead on a thread of its own
        try:
            self.grid = Grid.from_config(reader.header.config, self.size)
        except ValueError as error:
            reader.close()
            _check.fail("open", f"{reader.path}: {error}.")

    def __len__(self) -> int:
        return self.reader.frames

    @property
    def fps(self) -> Fraction:
        return Fraction(len(self), 1) / self.reader.duration

    @property
    def video_bytes(self) -> int:
        """Bytes of the file without the copied audio track."""
        return self.bytes - self.reader.audio_bytes

    @property
    def audio(self) -> Audio | None:
        return self.reader.audio()

    def __getitem__(self, key: int | slice) -> torch.Tensor:
        if isinstance(key, slice):
            chosen = range(*key.indices(len(self)))
            if not chosen:
                return torch.empty(0, *self.size, 3, dtype=torch.uint8)
            return torch.stack(list(self._in_order(chosen)))
        if not -len(self) <= key < len(self):
            raise IndexError(f"frame {key} of a video of {len(self)}")
        return self.grid.draw(self.gaussians(key % len(self)))

    def __iter__(self) -> Iterator[torch.Tensor]:
        """The frames in order: while one is drawn, the numbers of the next are decoded."""
        if len(self):
            yield from self._in_order(range(len(self)))

    def _in_order(self, numbers: range) -> Iterator[torch.Tensor]:
        with ThreadPoolExecutor(1, "vidkernels-decode") as ahead:
            coming = ahead.submit(self.gaussians, numbers[0])
            for following in [*numbers[1:], None]:
                now = coming.result()
                if following is not None:
                    coming = ahead.submit(self.gaussians, following)
                yield self.grid.draw(now)

    def at(self, seconds: float, size: tuple[int, int] | None = None) -> torch.Tensor:
        """The picture [H, W, 3] at a time from the first frame on, at any size (height, width): between two frames of a
        GOP, the Gaussians are half way, too."""
        if not 0 <= seconds <= self.reader.duration:
            _check.fail("at", f"expected a time from 0 to {float(self.reader.duration):g} seconds.", seconds=seconds)
        ticks = Fraction(seconds) / self.reader.header.time_base + int(self.reader.pts(0)[0])
        end = seconds == self.reader.duration  # where the last frame has just gone; it is still what there is to see
        clock = ticks * self.reader.header.time_base
        gop = self.reader.gop_of_frame(len(self) - 1) if end else self.reader.gop_of_time(clock)
        times = self.reader.pts(gop)
        k = max(0, bisect_right(times.tolist(), ticks) - 1)
        now = self.gaussians(gop.first_frame + k)
        if k + 1 < len(times):
            share = float((ticks - int(times[k])) / int(times[k + 1] - times[k]))
            if share > 0:
                now = torch.lerp(now, self.gaussians(gop.first_frame + k + 1), share)
        return self.grid.draw(now, size)

    def gaussians(self, frame: int) -> torch.Tensor:
        """[N, 8] float32 of a frame: x, y, l11, l21, l22 in pixels, Y, Co, Cg. Row i is the same Gaussian throughout a
        GOP."""
        gop = self.reader.gop_of_frame(frame)
        with self._lock:
            if gop.number not in self._gops:
                data = self.reader.read(gop)
                self._gops[gop.number] = _Stretch(lambda: self._decoded(gop, data))
                while len(self._gops) > _KEPT_GOPS:
                    self._gops.popitem(last=False)
            self._gops.move_to_end(gop.number)
            return self._gops[gop.number][frame - gop.first_frame]

    def _decoded(self, gop: Gop, data: memoryview) -> Iterator[torch.Tensor]:
        try:
            for q in decode_gop(data, gop.frames):
                yield self.grid.values(q)
        except ValueError as error:
            first = int(self.reader.index.gops[gop.number]["first_layer"])
            place = int(self.reader.index.layers[first]["offset"])
            damaged(self.reader.path, place, "LAYR", str(error).splitlines()[0])

    def verify(self) -> Report:
        """Check every byte, and every frame against its hash."""
        return self.reader.verify(lambda gop, layers: map(self.grid.draw, self._decoded(gop, layers[0])))

    def close(self) -> None:
        self.reader.close()

    def __enter__(self) -> GaussianFile:
        return self

    def __exit__(self, *_) -> None:
        self.close()
