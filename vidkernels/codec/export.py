"""Decoded frames to where people want them: mp4, y4m, a folder of PNG files, a pipe."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from vidkernels import _check

from ..data._container import import_av
from ._yuv import Converter, Layout

MOVIES = (".mp4", ".mkv", ".mov")
_TICKS = 90_000


def export(
    out: str | os.PathLike,
    frames: Iterable[torch.Tensor],
    fps: float | Fraction,
    *,
    timestamps: Sequence[float] | None = None,
    audio: object | None = None,
) -> int:
    """Write frames to what the name asks for, whole or not at all.

    Convention: `.mp4`, `.mkv`, `.mov`: H.264 at CRF 12, BT.709 limited range and tagged so, 4:2:0 (4:4:4 for odd
        sizes). `.y4m`: see `write_y4m`. A name without a suffix: a new folder of PNG files 000000.png, 000001.png, ...,
        which keep every pixel. The result appears under its name when it is complete.
    Args:
        out: file or folder.
        frames: [H, W, 3] uint8 each, drawn as they are written.
        fps: frames per second.
        timestamps: seconds per frame, rising from 0 on, for movies of a variable rate; the others have a fixed rate.
        audio: `codec.Audio`, whose packets are copied beside the pictures of a movie; its clock is the movie's.
    Returns:
        count: frames written.
    Raises:
        ValueError: no frames, frames of the wrong kind or of several sizes, an unknown suffix, a folder that is not
            empty, audio where none fits.
    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp() + "/pictures"
        >>> export(folder, torch.zeros(2, 8, 8, 3, dtype=torch.uint8), 25), sorted(os.listdir(folder))
        (2, ['000000.png', '000001.png'])
    """
    path = Path(out)
    suffix = path.suffix.lower()
    if suffix not in (*MOVIES, ".y4m", ""):
        _check.fail("export", f"no format for the suffix {path.suffix!r}.", "use .mp4, .mkv, .mov, .y4m or a folder.")
    if audio is not None and suffix not in MOVIES:
        _check.fail("export", "only movies hold audio.", f"use {', '.join(MOVIES)}.", out=str(out))
    if suffix in MOVIES:
        return _movie(path, frames, fps, timestamps, audio)
    if suffix == ".y4m":
        with _replacing(path) as temporary, open(temporary, "wb") as file:
            return write_y4m(file, frames, fps)
    return _pictures(path, frames)


def write_y4m(
    file: BinaryIO, frames: Iterable[torch.Tensor], fps: float | Fraction, *, pix_fmt: str = "yuv420p"
) -> int:
    """Write frames as YUV4MPEG2 to an open binary file, such as a pipe.

    Convention: 8-bit limited range (said in the header); the format cannot name a matrix, so it is the one that players
        assume: BT.709 from 720 lines up, else BT.601. Odd sides of 4:2:0 round their chroma up. The rate is rational.
    Args:
        file: writable.
        frames: [H, W, 3] uint8 each.
        fps: frames per second.
        pix_fmt: "yuv420p" (chroma at the centre, as MPEG-1 and JPEG) or "yuv444p".
    Returns:
        count: frames written.
    Raises:
        ValueError: no frames, wrong frames, another `pix_fmt`.
    Source: the YUV4MPEG2 description in mjpegtools' yuv4mpeg(5).
    """
    tags = {"yuv420p": "420jpeg", "yuv444p": "444"}
    if pix_fmt not in tags:
        _check.fail("write_y4m", f"expected `pix_fmt` in {sorted(tags)}.", pix_fmt=pix_fmt)
    rate = _rate("write_y4m", fps)
    converter, count = None, 0
    for count, frame in enumerate(_checked("write_y4m", frames), 1):  # noqa: B007
        height, width = frame.shape[:2]
        if converter is None:
            converter = Converter(Layout(pix_fmt, "bt709" if height >= 720 else "bt601"))
            head = f"W{width} H{height} F{rate.numerator}:{rate.denominator} Ip A1:1 C{tags[pix_fmt]}"
            file.write(f"YUV4MPEG2 {head} XCOLORRANGE=LIMITED\n".encode())
        file.write(b"FRAME\n")
        for plane in converter.to_yuv(frame).planes:
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
            file.write(rows[: plane.height, : plane.width].tobytes())
    _some("write_y4m", count)
    return count


def write_raw(file: BinaryIO, frames: Iterable[torch.Tensor]) -> int:
    """Write frames as bare rgb24 bytes, rows from the top, to an open binary file; returns their count."""
    count = 0
    for count, frame in enumerate(_checked("write_raw", frames), 1):  # noqa: B007
        file.write(frame.contiguous().numpy().data)
    _some("write_raw", count)
    return count


def png_bytes(frame: torch.Tensor) -> bytes:
    """One frame [H, W, 3] uint8 as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame.contiguous().numpy()).save(file, "png", compress_level=3)
    return file.getvalue()


