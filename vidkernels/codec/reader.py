"""Reading a `.vkv` file: mapped into memory, every number checked before it is used."""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor

import numpy as np
import torch

from .._check import fail
from . import layout
from .audio import Audio
from .errors import damaged, unsupported
from .header import MAX_HEADER_BYTES, Header

_TAILS_TRIED = 4096


def frame_hash(frame: torch.Tensor | np.ndarray, size: int = 8) -> bytes:
    """First `size` bytes of the SHA-256 of a decoded frame [H, W, 3] uint8: its height and width as two
    little-endian 32-bit numbers, then its bytes row by row."""
    pixels = np.ascontiguousarray(frame.detach().cpu().numpy() if isinstance(frame, torch.Tensor) else frame)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        fail("frame_hash", "expected a frame [H, W, 3] of uint8.", shape=pixels.shape, dtype=pixels.dtype)
    digest = hashlib.sha256(struct.pack("<II", *pixels.shape[:2]))
    digest.update(pixels.data)
    return digest.digest()[:size]


@dataclass(frozen=True)
class Gop:
    """A group of pictures: number, its frames, its times in units of the time base, bytes of each layer.

    `hash_layers` says from how many layers the hashed frames were decoded; a partial file may have fewer.
    """

    number: int
    first_frame: int
    frames: int
    first_pts: int
    end_pts: int
    sizes: tuple[int, ...]
    hash_layers: int

    @property
    def layers(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True)
class Report:
    """What `verify` found. `profile` is "exact" or "not exact"; `mismatches` are frames whose hash differs."""

    profile: str
    frames: int
    gops: int
    chunks: int
    bytes: int
    hashed_frames: int
    checked_frames: int
    mismatches: tuple[int, ...]

    @property
    def ok(self) -> bool:
        """False if a frame differs although the profile promises that none does."""
        return not (self.mismatches and self.profile == "exact")


