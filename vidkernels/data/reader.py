"""Random access to the frames of a video file."""

from __future__ import annotations

import bisect
import operator
import os
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from .._check import fail
from ._cursor import FrameCursor
from ._index import build_index
from ._motion import block_table, dense_field
from ._orient import Orientation

# Times are floats: 7 / 25 may fall a rounding error before frame 7. A time this close before a frame counts as its.
_SAME_TIME = 1e-9


class VideoReader:
    """Random access to the frames of a video file, by number and by time.

    Frames are numbered in display order. The packets are read once to index the file; a request then decodes each
    needed frame once, seeking to the keyframe before it, or reading on where that is nearer.
    Convention: frames are uint8 RGB [T, H, W, 3], upright (the file's display matrix is applied); times are seconds on
    the file's own clock, so the first frame may start later than 0; variable frame rates are exact.
    A reader can be pickled, and forked: each process opens its own decoder. It is not for use by two threads at once.

    Args:     path: a local file.
              threads: decoding threads, 0 lets FFmpeg choose. Use 1 inside DataLoader workers.
              size: what frames are scaled to while they are converted: (height, width), or one number for the short
                  side (shape kept, never enlarged); None keeps the file's size.
    Raises:   ValueError: missing, empty, cut without index, no video stream, a picture or not a video at all.
              RuntimeError: a frame whose data is damaged or missing (the message names it; others stay readable).
              IndexError: a frame number outside the file.
    Warns:    RuntimeWarning: the file ends before the frames its header promises. len() counts those present.
    Source:   FFmpeg through PyAV; `AVMotionVector` for `motion_vectors`.
    Example:
        >>> import tempfile, torch, vidkernels.data as data
        >>> path = tempfile.mkdtemp() + "/clip.mp4"
        >>> data.write_video(path, torch.zeros(8, 32, 48, 3, dtype=torch.uint8), fps=25)
        >>> with data.VideoReader(path) as reader:
        ...     len(reader), reader.size, reader[2:8:3].shape
        (8, (32, 48), torch.Size([2, 32, 48, 3]))
    """

    def __init__(self, path: str | os.PathLike, *, threads: int = 0, size: int | tuple[int, int] | None = None):
        self._path = os.path.abspath(os.fspath(path))
        if threads < 0:
            fail("VideoReader", "expected `threads` >= 0.", threads=threads)
        if size is not None and (size < 1 if isinstance(size, int) else len(size) != 2 or min(size) < 1):
            fail("VideoReader", "expected `size` as (height, width) or short side.", size=size)
        self._threads = threads
        self._closed = False
        self._pixels: FrameCursor | None = None
        self._motion: FrameCursor | None = None
        self._index = build_index(self._path, threads)
        first = self._first_frame()
        self._orientation = Orientation.of(first)
        self._stored = (first.height, first.width)
        self._size = _target_size(self._stored[::-1] if self._orientation.transpose else self._stored, size)
        if self._index.promised > len(self):
            warnings.warn(
                f"VideoReader: {self._path} is cut short: {len(self)} of {self._index.promised} frames are present.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _first_frame(self):
        cursor = self._cursor()
        for i in range(min(len(self), 16)):
            try:
                return next(cursor.frames([i]))[1]
            except RuntimeError:
                continue
        self.close()
        fail(
            "VideoReader",
            "none of the first frames can be decoded.",
            error=RuntimeError,
            path=self._path,
            frames=len(self),
        )

    # -- what the file is --------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self._index.pts)

    @property
    def path(self) -> str:
        return self._path

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the frames this reader returns."""
        return self._size

    @property
    def rotation(self) -> int:
        """Degrees clockwise by which the stored picture is turned before it is returned: 0, 90, 180 or 270."""
        return self._orientation.degrees

    @property
    def fps(self) -> float:
        """Average frames per second."""
        return float(self._index.rate)

    @property
    def timestamps(self) -> torch.Tensor:
        """[T] float64: the second at which each frame appears, correctly rounded from its pts."""
        base = self._index.time_base
        seconds = [pts * base.numerator / base.denominator for pts in self._index.pts]
        return torch.tensor(seconds, dtype=torch.float64)

    @property
    def duration(self) -> float:
        """Seconds from the first frame's appearance to the end of the last one."""
        return float((self._index.end - self._index.pts[0]) * self._index.time_base)

    def __repr__(self) -> str:
        height, width = self._size
        return f"VideoReader({self._path!r}, {len(self)} frames, {width}x{height}, {self.fps:g} fps)"

    # -- frames ------------------------------------------------------------------------------------------------------
    def __getitem__(self, key: int | slice) -> torch.Tensor:
        """reader[i] is [H, W, 3]; reader[a:b:c] is [T, H, W, 3]."""
        if isinstance(key, slice):
            return self.get_frames(range(*key.indices(len(self))))
        return self.get_frames([operator.index(key)])[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        for i in range(len(self)):
            yield self[i]

    def get_frames(self, indices: Iterable[int] | torch.Tensor) -> torch.Tensor:
        """Frames [T, H, W, 3] in the order asked for; repeats and negative numbers are fine."""
        if isinstance(indices, torch.Tensor):
            indices = indices.tolist()
        asked = [self._number(i) for i in indices]
        frames = np.empty((len(asked), *self._size, 3), np.uint8)
        places: dict[int, list[int]] = {}
        for place, i in enumerate(asked):
            places.setdefault(i, []).append(place)
        for i, frame in self._cursor().frames(sorted(places)):
            first, *others = places[i]
            # numpy copies: torch's threads, spinning after each small copy, would take the cores from the decoder's.
            frames[first] = self._to_rgb(frame)
            for place in others:
                frames[place] = frames[first]
        return torch.from_numpy(frames)

    def get_frames_at(self, seconds: float | Iterable[float] | torch.Tensor) -> torch.Tensor:
        """The frames on display at the given times: [T, H, W, 3], or [H, W, 3] for a single time."""
        if isinstance(seconds, torch.Tensor):
            seconds = seconds.tolist()
        if isinstance(seconds, (int, float)):
            return self.get_frames([self._number_at(float(seconds))])[0]
        return self.get_frames([self._number_at(float(second)) for second in seconds])

    # -- motion ------------------------------------------------------------------------------------------------------
    def motion_vectors(self, i: int) -> dict[str, torch.Tensor]:
        """The motion vectors the encoder stored for frame i, one row per block.

        Convention: pixels of the picture as stored (before rotation and `size`), (x, y); positions are block centres.
        `motion` points the way the content went: dst - src to a fraction of a pixel, for a past reference. Which frame
        the reference is, FFmpeg does not tell beyond past or future.

        Returns:  dict of tensors with N rows (none for intra frames and codecs without export):
                  source [N] int32: negative = reference in the past, positive = in the future;
                  block [N, 2] int32 (width, height); src, dst [N, 2] int32; motion [N, 2] float32.
        """
        ((_, frame),) = self._cursor(motion=True).frames([self._number(i)])
        return block_table(frame)

    def motion_field(self, i: int) -> torch.Tensor:
        """Motion vectors of frame i painted per pixel: [2, H, W] float32, pixels (x, y), upright, at the file's size.

        The content at pixel p of frame i was at p - field[:, p] in its reference, and 0 where no block says so.
        Blocks with only a future reference are painted with the sign turned.
        """
        field = dense_field(self.motion_vectors(i), *self._stored)
        return torch.from_numpy(np.ascontiguousarray(self._orientation.apply_vectors(field)))

    # -- life --------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Give the file and the decoders back; the reader cannot be used for frames afterwards."""
        self._release()
        self._closed = True

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_pixels": None, "_motion": None}

    def _release(self) -> None:
        """Close the decoders but stay usable: the next request opens them again."""
        for cursor in (self._pixels, self._motion):
            if cursor is not None:
                cursor.close()

    def _cursor(self, motion: bool = False) -> FrameCursor:
        if self._closed:
            fail("VideoReader", "the reader is closed.", path=self._path)
        if motion:
            if self._motion is None:
                # One thread: with frame threads FFmpeg may export a frame's vectors before they are all decoded.
                self._motion = FrameCursor(self._path, self._index, 1, {"flags2": "+export_mvs"})
            return self._motion
        if self._pixels is None:
            self._pixels = FrameCursor(self._path, self._index, self._threads)
        return self._pixels

    # -- helpers -----------------------------------------------------------------------------------------------------
    def _number(self, i: int) -> int:
        i = operator.index(i)
        count = len(self)
        if -count <= i < count:
            return i % count
        if count <= i < self._index.promised:
            fail(
                "VideoReader",
                f"frame {i} is missing: the file is cut short, {count} of {self._index.promised} frames are present.",
                error=RuntimeError,
                path=self._path,
            )
        fail(
            "VideoReader",
            f"frame {i} is out of range for a video of {count} frames.",
            error=IndexError,
            path=self._path,
        )

    def _number_at(self, second: float) -> int:
        base = self._index.time_base
        first, end = float(self._index.pts[0] * base), float(self._index.end * base)
        if not first - _SAME_TIME <= second < end - _SAME_TIME:
            fail(
                "VideoReader.get_frames_at",
                f"no frame is on display at {second} s.",
                path=self._path,
                shown=f"from {first} s to before {end} s",
            )
        tick = (second + _SAME_TIME) * base.denominator / base.numerator
        return max(bisect.bisect_right(self._index.pts, tick) - 1, 0)

    def _to_rgb(self, frame) -> np.ndarray:
        height, width = self._size[::-1] if self._orientation.transpose else self._size
        # Scaling to the reader's size also absorbs streams that change their size on the way.
        rgb = self._cursor().converter.reformat(frame, width, height, "rgb24").to_ndarray()
        return self._orientation.apply(rgb)


def _target_size(shown: tuple[int, int], size: int | tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        return shown
    if isinstance(size, int):
        factor = min(1.0, size / min(shown))
        return round(shown[0] * factor), round(shown[1] * factor)
    return int(size[0]), int(size[1])