def _movie(path: Path, frames, fps, timestamps, audio) -> int:
    with _replacing(path) as temporary:
        if audio is None:
            return _encode(temporary, frames, fps, timestamps)
        from .audio import mux_audio

        silent = temporary.with_name(f"{temporary.stem}.silent{temporary.suffix}")
        try:
            count = _encode(silent, frames, fps, timestamps)
            mux_audio(silent, audio, temporary)
        finally:
            silent.unlink(missing_ok=True)
        return count


def _encode(path: Path, frames, fps, timestamps) -> int:
    av = import_av()
    rate = _rate("export", fps)
    base = 1 / rate if timestamps is None else Fraction(1, _TICKS)
    converter, count, before = None, 0, -1
    try:
        with av.open(str(path), "w") as container:
            for count, frame in enumerate(_checked("export", frames), 1):
                if converter is None:
                    height, width = frame.shape[:2]
                    converter = Converter(Layout("yuv444p" if height % 2 or width % 2 else "yuv420p"))
                    stream = container.add_stream("libx264", rate=rate)
                    stream.height, stream.width = height, width
                    converter.tag(stream.codec_context)
                    stream.codec_context.time_base = base
                    stream.options = {"crf": "12", "preset": "medium"}
                picture = converter.to_yuv(frame)
                picture.pts = count - 1 if timestamps is None else _tick(timestamps, count - 1, before)
                picture.time_base = base
                before = picture.pts
                container.mux(stream.encode(picture))
            _some("export", count)
            container.mux(stream.encode(None))
    except av.error.FFmpegError as error:
        _check.fail("export", f"FFmpeg refused: {error}.", out=str(path))
    return count


def _tick(timestamps: Sequence[float], i: int, before: int) -> int:
    if i >= len(timestamps):
        _check.fail("export", f"`timestamps` has {len(timestamps)} entries, frame {i} needs one.")
    tick = round(timestamps[i] * _TICKS)
    if tick <= before:
        _check.fail("export", "`timestamps` must rise from 0 on.", frame=i, seconds=timestamps[i])
    return tick


def _pictures(path: Path, frames) -> int:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        _check.fail("export", "the folder exists and is not empty.", "name a new one.", out=str(path))
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent))
    try:
        count = 0
        for count, frame in enumerate(_checked("export", frames), 1):
            (temporary / f"{count - 1:06d}.png").write_bytes(png_bytes(frame))
        _some("export", count)
        temporary.chmod(0o777 & ~_umask())
        os.replace(temporary, path)  # an empty folder of that name gives way
        return count
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place if all goes well, and vanishes otherwise."""
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.absolute().parent)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's files are private to their owner
        os.replace(name, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _rate(name: str, fps: float | Fraction) -> Fraction:
    rate = Fraction(fps).limit_denominator(100_000) if fps > 0 else Fraction(0)
    if rate <= 0:
        _check.fail(name, "expected `fps` above 0.", fps=fps)
    return rate


def _checked(name: str, frames: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    shape = None
    for frame in frames:
        if not isinstance(frame, torch.Tensor) or frame.dtype is not torch.uint8 or frame.dim() != 3:
            _check.fail(name, "expected frames [H, W, 3] of torch.uint8.", frame=frame)
        if frame.shape[2] != 3 or frame.numel() == 0:
            _check.fail(name, "expected frames [H, W, 3], not empty.", frame=frame)
        if shape not in (None, frame.shape):
            _check.fail(name, f"all frames must have one size, got {list(frame.shape)} after {list(shape)}.")
        shape = frame.shape
        yield frame


def _some(name: str, count: int) -> None:
    if count == 0:
        _check.fail(name, "there are no frames to write.")
