"""x264, x265 and SVT-AV1 through PyAV: what a new codec has to be compared with."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import torch

from vidkernels import _check
from vidkernels.metrics import frame_psnr

from ..data._container import import_av
from ._yuv import Converter, Layout
from .rate_distortion import RDPoint


@dataclass(frozen=True)
class Encoder:
    """One FFmpeg encoder with its speed setting, and the CRFs that make its curve."""

    codec: str
    options: dict[str, str] = field(default_factory=dict)
    crfs: tuple[float, ...] = (20, 25, 30, 35, 40)


def _x265(preset: str, **options: str) -> Encoder:
    return Encoder("libx265", {"preset": preset, "x265-params": "log-level=none", **options})


_USUAL = Layout()
_AV1_CRFS = (24, 34, 44, 54, 63)
ENCODERS: dict[str, Encoder] = {
    "x264-medium": Encoder("libx264", {"preset": "medium"}),
    "x264-medium-psnr": Encoder("libx264", {"preset": "medium", "tune": "psnr"}),
    "x265-medium": _x265("medium"),
    "x265-medium-psnr": _x265("medium", tune="psnr"),
    **{f"svtav1-p{p}": Encoder("libsvtav1", {"preset": str(p)}, _AV1_CRFS) for p in range(4, 9)},
}
_SHORT = {"x264": "x264-medium", "x265": "x265-medium", "svtav1": "svtav1-p6"}


@dataclass(frozen=True)
class Encoded:
    """What an encoder made of a clip.

    Args:     data: the whole mp4 file; `len(data)` is the bytes on disk, container included.
              stream_bytes: the elementary stream alone: all packets and the parameter sets of the header.
              seconds: wall time of the encoder, with the conversion from RGB.
              size: (height, width) of the clip; the coded picture is padded to even sides.
              frames: how many.
              layout: planes and colour of the coded pictures.
    """

    data: bytes
    stream_bytes: int
    seconds: float
    size: tuple[int, int]
    frames: int
    layout: Layout


def encoder(name: str) -> tuple[str, Encoder]:
    """The full name and the settings of a peer: "x264", "x265", "svtav1", or one with its preset."""
    full = _SHORT.get(name, name)
    if full not in ENCODERS:
        _check.fail("encoder", f"no encoder named {name!r}.", f"one of {', '.join([*_SHORT, *ENCODERS])}.")
    return full, ENCODERS[full]


def encode(
    clip: torch.Tensor | Sequence[torch.Tensor],
    fps: float | Fraction,
    name: str,
    crf: float,
    *,
    layout: Layout = _USUAL,
    threads: int = 0,
) -> Encoded:
    """Compress a clip with a classical encoder at constant quality, in memory, as an mp4 file.

    Convention: RGB becomes YUV 4:2:0, BT.709, limited range (or what `layout` says), and the stream says so; odd sides
        are padded by repeating the last row and column. GOP length and all else are the encoder's defaults.
    Args:
        clip: [T, H, W, 3] uint8, or a sequence of such frames.
        fps: frames per second; it matters, as encoders spend by duration.
        name: a key of `ENCODERS`, or "x264", "x265", "svtav1".
        crf: the encoder's constant-quality setting.
        layout: planes, matrix and range.
        threads: of the encoder; 0 lets it choose.
    Returns:
        encoded: file, sizes and time.
    Raises:
        ValueError: unknown encoder, empty or wrong clip, a setting that the encoder refuses.
        RuntimeError: this FFmpeg was built without the encoder.
    Source: FFmpeg's libx264, libx265, libsvtav1 through PyAV.
    Example:
        >>> clip = torch.zeros(4, 64, 96, 3, dtype=torch.uint8)
        >>> made = encode(clip, 25, "x264", 30)
        >>> made.frames, made.stream_bytes < len(made.data)
        (4, True)
    """
    av = import_av()
    name, chosen = encoder(name)
    size = _checked(clip)
    try:
        av.Codec(chosen.codec, "w")
    except (ValueError, av.error.FFmpegError):
        _check.fail("encode", f"this FFmpeg was built without {chosen.codec}.", error=RuntimeError, peer=name)
    converter = Converter(layout)
    file = io.BytesIO()
    packets = 0
    start = time.perf_counter()
    try:
        with _quiet_svt(), av.open(file, "w", format="mp4") as container:
            stream = container.add_stream(chosen.codec, rate=Fraction(fps).limit_denominator(100_000))
            stream.height, stream.width = (side + side % 2 for side in size)
            converter.tag(stream.codec_context)
            stream.codec_context.thread_count = threads
            stream.options = {**chosen.options, "crf": f"{crf:g}"}
            if chosen.codec == "libx265" and len(clip) < 3:
                stream.options |= {"bf": "0"}  # x265 leaves decoding times unset where B-frames outnumber the frames
            for number, frame in enumerate(clip):
                picture = converter.to_yuv(_even(frame.numpy()))
                picture.pts = number
                packets += _mux(container, stream.encode(picture))
            packets += _mux(container, stream.encode(None))
            packets += len(stream.codec_context.extradata or b"")
    except av.error.FFmpegError as error:
        _check.fail("encode", f"FFmpeg refused: {error}.", peer=name, crf=crf, size=size, layout=layout)
    return Encoded(file.getvalue(), packets, time.perf_counter() - start, size, len(clip), layout)


def decode(encoded: Encoded, *, threads: int = 0) -> Iterator[torch.Tensor]:
    """The frames [H, W, 3] uint8 RGB of what `encode` made, one after the other.

    Example:
        >>> clip = torch.full((2, 32, 33, 3), 100, dtype=torch.uint8)
        >>> [frame.shape for frame in decode(encode(clip, 25, "x264", 20))]
        [torch.Size([32, 33, 3]), torch.Size([32, 33, 3])]
    """
    converter = Converter(encoded.layout)
    height, width = encoded.size
    for picture in _pictures(encoded, threads):
        yield torch.from_numpy(converter.to_rgb(picture)[:height, :width].copy())


def decoding_seconds(encoded: Encoded, *, threads: int = 0) -> float:
    """Wall time of decoding all frames to YUV planes; the conversion to RGB, which a player leaves to the screen, is
    not counted."""
    start = time.perf_counter()
    for _ in _pictures(encoded, threads):
        pass
    return time.perf_counter() - start


def measure(clip: torch.Tensor, fps: float | Fraction, name: str, crf: float, *, threads: int = 0) -> RDPoint:
    """Encode, decode, compare: one point of a classical encoder's rate-distortion curve.

    Args:
        clip: [T, H, W, 3] uint8, what the metric compares with, too.
        fps: frames per second.
        name: as `encode`.
        crf: as `encode`.
        threads: of encoder and decoder; 0 lets them choose.
    Returns:
        point: bytes of the mp4 file (and of the stream alone), PSNR over R, G and B, times.
    """
    made = encode(clip, fps, name, crf, threads=threads)
    decoding = decoding_seconds(made, threads=threads)
    values = [frame_psnr(got, wanted) for got, wanted in zip(decode(made, threads=threads), clip, strict=True)]
    name, _ = encoder(name)
    return RDPoint.of(
        name,
        torch.cat(values),
        made.size,
        len(made.data),
        stream_bytes=made.stream_bytes,
        settings={"crf": crf},
        encode_s=made.seconds,
        decode_fps=made.frames / decoding,
    )


def _pictures(encoded: Encoded, threads: int):
    av = import_av()
    with av.open(io.BytesIO(encoded.data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        yield from container.decode(stream)


def _mux(container, packets) -> int:
    size = 0
    for packet in packets:
        size += packet.size
        container.mux(packet)
    return size


def _checked(clip) -> tuple[int, int]:
    frames = clip if isinstance(clip, torch.Tensor) and clip.dim() == 4 else list(clip)
    if len(frames) == 0:
        _check.fail("encode", "there are no frames to encode.")
    first = frames[0]
    for frame in frames:
        if frame.dtype is not torch.uint8 or frame.dim() != 3 or frame.shape != first.shape or frame.shape[2] != 3:
            _check.fail("encode", "expected frames [H, W, 3] of torch.uint8 and of one size.", frame=frame, first=first)
    if first.numel() == 0:
        _check.fail("encode", "expected frames with pixels.", first=first)
    return first.shape[0], first.shape[1]


def _even(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


@contextmanager
def _quiet_svt():
    """SVT-AV1 prints its settings to stderr unless its environment variable forbids it."""
    before = os.environ.get("SVT_LOG")
    os.environ["SVT_LOG"] = before or "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["SVT_LOG"]
