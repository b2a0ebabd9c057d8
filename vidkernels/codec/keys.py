"""Key frames: a few pictures of a clip, by AV1 ("av1") or by our own coder ("transform", keys_transform.py).

bytes of "av1"   height, width (u16 each), then for the stream's setup and each packet its length and its bytes
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch

from .. import _check
from ..data._container import import_av
from ._yuv import Converter, Layout
from .bits import pack_varint, unpack_varint
from .classical import _quiet_svt
from .keys_transform import decode_transform, encode_transform

_HEAD = struct.Struct("<HH")
_LAYOUT = Layout()
_LEAST_SIDE = 64  # of the encoder
_QUALITIES = (1, 63)
_PRESET = "4"


def encode_keys(frames: torch.Tensor, quality: int, coder: str = "av1") -> bytes:
    """[K, H, W, 3] uint8 by a coder of CODERS; quality 1 to 63, the larger the fewer bytes."""
    return CODERS[coder][0](frames, quality)


def decode_keys(data: bytes | memoryview, size: tuple[int, int], count: int, coder: str = "av1") -> torch.Tensor:
    """[K, H, W, 3] uint8. Raises ValueError where the bytes are not so many key frames of this size."""
    return CODERS[coder][1](data, size, count)


def _encode_av1(frames: torch.Tensor, crf: int) -> bytes:
    """At constant quality; the first is intra coded, the others may refer to it."""
    av = import_av()
    converter, (height, width) = Converter(_LAYOUT), frames.shape[1:3]
    packets = []
    try:
        with _quiet_svt():
            context = av.CodecContext.create("libsvtav1", "w")
            context.height, context.width = (max(_LEAST_SIDE, side + side % 2) for side in (height, width))
            converter.tag(context)
            context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
            # One thread: the same bytes from every run.
            context.options = {"preset": _PRESET, "crf": str(crf), "svtav1-params": "lp=1"}
            for number, frame in enumerate(frames):
                picture = converter.to_yuv(_padded(frame.numpy(), context.height, context.width))
                picture.pts = number
                packets += context.encode(picture)
            packets += context.encode(None)
    except (ValueError, av.error.FFmpegError) as error:
        _check.fail("encode_keys", f"FFmpeg refused: {error}.", quality=crf, frames=frames)
    parts = [bytes(context.extradata or b""), *map(bytes, packets)]
    return _HEAD.pack(height, width) + b"".join(pack_varint(len(p)) + p for p in parts)


def _decode_av1(data: bytes | memoryview, size: tuple[int, int], count: int) -> torch.Tensor:
    av = import_av()
    if len(data) < _HEAD.size or _HEAD.unpack_from(data) != tuple(size):
        raise ValueError("the key frames are of another size")
    parts, at = [], _HEAD.size
    while at < len(data) and len(parts) <= count + 1:
        length, at = unpack_varint(data, at)
        if length > len(data) - at:
            raise ValueError("a key frame is cut short")
        parts.append(bytes(data[at : at + length]))
        at += length
    converter, pictures = Converter(_LAYOUT), []
    try:
        context = av.CodecContext.create("av1" if "libdav1d" not in av.codecs_available else "libdav1d", "r")
        context.extradata = parts[0] if parts else b""
        # What a damaged header says of the size must not decide about memory.
        context.options = {"max_pixels": str(2 * max(size[0], _LEAST_SIDE) * max(size[1], _LEAST_SIDE))}
        context.thread_count = 1
        for part in [*parts[1:], None]:
            packet = None if part is None else av.Packet(part)
            pictures += [converter.to_rgb(p) for p in context.decode(packet) if _covers(p, size)]
    except (av.error.FFmpegError, ValueError) as error:
        raise ValueError(f"the key frames cannot be decoded ({str(error)[:80]})") from None
    if len(pictures) != count:
        raise ValueError(f"expected {count} key frames, found {len(pictures)}")
    return torch.from_numpy(np.stack(pictures)[:, : size[0], : size[1]].copy())


def chosen_quality(frames: torch.Tensor, good: Callable[[bytes], bool], coder: str = "av1") -> bytes:
    """The coded key frames of the best quality that is still `good`; those of the least if none is."""
    low, high = _QUALITIES
    best = encode_keys(frames, high, coder)
    while low < high:
        middle = (low + high) // 2
        coded = encode_keys(frames, middle, coder)
        if good(coded):
            best, high = coded, middle
        else:
            low = middle + 1
    return best


def _padded(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.pad(frame, ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0)), mode="edge")


def _covers(picture, size: tuple[int, int]) -> bool:
    if picture.height < size[0] or picture.width < size[1] or max(picture.height, picture.width) > 1 << 16:
        raise ValueError("a key frame is of another size")
    return True


CODERS = {"av1": (_encode_av1, _decode_av1), "transform": (encode_transform, decode_transform)}
