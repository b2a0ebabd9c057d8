"""A small `.vkv` file that the container tests share."""

import struct
import warnings
import zlib
from fractions import Fraction

import numpy as np

from vidkernels.codec import (
    Color,
    ContainerReader,
    ContainerWriter,
    DamagedFileError,
    Header,
    UnsupportedFileError,
    frame_hash,
)
from vidkernels.codec import layout as L

HEADER = Header(
    "demo",
    63,
    47,
    Fraction(1, 30000),
    config={"layers": [1, 2.5, None, True], "näme": "x"},
    coded_size=(64, 48),
    crop=(1, 0),
    rotation=90,
    pixel_aspect=Fraction(4, 3),
    color=Color(1, 13, 6, True, 10),
    exact=True,
    metadata={"title": "päge"},
)
GOPS = 4
PTS = [np.cumsum(np.r_[7, np.full(4, 1001)]), None, None, None]
for g in range(1, GOPS):
    steps = [1001] * 5 if g % 2 else [1001, 500, 2002, 1, 9]  # constant and variable rate
    PTS[g] = PTS[g - 1][-1] + np.cumsum(steps)


def layers(gop):
    return {0: bytes([gop]) * (5 + gop), 1: np.random.default_rng(gop).bytes(33), 2: b""}


def decode(gop, data):
    """A stand-in for a model: frames that depend on the bytes of the layers."""
    seed = zlib.crc32(b"".join(data))
    return np.random.default_rng([gop.number, seed]).integers(0, 256, (gop.frames, 4, 6, 3), np.uint8)


class Numbered:
    def __init__(self, number, frames):
        self.number, self.frames = number, frames


def add(writer, gop, **more):
    frames = decode(Numbered(gop, 5), list(layers(gop).values()))
    hashes = [frame_hash(f, HEADER.hash_bytes) for f in frames]
    return writer.add_gop(5 * gop, PTS[gop], layers(gop), hashes, **more)


def write(path, gops=GOPS, audio=None):
    with ContainerWriter(path, HEADER) as writer:
        writer.add_chunk("CODE", b"shared codebook")
        for gop in range(gops):
            add(writer, gop)
        if audio is not None:
            writer.set_audio(audio)
    return path


def replace_chunk(data, kind, payload, flags=None):
    """The file with the payload of the first chunk of `kind` replaced; checksums right, other offsets as they were
    where the length allows it."""
    at = L.PRELUDE.size
    while True:
        chunk = L.parse_head(data, at)
        if chunk.kind == kind:
            break
        at = chunk.end
    head = L.chunk_head(kind, chunk.flags if flags is None else flags, [payload])
    return data[:at] + head + payload + bytes(L.padding(len(payload))) + data[chunk.end :]


def reseal(data):
    """All checksums of chunks and prelude made right, wherever chunk lengths still lead to one."""
    out = bytearray(data)
    out[12:16] = struct.pack("<I", zlib.crc32(out[:12]))
    at = L.PRELUDE.size
    while at + L.HEAD.size <= len(out):
        length = struct.unpack_from("<Q", out, at + 8)[0]
        start = at + L.HEAD.size
        if length > len(out) - start:
            length = len(out) - start
        out[at + 16 : at + 20] = struct.pack("<I", zlib.crc32(out[start : start + length]))
        out[at + 20 : at + 24] = struct.pack("<I", zlib.crc32(out[at : at + 20]))
        at = start + length + L.padding(length)
    return bytes(out)


def rewritten(path, change):
    data = path.read_bytes()
    path.write_bytes(change(data))
    return path


def read_all(path, content):
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = ContainerReader(path)
        with reader as r:
            r.verify()
        return True
    except (DamagedFileError, UnsupportedFileError):
        return False
