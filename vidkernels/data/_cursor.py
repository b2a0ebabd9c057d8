"""A decoder with a position: hands out chosen frames of a file, decoding as little as it can.

A request is a rising list of frame numbers. For each one the cursor reads on if no keyframe lies between it and the
frame, else it seeks to the frame's keyframe. A seek is never trusted: the first packet read tells where it landed, and
a late landing, or a frame that did not come out, starts again from an earlier keyframe and at last from the beginning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NoReturn

from .._check import fail
from . import _fork
from ._container import import_av, open_video

# A frame leaves the decoder at most this many packets after its own: the reorder depth and the threads' pipeline.
_LATE = 64


class FrameCursor:
    def __init__(self, path: str, index, threads: int, codec_options: dict | None = None):
        self._path, self._index = path, index
        self._threads, self._options = threads, codec_options
        self._rank = {pts: i for i, pts in enumerate(index.pts)}
        self._lost: set[int] = set()  # frames already found impossible to decode
        self._container = self._stream = self._converter = None
        self._begin()
        _fork.watch(self)

    @property
    def converter(self):
        """Turns frames into RGB: one for all, for its tables and threads. A fork leaves it behind like the rest."""
        if self._converter is None:
            self._converter = import_av().video.reformatter.VideoReformatter()
        return self._converter

    def close(self) -> None:
        """Free the decoder now: the container and its streams refer to each other, so dropping them would wait."""
        container, *_ = self.abandon()
        if container is not None:
            container.close()

    __del__ = close

    def abandon(self) -> tuple:
        """Let go of the decoder without freeing it and return its parts; the next request opens another."""
        parts = (self._container, self._stream, self._packets, self._ready, self._held, self._converter)
        self._container = self._stream = self._converter = None
        self._begin()
        return parts

    def frames(self, wanted: list[int]) -> Iterator[tuple[int, object]]:
        """Yield (i, av.VideoFrame) for the rising, distinct frame numbers `wanted`."""
        if self._container is None:
            self._rewind()
        for i in wanted:
            frame = self._counted(i) if self._index.counted else self._sought(i)
            if frame is None:
                self._undecodable(i)
            yield i, frame

    # -- by counting -------------------------------------------------------------------------------------------------
    def _counted(self, i: int):
        if i <= self._last:
            self._rewind()
        for frame in self._read():
            self._last += 1
            if self._last == i:
                return frame
        return None

    # -- by pts ------------------------------------------------------------------------------------------------------
    def _sought(self, i: int):
        if i in self._lost or i in self._index.corrupt:
            return None
        entry = self._index.start[i]
        key_position = self._index.keys[entry][0]
        if self._last < i and key_position <= self._fed + 1:
            frame = self._until(i)
            if frame is not None:
                return frame
        for attempt in dict.fromkeys((entry, max(entry - 1, 0))):
            if self._seek(attempt):
                frame = self._until(i)
                if frame is not None:
                    return frame
        # Last: one thread, where the fault of one packet cannot take the frames before it along.
        self._rewind(threads=1)
        frame = self._until(i)
        if frame is None:
            self._lost.add(i)
        return frame

    def _until(self, i: int):
        """Read up to frame i; None as soon as it can no longer come."""
        last_packet = self._index.order[self._index.pts[i]] + _LATE
        for frame in self._read():
            rank = self._rank.get(frame.pts)
            if rank is not None:
                self._last = max(self._last, rank)
                if rank == i:
                    return None if frame.is_corrupt else frame
            if self._fed > last_packet:
                return None
        return None

    def _seek(self, entry: int) -> bool:
        """Go to keyframe `entry`; False if the file's own index leads past it."""
        av = import_av()
        position, pts = self._index.keys[entry]
        if position == 0:
            self._rewind()
            return True
        try:
            self._container.seek(pts, stream=self._stream, backward=True)
            self._begin()
            first = next((packet for packet in self._packets if packet.size), None)
        except (av.error.FFmpegError, OSError, ValueError):
            self._rewind()
            return False
        landed = None if first is None else self._index.order.get(first.pts)
        if landed is None or landed > position:
            self._rewind()
            return False
        self._fed = landed - 1
        self._held = first
        return True

    # -- the decoder -------------------------------------------------------------------------------------------------
    def _rewind(self, threads: int | None = None) -> None:
        # Reopening is the one way back to the start that works for raw streams too.
        self.close()
        self._container, self._stream = open_video(
            self._path, self._threads if threads is None else threads, self._options
        )
        self._begin()

    def _begin(self) -> None:
        self._packets = iter(()) if self._container is None else self._container.demux(self._stream)
        self._held = None
        self._fed = -1  # decode-order position of the last packet given to the decoder
        self._last = -1  # number of the last frame that came out
        self._ready: deque = deque()

    def _read(self):
        """Frames in the decoder's order; undecodable packets are skipped, a fault in the container ends the file."""
        av = import_av()
        while True:
            while self._ready:
                yield self._ready.popleft()
            packet, self._held = self._held, None
            if packet is None:
                try:
                    packet = next(self._packets, None)
                except (av.error.FFmpegError, OSError, ValueError):
                    packet = None
                    self._packets = iter(())
                    self._ready.extend(_decode(self._stream.codec_context, None, av))
                    if self._ready:
                        continue
            if packet is None:
                return
            if packet.size:
                self._fed = self._index.order.get(packet.pts, self._fed + 1) if self._index else self._fed + 1
            self._ready.extend(_decode(self._stream.codec_context, packet if packet.size else None, av))

    def _undecodable(self, i: int) -> NoReturn:
        fail(
            "VideoReader",
            f"frame {i} cannot be decoded: its data is damaged or missing.",
            "the other frames stay readable; convert or download the file again to repair it.",
            error=RuntimeError,
            path=self._path,
            frame=f"{i} of {len(self._index.pts)}",
            seconds=float(self._index.pts[i] * self._index.time_base),
        )


def _decode(context, packet, av) -> list:
    try:
        return context.decode(packet)
    except (av.error.FFmpegError, OSError, ValueError):
        return []


def decode_all(path: str, threads: int):
    """Every frame that decodes, from the start, in the decoder's order."""
    av = import_av()
    container, stream = open_video(path, threads)
    with container:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError, ValueError):
                packet = None
            if packet is None or not packet.size:
                yield from _decode(stream.codec_context, None, av)
                return
            yield from _decode(stream.codec_context, packet, av)
