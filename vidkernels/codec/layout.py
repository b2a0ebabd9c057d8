"""The bytes of a `.vkv` file: prelude, chunks, GOP heads, index, trailer. docs/container.md is the specification.

    prelude | HEAD | GOPI LAYR.. | GOPI LAYR.. | other chunks | INDX | TAIL [| GOPI LAYR.. | INDX | TAIL]*

Everything is little-endian and starts at a multiple of 8. Parsers here take bytes and raise `ValueError(reason)`;
the reader adds the file and the place.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAGIC = b"\x89VKV\r\n\x1a\n"
VERSION = 1
PRELUDE = struct.Struct("<8sHHI")  # magic, version, minor version, crc32 of the 12 bytes before
HEAD = struct.Struct("<4sIQII")  # type, flags, payload length, crc32 of the payload, crc32 of the 20 bytes before
TAIL = struct.Struct("<QQ")  # offset of the index chunk, file offset behind this trailer
TAIL_SIZE = HEAD.size + TAIL.size
LAYER = struct.Struct("<II")  # GOP, layer: the first 8 bytes of a LAYR payload
GOP = struct.Struct(
    "<IIQqqHBBI"
)  # number, frames, first frame, first pts, end pts, hash layers, hash bytes, timing, step
INDEX = struct.Struct("<QIIII")  # frames, GOPs, layer chunks, other chunks, zero
REQUIRED = 1  # flag: a reader that does not know the type must refuse the file

MAX_GOP_FRAMES = 1 << 16
MAX_LAYERS = 256
MAX_PTS = 1 << 62
CONSTANT, TABLE = 0, 1  # timing of a GOP: one step, or a table of steps

GOP_RECORD = np.dtype(
    [
        ("first_frame", "<u8"),
        ("first_pts", "<i8"),
        ("end_pts", "<i8"),
        ("offset", "<u8"),
        ("first_layer", "<u4"),
        ("frames", "<u4"),
        ("layers", "<u2"),
        ("hash_layers", "<u2"),
        ("zero", "<u4"),
    ]
)
LAYER_RECORD = np.dtype([("offset", "<u8"), ("length", "<u8")])
OTHER_RECORD = np.dtype([("type", "S4"), ("flags", "<u4"), ("offset", "<u8"), ("length", "<u8")])


def padding(length: int) -> int:
    """Zero bytes behind a payload of `length` bytes."""
    return -length % 8


def prelude() -> bytes:
    start = PRELUDE.pack(MAGIC, VERSION, 0, 0)[:12]
    return start + struct.pack("<I", zlib.crc32(start))


def chunk_head(kind: bytes, flags: int, parts: Sequence[bytes]) -> bytes:
    """The 24 bytes before a payload that is the concatenation of `parts`."""
    crc, length = 0, 0
    for part in parts:
        crc, length = zlib.crc32(part, crc), length + len(part)
    start = HEAD.pack(kind, flags, length, crc, 0)[:20]
    return start + struct.pack("<I", zlib.crc32(start))


@dataclass(frozen=True)
class Chunk:
    """A parsed chunk head; the payload lies at offset + 24."""

    kind: bytes
    flags: int
    offset: int
    length: int
    crc: int

    @property
    def start(self) -> int:
        return self.offset + HEAD.size

    @property
    def end(self) -> int:
        """The offset of the next chunk."""
        return self.start + self.length + padding(self.length)

    @property
    def name(self) -> str:
        return self.kind.decode("ascii", "replace")


def parse_head(data, offset: int) -> Chunk:
    """The chunk at `offset` of `data`, whole inside it; the payload is not looked at."""
    if offset % 8 or offset < PRELUDE.size or offset + HEAD.size > len(data):
        raise ValueError("a chunk would start outside the file or off the grid of 8 bytes")
    kind, flags, length, crc, own = HEAD.unpack_from(data, offset)
    if own != zlib.crc32(data[offset : offset + 20]):
        raise ValueError("the checksum of the chunk head does not match")
    chunk = Chunk(kind, flags, offset, length, crc)
    if chunk.end > len(data):
        raise ValueError(f"the chunk needs {chunk.end - len(data)} bytes more than the file has")
    return chunk


def pack_gop(
    number: int, first_frame: int, pts: np.ndarray, end: int, hash_layers: int, hashes: Sequence[bytes]
) -> bytes:
    """Payload of GOPI. `pts` int64, rising; `hashes` one a frame, or none."""
    steps = np.diff(pts)
    constant = len(steps) == 0 or bool((steps == steps[0]).all())
    step = int(steps[0]) if constant and len(steps) else 0
    width = len(hashes[0]) if hashes else 0
    timing = CONSTANT if constant else TABLE
    head = GOP.pack(number, len(pts), first_frame, int(pts[0]), end, hash_layers, width, timing, step)
    return head + (b"" if constant else steps.astype("<u4").tobytes()) + b"".join(hashes)


def parse_gop(data) -> tuple[int, int, np.ndarray, int, int, list[bytes]]:
    """(number, first frame, pts [frames] int64, end pts, hash layers, hashes) of a GOPI payload."""
    if len(data) < GOP.size:
        raise ValueError("the GOP head is too short")
    number, frames, first_frame, first, end, hash_layers, width, timing, step = GOP.unpack_from(data)
    if not 1 <= frames <= MAX_GOP_FRAMES or width > 32 or timing not in (CONSTANT, TABLE):
        raise ValueError("frame count, hash size or timing of the GOP is out of range")
    table = 4 * (frames - 1) if timing == TABLE else 0
    if len(data) != GOP.size + table + frames * width:
        raise ValueError(f"the GOP head has {len(data)} bytes, not {GOP.size + table + frames * width}")
    if not -MAX_PTS < first < end < MAX_PTS:
        raise ValueError("the GOP does not end after it begins")
    pts = np.full(frames, first, np.int64)
    steps = np.frombuffer(data, "<u4", frames - 1, GOP.size) if table else np.full(frames - 1, step, np.int64)
    pts[1:] += np.cumsum(steps, dtype=np.int64)
    if (frames > 1 and int(steps.min()) == 0) or int(pts[-1]) >= end:
        raise ValueError("the times of the frames do not rise up to the end of the GOP")
    at = GOP.size + table
    hashes = [bytes(data[at + i * width : at + (i + 1) * width]) for i in range(frames)] if width else []
    return number, first_frame, pts, end, hash_layers, hashes


@dataclass(frozen=True)
class Index:
    """Where everything is: structured arrays over the file's own bytes."""

    frames: int
    gops: np.ndarray
    layers: np.ndarray
    others: np.ndarray

    def pack(self) -> bytes:
        head = INDEX.pack(self.frames, len(self.gops), len(self.layers), len(self.others), 0)
        return head + self.gops.tobytes() + self.layers.tobytes() + self.others.tobytes()