class ContainerReader:
    """Random access to a `.vkv` file; memory is proportional to what is read.

    Args:     path: the file.
              partial: read what is whole of a file that is cut short (a download that stopped): the GOPs in front of
                the damage, with the layers that are there. Without it such a file is refused, unless the lost part
                is an unfinished `append`: then the file is read as it was before, with a warning.
              known: kinds of further required chunks that the caller understands.
    Raises:   FileNotFoundError; DamagedFileError: says file, byte offset, chunk and reason;
              UnsupportedFileError: a later format version, or a required part this reader does not know.
    Example:  see ContainerWriter.
    """

    def __init__(self, path: str | os.PathLike, partial: bool = False, known: Sequence[str] = (), _quiet: bool = False):
        self.path = os.fspath(path)
        self._map: memoryview | None = None
        if not os.path.isfile(self.path):
            fail("ContainerReader", "no such file.", path=self.path, error=FileNotFoundError)
        with open(self.path, "rb") as file:
            if os.fstat(file.fileno()).st_size < layout.PRELUDE.size:
                damaged(self.path, 0, "prelude", "it is shorter than any .vkv file")
            self._mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._map = memoryview(self._mmap)
        try:
            self._read_prelude()
            self.header = self._read_header()
            self.index, self.end = self._scan() if partial else self._read_index()
            self._refuse_unknown(known)
        except BaseException:
            self.close()
            raise
        self.interrupted = self.end != len(self._map)
        if self.interrupted and not partial and not _quiet:
            text = f"{self.path}: {len(self._map) - self.end} bytes of an unfinished append are ignored."
            warnings.warn(text, stacklevel=2)

    # ---- what is in the file

    @property
    def frames(self) -> int:
        return self.index.frames

    @property
    def gops(self) -> Sequence[Gop]:
        """All GOPs; each is made when it is asked for."""
        return _Gops(self)

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame's beginning to the last one's end."""
        g = self.index.gops
        return (int(g["end_pts"][-1]) - int(g["first_pts"][0])) * self.header.time_base if len(g) else Fraction(0)

    def gop_of_frame(self, frame: int) -> Gop:
        """The GOP that holds frame `frame` (0 is the first)."""
        if not 0 <= frame < self.frames:
            fail("ContainerReader.gop_of_frame", f"expected a frame from 0 to {self.frames - 1}.", frame=frame)
        return self.gops[int(np.searchsorted(self.index.gops["first_frame"], np.uint64(frame), "right")) - 1]

    def gop_of_time(self, seconds: float | Fraction) -> Gop:
        """The GOP on show at `seconds` on the source's clock: the last one that has begun by then."""
        return self.gops[self._gop_at(seconds)]

    def frame_of_time(self, seconds: float | Fraction) -> int:
        """The frame on show at `seconds`: the last one whose presentation time has come."""
        number = self._gop_at(seconds)
        pts = self.pts(number)
        shown = int(np.searchsorted(pts, self._ticks(seconds), "right")) - 1
        return int(self.index.gops["first_frame"][number]) + shown

    def _ticks(self, seconds: float | Fraction) -> int:
        try:
            return floor(Fraction(seconds) / self.header.time_base)
        except (ValueError, OverflowError, TypeError):
            fail("ContainerReader", "expected a finite number of seconds.", seconds=seconds)

    def _gop_at(self, seconds: float | Fraction) -> int:
        g, ticks = self.index.gops, self._ticks(seconds)
        if not len(g) or not int(g["first_pts"][0]) <= ticks < int(g["end_pts"][-1]):
            base = self.header.time_base
            shown = [float(int(g[name][i]) * base) for name, i in (("first_pts", 0), ("end_pts", -1))] if len(g) else []
            fail("ContainerReader", "nothing is shown at that time.", seconds=seconds, shown=shown)
        return int(np.searchsorted(g["first_pts"], ticks, "right")) - 1

    def pts(self, gop: int | Gop) -> np.ndarray:
        """Presentation times [frames] int64 of a GOP's frames, in units of the header's time base."""
        return self._gop_head(gop)[2]

    def hashes(self, gop: int | Gop) -> list[bytes]:
        """Hashes of a GOP's decoded frames, or an empty list if none were kept."""
        return self._gop_head(gop)[5]

    def read(self, gop: int | Gop, layer: int = 0) -> memoryview:
        """The bytes of one layer, checked, without a copy: a view into the mapped file."""
        number = self._number(gop)
        record = self.index.gops[number]
        if not 0 <= layer < record["layers"]:
            fail("ContainerReader.read", f"expected a layer from 0 to {record['layers'] - 1}.", layer=layer, gop=number)
        row = self.index.layers[int(record["first_layer"]) + layer]
        chunk, data = self._payload(int(row["offset"]), b"LAYR")
        if len(data) != int(row["length"]) + layout.LAYER.size or layout.LAYER.unpack_from(data) != (number, layer):
            damaged(self.path, chunk.offset, "LAYR", "it is not the layer that the index names")
        return data[layout.LAYER.size :]

    def read_layers(self, gop: int | Gop, limit: int | None = None) -> list[memoryview]:
        """The first `limit` layers of a GOP (None: all), base first."""
        count = int(self.index.gops[self._number(gop)]["layers"])
        return [self.read(gop, layer) for layer in range(count if limit is None else min(limit, count))]

    @property
    def kinds(self) -> list[str]:
        """Kinds of the chunks that belong to the whole file, audio among them."""
        return [kind.decode("ascii", "replace") for kind in self.index.others["type"].tolist()]

    def chunk(self, kind: str) -> memoryview | None:
        """A chunk that belongs to the whole file, or None if there is none of this kind."""
        for row in self.index.others:
            if row["type"] == kind.encode():
                chunk, data = self._payload(int(row["offset"]), kind.encode())
                if len(data) != int(row["length"]):
                    damaged(self.path, chunk.offset, kind, "it is not as long as the index says")
                return data
        return None

    def audio(self) -> Audio | None:
        """The audio stream, or None."""
        data = self.chunk("AUDI")
        if data is None:
            return None
        try:
            return Audio.from_bytes(data)
        except ValueError as error:
            damaged(self.path, self._offset_of("AUDI"), "AUDI", str(error))

    @property
    def audio_bytes(self) -> int:
        """Bytes of the copied audio track, 0 without one: what a comparison of video coders leaves out."""
        data = self.chunk("AUDI") if "AUDI" in self.kinds else None
        return 0 if data is None else len(data)

    def verify(self, decode: Callable[[Gop, list[memoryview]], Sequence] | None = None) -> Report:
        """Check every byte of the file, and with `decode` every frame against its hash.

        Args:     decode: decode(gop, layers) -> frames [H, W, 3] uint8 of the GOP, from the layers given.
        Returns:  Report; damage raises DamagedFileError instead.
        """
        chunks, at = 0, layout.PRELUDE.size
        while at < self.end:
            chunk, _ = self._payload(at, None)
            if any(self._map[chunk.start + chunk.length : chunk.end]):
                damaged(self.path, chunk.offset, chunk.name, "the padding behind it is not zero")
            chunks, at = chunks + 1, chunk.end
        if at != self.end:
            damaged(self.path, self.end, "TAIL", "the chunks do not end where the file does")
        hashed, checked, wrong, before = 0, 0, [], -layout.MAX_PTS
        for kind in self.kinds:
            self.chunk(kind)
        for gop in self.gops:
            layers, hashes, pts = self.read_layers(gop), self.hashes(gop), self.pts(gop)
            if pts[0] <= before:
                damaged(
                    self.path,
                    int(self.index.gops["offset"][gop.number]),
                    "GOPI",
                    "it begins before the one before ends",
                )
            before = pts[-1]
            hashed += len(hashes)
            if decode is not None and hashes and gop.hash_layers <= gop.layers:
                frames = list(decode(gop, layers[: gop.hash_layers]))
                if len(frames) != gop.frames:
                    fail("verify", f"expected {gop.frames} frames from `decode`.", gop=gop.number, frames=len(frames))
                size = len(hashes[0])
                wrong += [gop.first_frame + i for i, f in enumerate(frames) if frame_hash(f, size) != hashes[i]]
                checked += len(frames)
        self.audio()
        profile = "exact" if self.header.exact else "not exact"
        return Report(profile, self.frames, len(self.gops), chunks, self.end, hashed, checked, tuple(wrong))

    def close(self) -> None:
        """Let go of the file. Views that `read` returned stay valid: they keep the mapping alive."""
        self._map = None

    def __enter__(self) -> ContainerReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # ---- how it is read

    def _number(self, gop: int | Gop) -> int:
        number = gop.number if isinstance(gop, Gop) else gop
        if not 0 <= number < len(self.index.gops):
            fail("ContainerReader", f"expected a GOP from 0 to {len(self.index.gops) - 1}.", gop=number)
        return number

    def _offset_of(self, kind: str) -> int:
        return next(int(row["offset"]) for row in self.index.others if row["type"] == kind.encode())

    def _payload(self, offset: int, kind: bytes | None) -> tuple[layout.Chunk, memoryview]:
        """A chunk and its payload, checksums and kind checked."""
        if self._map is None:
            fail("ContainerReader", "the file is closed.", path=self.path)
        try:
            chunk = layout.parse_head(self._map, offset)
        except ValueError as error:
            damaged(self.path, offset, (kind or b"?").decode("ascii", "replace"), str(error))
        if kind is not None and chunk.kind != kind:
            damaged(self.path, offset, chunk.name, f"expected a chunk {kind.decode('ascii', 'replace')!r} here")
        data = self._map[chunk.start : chunk.start + chunk.length]
        if zlib.crc32(data) != chunk.crc:
            damaged(self.path, offset, chunk.name, "the checksum of the payload does not match")
        return chunk, data

    def _read_prelude(self) -> None:
        magic, version, _, crc = layout.PRELUDE.unpack_from(self._map)
        if magic != layout.MAGIC:
            hint = "a file that went through a text-mode copy looks like this too." if magic[1:4] == b"VKV" else ""
            damaged(self.path, 0, "prelude", "it does not begin like a .vkv file", hint or "is it a .vkv file at all?")
        if crc != zlib.crc32(self._map[:12]):
            damaged(self.path, 0, "prelude", "the checksum does not match")
        if version != layout.VERSION:
            unsupported(self.path, f"format version {version}")

    def _read_header(self) -> Header:
        at = layout.PRELUDE.size
        chunk, data = self._payload(at, b"HEAD")
        if chunk.length > MAX_HEADER_BYTES:
            damaged(self.path, at, "HEAD", f"the header is longer than {MAX_HEADER_BYTES} bytes")
        try:
            return Header.from_bytes(bytes(data))
        except LookupError as error:
            unsupported(self.path, error.args[0])
        except ValueError as error:
            damaged(self.path, at, "HEAD", str(error))

    def _read_index(self) -> tuple[layout.Index, int]:
        """The index of the last complete trailer, and where that trailer ends."""
        end = len(self._map)
        for _ in range(_TAILS_TRIED):
            at = self._mmap.rfind(b"TAIL", 0, end)
            if at < layout.PRELUDE.size:
                break
            offset = self._tail(at)
            if offset is not None:
                chunk, data = self._payload(offset, b"INDX")
                if chunk.end != at:
                    damaged(self.path, offset, "INDX", "it does not lie in front of its trailer")
                return self._parse_index(data, offset), at + layout.TAIL_SIZE
            end = at + 3
        damaged(self.path, len(self._map), "TAIL", "there is no complete index: the file is cut short")

    def _tail(self, at: int) -> int | None:
        """The index's offset if a valid trailer lies at `at`."""
        try:
            chunk = layout.parse_head(self._map, at)
        except ValueError:
            return None
        data = self._map[chunk.start : chunk.start + chunk.length]
        if chunk.kind != b"TAIL" or chunk.length != layout.TAIL.size or zlib.crc32(data) != chunk.crc:
            return None
        offset, end = layout.TAIL.unpack_from(data)
        return offset if end == chunk.end and offset < at else None

    def _parse_index(self, data: bytes | memoryview, offset: int) -> layout.Index:
        try:
            return layout.parse_index(data, len(self._map))
        except ValueError as error:
            damaged(self.path, offset, "INDX", str(error))

    def _gop_head(self, gop: int | Gop) -> tuple:
        number = self._number(gop)
        record = self.index.gops[number]
        offset = int(record["offset"])
        _, data = self._payload(offset, b"GOPI")
        try:
            head = layout.parse_gop(data)
        except ValueError as error:
            damaged(self.path, offset, "GOPI", str(error))
        named = [number, *(int(record[k]) for k in ("first_frame", "frames", "first_pts", "end_pts", "hash_layers"))]
        if [head[0], head[1], len(head[2]), int(head[2][0]), head[3], head[4]] != named:
            damaged(self.path, offset, "GOPI", "it is not the GOP that the index names")
        return head

    def _refuse_unknown(self, known: Sequence[str]) -> None:
        for row in self.index.others:
            name = row["type"].decode("ascii", "replace")
            if row["flags"] & layout.REQUIRED and name not in known and name != "AUDI":
                unsupported(self.path, f"the required chunk {name!r}")

    def _scan(self) -> tuple[layout.Index, int]:
        """An index made from the chunks themselves, up to the first that is not whole."""
        from .scan import scan

        rows, end = scan(self._map)
        return self._parse_index(rows.pack(), end), end


class _Gops(Sequence):
    def __init__(self, reader: ContainerReader):
        self._index = reader.index

    def __len__(self) -> int:
        return len(self._index.gops)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = number + len(self) if number < 0 else number
        if not 0 <= number < len(self):
            raise IndexError(f"GOP {number} of {len(self)}")
        g = self._index.gops[number]
        first = int(g["first_layer"])
        sizes = tuple(self._index.layers["length"][first : first + int(g["layers"])].tolist())
        values = (int(g[k]) for k in ("first_frame", "frames", "first_pts", "end_pts"))
        return Gop(number, *values, sizes, int(g["hash_layers"]))
