"""What the opened files of all models share: numbering, clock, sound."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import torch

from .. import _check
from .container import Audio, ContainerReader, Gop
from .errors import damaged


class OpenedFile:
    """A `.vkv` file whose frames are drawn from numbers: a subclass has `numbers(frame)` and `drawn(numbers)`."""

    def __init__(self, reader: ContainerReader):
        self.reader = reader
        self.size = (reader.header.height, reader.header.width)
        self.bytes = reader.end

    def numbers(self, frame: int) -> Any:
        """What frame `frame` is drawn from; a thread of its own asks for it while a picture is drawn."""
        raise NotImplementedError

    def drawn(self, numbers: Any) -> torch.Tensor:
        """The picture [H, W, 3] uint8."""
        raise NotImplementedError

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
        return self.drawn(self.numbers(key % len(self)))

    def __iter__(self) -> Iterator[torch.Tensor]:
        """The frames in order: while one is drawn, the numbers of the next are decoded."""
        if len(self):
            yield from self._in_order(range(len(self)))

    def _in_order(self, numbers: range) -> Iterator[torch.Tensor]:
        with ThreadPoolExecutor(1, "vidkernels-decode") as ahead:
            coming = ahead.submit(self.numbers, numbers[0])
            for following in [*numbers[1:], None]:
                now = coming.result()
                if following is not None:
                    coming = ahead.submit(self.numbers, following)
                yield self.drawn(now)

    def moment(self, seconds: float) -> tuple[Gop, int, float]:
        """(GOP, frame in it, share of the way to the frame after) at a time from the first frame on."""
        if not 0 <= seconds <= self.reader.duration:
            _check.fail("at", f"expected a time from 0 to {float(self.reader.duration):g} seconds.", seconds=seconds)
        ticks = Fraction(seconds) / self.reader.header.time_base + int(self.reader.pts(0)[0])
        end = seconds == self.reader.duration  # where the last frame has just gone; it is still what there is to see
        clock = ticks * self.reader.header.time_base
        gop = self.reader.gop_of_frame(len(self) - 1) if end else self.reader.gop_of_time(clock)
        times = [*self.reader.pts(gop).tolist(), gop.end_pts]
        k = min(max(0, bisect_right(times, ticks) - 1), gop.frames - 1)
        return gop, k, float((ticks - times[k]) / (times[k + 1] - times[k]))

    def damaged_layer(self, gop: Gop, error: ValueError) -> None:
        """Raise DamagedFileError at the place of a GOP's first layer."""
        first = int(self.reader.index.gops[gop.number]["first_layer"])
        damaged(self.reader.path, int(self.reader.index.layers[first]["offset"]), "LAYR", str(error).splitlines()[0])

    def close(self) -> None:
        self.reader.close()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()