def parse_index(data, size: int) -> Index:
    """The index in payload `data` of a file of `size` bytes; every number in it is checked against the others."""
    if len(data) < INDEX.size:
        raise ValueError("the index is too short")
    frames, gops, layers, others, zero = INDEX.unpack_from(data)
    lengths = [gops * GOP_RECORD.itemsize, layers * LAYER_RECORD.itemsize, others * OTHER_RECORD.itemsize]
    if zero or len(data) != INDEX.size + sum(lengths):
        raise ValueError(f"the index has {len(data)} bytes, not {INDEX.size + sum(lengths)}")
    at = INDEX.size
    g = np.frombuffer(data, GOP_RECORD, gops, at)
    l = np.frombuffer(data, LAYER_RECORD, layers, at + lengths[0])  # noqa: E741
    o = np.frombuffer(data, OTHER_RECORD, others, at + lengths[0] + lengths[1])
    for table in (g, l, o):
        if (table["offset"] >= size).any() or (table["offset"] % 8).any():
            raise ValueError("the index points outside the file")
    for table in (l, o):
        if (table["length"] > size).any():
            raise ValueError("the index names a chunk longer than the file")
    if (g["frames"] == 0).any() or (g["frames"] > MAX_GOP_FRAMES).any() or (g["layers"] > MAX_LAYERS).any():
        raise ValueError("a GOP of the index has no frames, or too many frames or layers")
    _running("frames", g["first_frame"], g["frames"], frames)
    _running("layers", g["first_layer"], g["layers"], layers)
    if g["zero"].any():
        raise ValueError("a GOP of the index has reserved bits set")
    first, end = g["first_pts"], g["end_pts"]
    bad = (first <= -MAX_PTS) | (end >= MAX_PTS) | (end <= first)
    if bad.any() or (first[1:] <= first[:-1]).any():
        raise ValueError("the times of the GOPs do not rise")
    return Index(frames, g, l, o)


def _running(what: str, first: np.ndarray, counts: np.ndarray, total: int) -> None:
    sums = np.zeros(len(counts) + 1, np.uint64)
    np.cumsum(counts, dtype=np.uint64, out=sums[1:])
    if (first != sums[:-1]).any() or int(sums[-1]) != total:
        raise ValueError(f"the {what} of the GOPs leave gaps or overlap")
