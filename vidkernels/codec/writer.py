"""Writing a `.vkv` file: whole or not at all, and adding to one without ever breaking it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .._check import fail
from . import layout
from .audio import Audio
from .header import Header
from .reader import ContainerReader

_OWN = ("HEAD", "GOPI", "LAYR", "INDX", "TAIL", "AUDI")


class ContainerWriter:
    """Writes a `.vkv` file; it appears under its name, complete, when `close` returns.

    A context manager: leaving it after an error removes what was written and keeps a file that was there before.

    Args:     path: the file to write; an existing one is replaced at the end, in one step.
              header: what the pictures are.
    Raises:   ValueError: GOPs out of order, times that do not rise, hashes of the wrong size.
    Example:  >>> import tempfile
              >>> from fractions import Fraction
              >>> from vidkernels.codec import ContainerReader, ContainerWriter, Header
              >>> path = tempfile.mkdtemp() + "/clip.vkv"
              >>> with ContainerWriter(path, Header("demo", 64, 48, Fraction(1, 25), hash_bytes=0)) as writer:
              ...     _ = writer.add_gop(0, range(12), {0: b"base", 1: b"refinement"})
              >>> with ContainerReader(path) as reader:
              ...     bytes(reader.read(reader.gop_of_frame(7), layer=1))
              b'refinement'
    """

    def __init__(self, path: str | os.PathLike, header: Header):
        self.path, self.header = Path(path), header
        head = header.to_bytes()
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name[:64]}.", dir=self.path.parent)
        self._temporary: str | None = name
        self._undo: int | None = None
        self._start(os.fdopen(handle, "wb", buffering=0))
        try:
            self._put(layout.prelude())
            self._chunk(b"HEAD", [head])
        except BaseException:
            self.abort()
            raise

    @classmethod
    def append(cls, path: str | os.PathLike) -> ContainerWriter:
        """A writer that adds GOPs to a finished file, in place.

        Everything new goes behind the old trailer, so until `close` has written the new one a reader finds the old
        index; what an interrupted append left behind is dropped here. One writer at a time.
        """
        if not os.path.isfile(path):
            fail("ContainerWriter.append", "no such file.", path=str(path), error=FileNotFoundError)
        self = cls.__new__(cls)
        self.path, self._temporary = Path(path), None
        file = open(path, "r+b", buffering=0)  # noqa: SIM115  (closed by close or abort)
        try:
            _lock(file, self.path)
            with ContainerReader(path, _quiet=True) as reader:
                self.header, self._undo = reader.header, reader.end
                self._start(file)
                self._adopt(reader)
        except BaseException:
            file.close()
            raise
        file.truncate(self._undo)
        file.seek(self._undo)
        self._at = self._undo
        return self

    @property
    def end(self) -> int:
        """Where the file ends so far; bytes that an interrupted append has left behind do not count."""
        return self._at

    def _start(self, file: BinaryIO) -> None:
        self._file: BinaryIO | None = file
        self._at = self.frames = 0
        self._gops: list[list[int]] = []  # first frame, first pts, end pts, offset, frames, hash layers
        self._layers: list[list[tuple[int, int]]] = []
        self._others: list[tuple[bytes, int, int, int]] = []
        self._last_pts, self._step = -layout.MAX_PTS, 1

    def _adopt(self, reader: ContainerReader) -> None:
        index = reader.index
        self.frames = index.frames
        names = ("first_frame", "first_pts", "end_pts", "offset", "frames", "hash_layers")
        self._gops = [[int(g[name]) for name in names] for g in index.gops]
        table = [(int(row["offset"]), int(row["length"])) for row in index.layers]
        starts = index.gops["first_layer"].tolist()
        self._layers = [table[s : s + n] for s, n in zip(starts, index.gops["layers"].tolist())]
        self._others = [tuple(row) for row in index.others.tolist()]
        if self._gops:
            pts = reader.pts(len(self._gops) - 1)
            self._last_pts, self._step = int(pts[-1]), int(reader.gops[-1].end_pts - pts[-1])

    def add_gop(
        self,
        first_frame: int,
        pts: Sequence[int],
        chunks: Mapping[int, bytes] | Sequence[bytes],
        hashes: Sequence[bytes] | None = None,
        *,
        end_pts: int | None = None,
        hash_layers: int | None = None,
    ) -> int:
        """Add one group of pictures; returns its number.

        Args:     first_frame: the number of frames so far (a check against lost GOPs).
                  pts: presentation time of each frame in units of the time base, rising, also across GOPs.
                  chunks: {layer: bytes}: 0 is the base, 1, 2, ... refine it; or the layers in order.
                  hashes: `frame_hash` of each decoded frame, `header.hash_bytes` long; None: none are kept.
                  end_pts: when the last frame ends; None: after as long a time as the frame before it took.
                  hash_layers: with how many layers the hashed frames were decoded; None: all of `chunks`.
        """
        if isinstance(chunks, Mapping) and set(chunks) != set(range(len(chunks))):
            fail("ContainerWriter.add_gop", "expected layers 0, 1, ... without gaps.", layers=list(chunks)[:10])
        layers = [memoryview(chunks[i]).cast("B") for i in range(len(chunks))]
        times = np.asarray(list(pts) if not isinstance(pts, np.ndarray) else pts)
        hashes = [bytes(h) for h in hashes or ()]
        self._check_gop(first_frame, times, hashes, len(layers))
        times = times.astype(np.int64)
        step = int(times[-1] - times[-2]) if len(times) > 1 else self._step
        end = int(times[-1]) + step if end_pts is None else int(end_pts)
        if not times[-1] < end < layout.MAX_PTS:
            fail("ContainerWriter.add_gop", "expected `end_pts` after the last frame.", end_pts=end, last=times[-1])
        hash_layers = len(layers) if hash_layers is None else hash_layers
        if not 0 <= hash_layers <= layout.MAX_LAYERS:
            fail(
                "ContainerWriter.add_gop", f"expected `hash_layers` up to {layout.MAX_LAYERS}.", hash_layers=hash_layers
            )
        number, offset = len(self._gops), self._at
        self._chunk(b"GOPI", [layout.pack_gop(number, first_frame, times, end, hash_layers, hashes)])
        self._gops.append([first_frame, int(times[0]), end, offset, len(times), hash_layers])
        self._layers.append([])
        self.frames += len(times)
        self._last_pts, self._step = int(times[-1]), step
        for data in layers:
            self.add_layer(number, data)
        return number

    def _check_gop(self, first_frame: int, times: np.ndarray, hashes: list[bytes], layers: int) -> None:
        where = "ContainerWriter.add_gop"
        if first_frame != self.frames:
            fail(where, f"expected `first_frame` {self.frames}, the number of frames so far.", first_frame=first_frame)
        if times.ndim != 1 or not 1 <= len(times) <= layout.MAX_GOP_FRAMES or times.dtype.kind not in "iu":
            fail(
                where, f"expected `pts` as 1 to {layout.MAX_GOP_FRAMES} integers.", shape=times.shape, dtype=times.dtype
            )
        values = [int(times.min()), int(times.max())]
        if values[0] <= self._last_pts or values[1] >= layout.MAX_PTS or values[1] - values[0] >= 1 << 32:
            fail(where, "expected `pts` after those of the GOP before.", pts=values, before=self._last_pts)
        if (np.diff(times.astype(np.int64)) <= 0).any():
            fail(where, "expected `pts` to rise from frame to frame.", pts=times.tolist()[:10])
        if layers > layout.MAX_LAYERS:
            fail(where, f"expected at most {layout.MAX_LAYERS} layers.", layers=layers)
        width = self.header.hash_bytes
        if hashes and (len(hashes) != len(times) or any(len(h) != width for h in hashes) or not width):
            fail(where, f"expected {len(times)} hashes of {width} bytes.", hashes=len(hashes), sizes=len(hashes[0]))

    def add_layer(self, gop: int, data: bytes) -> int:
        """Add the next layer of a GOP, also one added long ago: base layers first make a file useful while it loads."""
        if not 0 <= gop < len(self._gops) or len(self._layers[gop]) >= layout.MAX_LAYERS:
            fail("ContainerWriter.add_layer", "no such GOP, or too many layers.", gop=gop, gops=len(self._gops))
        layer, data = len(self._layers[gop]), memoryview(data).cast("B")
        self._layers[gop].append((self._at, len(data)))
        self._chunk(b"LAYR", [layout.LAYER.pack(gop, layer), data])
        return layer

    def add_chunk(self, kind: str, data: bytes, required: bool = False) -> None:
        """Add a chunk that belongs to the whole file, such as a codebook or a network that all GOPs share.

        `kind` is four letters or digits; a later chunk replaces an earlier one of its kind. Readers that do not know
        a `required` kind refuse the file.
        """
        if not re.fullmatch("[A-Za-z0-9]{4}", kind) or kind in _OWN:
            fail(
                "ContainerWriter.add_chunk", f"expected a `kind` of four letters or digits, none of {_OWN}.", kind=kind
            )
        self._other(kind.encode(), data, layout.REQUIRED if required else 0)

    def set_audio(self, audio: Audio) -> None:
        """Keep an audio stream, packet for packet; see `read_audio`. Replaces one that was set before."""
        self._other(b"AUDI", audio.to_bytes(), 0)

    def _other(self, kind: bytes, data: bytes, flags: int) -> None:
        data = memoryview(data).cast("B")
        self._others = [row for row in self._others if row[0] != kind] + [(kind, flags, self._at, len(data))]
        self._chunk(kind, [data], flags)

    def close(self) -> None:
        """Write index and trailer, bring them to the disk and give the file its name."""
        if self._file is None:
            return
        try:
            for number, (gop, layers) in enumerate(zip(self._gops, self._layers)):
                if not 0 < len(layers) >= gop[5]:
                    fail(
                        "ContainerWriter.close",
                        "a GOP has no layers, or hashes of more.",
                        gop=number,
                        layers=len(layers),
                    )
            if self._undo is not None:
                self._sync()  # what the index points to is safe before the index is
            offset = self._at
            self._chunk(b"INDX", [self._index().pack()], layout.REQUIRED)
            self._chunk(b"TAIL", [layout.TAIL.pack(offset, self._at + layout.TAIL_SIZE)], layout.REQUIRED)
            self._sync()
            self._file.close()
            if self._temporary is not None:
                umask = os.umask(0)
                os.umask(umask)
                os.chmod(self._temporary, 0o666 & ~umask)  # mkstemp's files are private to their owner
                os.replace(self._temporary, self.path)
                _sync_folder(self.path.parent)
            self._file = None
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Drop everything that was added; the file of before stays."""
        if self._file is None:
            return
        if self._undo is not None and not self._file.closed:
            self._file.truncate(self._undo)
        self._file.close()
        self._file = None
        if self._temporary is not None and os.path.exists(self._temporary):
            os.unlink(self._temporary)

    def __enter__(self) -> ContainerWriter:
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _index(self) -> layout.Index:
        gops = np.zeros(len(self._gops), layout.GOP_RECORD)
        counts = [len(layers) for layers in self._layers]
        for name, column in zip(
            ("first_frame", "first_pts", "end_pts", "offset", "frames", "hash_layers"), zip(*self._gops)
        ):
            gops[name] = column
        gops["layers"] = counts
        gops["first_layer"] = np.cumsum([0, *counts])[:-1]
        table = np.array([row for layers in self._layers for row in layers], layout.LAYER_RECORD)
        return layout.Index(self.frames, gops, table, np.array(self._others, layout.OTHER_RECORD))

    def _chunk(self, kind: bytes, parts: list[bytes], flags: int = layout.REQUIRED) -> None:
        self._put(layout.chunk_head(kind, flags, parts))
        for part in parts:
            self._put(part)
        self._put(bytes(layout.padding(sum(map(len, parts)))))

    def _put(self, data: bytes) -> None:
        if self._file is None:
            fail("ContainerWriter", "the file is closed.", path=str(self.path))
        view = memoryview(data).cast("B")
        while len(view):  # unbuffered, so that nothing is left to be written after an error
            written = self._file.write(view)
            view, self._at = view[written:], self._at + written

    def _sync(self) -> None:
        os.fsync(self._file.fileno())


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no advisory locks on this system: "one writer at a time" is the caller's promise
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        fail("ContainerWriter.append", "another writer is adding to the file.", path=str(path), error=BlockingIOError)


def _sync_folder(folder: Path) -> None:
    """A rename is only on the disk once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
