"""Writing frames to a video file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import torch

from .._check import fail
from ._container import import_av

_TICKS = 90_000  # per second, for frames with their own times: the clock of MPEG


def write_video(
    path: str | os.PathLike,
    frames: torch.Tensor | Iterable[torch.Tensor],
    fps: float | Fraction,
    codec: str = "libx264",
    *,
    crf: float | None = 18,
    pix_fmt: str | None = None,
    timestamps: Sequence[float] | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> None:
    """Encode frames into a video file, which appears under its name only when it is complete.

    Convention: the container follows from the suffix; frames are uint8 RGB.

    Args:     path: the file to write; an existing one is replaced at the end, in one step.
              frames: [T, H, W, 3] uint8, or an iterable of [H, W, 3] (written as it is drawn).
              fps: frames per second.
              codec: an FFmpeg encoder. "libx264rgb" with crf=0 keeps every pixel.
              crf: quality for encoders that have it; None leaves it out.
              pix_fmt: stored format; None: the encoder's own for RGB encoders, else yuv420p, or yuv444p for odd sizes.
              timestamps: seconds per frame, rising, for a variable frame rate; None spaces them by fps.
              rotation: degrees clockwise a player shall turn the picture: 0, 90, 180 or 270.
              options: further options of the encoder, such as {"g": "12", "bf": "2"}.
    Raises:   ValueError: no frames, wrong shape or dtype, unknown codec or suffix, an encoder that refuses them.
    """
    av = import_av()
    path = Path(path)
    if rotation % 360 not in (0, 90, 180, 270):
        fail("write_video", "expected `rotation` of 0, 90, 180 or 270.", rotation=rotation)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        try:
            _encode(av, temporary, frames, fps, codec, crf, pix_fmt, timestamps, rotation % 360, options)
        except av.error.FFmpegError as error:
            fail("write_video", f"FFmpeg refused: {error}.", path=str(path), codec=codec, pix_fmt=pix_fmt)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private to their owner
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def _encode(av, path, frames, fps, codec, crf, pix_fmt, timestamps, rotation, options) -> None:
    rate = Fraction(fps).limit_denominator(100_000)
    if rate <= 0:
        fail("write_video", "expected `fps` above 0.", fps=fps)
    base = 1 / rate if timestamps is None else Fraction(1, _TICKS)
    stream, shape, count, before = None, None, 0, -1
    with _open_output(av, path) as container:
        for count, frame in enumerate(frames, 1):
            _check_frame(frame, shape)
            if stream is None:
                shape = tuple(frame.shape)
                stream = _add_stream(av, container, codec, rate, base, shape, crf, pix_fmt, rotation, options)
            picture = av.VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")
            if timestamps is None:
                picture.pts = count - 1
            else:
                picture.pts = _tick(timestamps, count - 1, before)
                before = picture.pts
            picture.time_base = base
            container.mux(stream.encode(picture))
        if stream is None:
            fail("write_video", "there are no frames to write.")
        container.mux(stream.encode(None))


def _open_output(av, path):
    try:
        return av.open(path, "w")
    except (ValueError, av.error.FFmpegError) as error:
        fail("write_video", f"no container for the suffix {Path(path).suffix!r} ({error}).", "use .mp4 or .mkv.")


def _add_stream(av, container, codec, rate, base, shape, crf, pix_fmt, rotation, options):
    try:
        stream = container.add_stream(codec, rate=rate)
    except (ValueError, av.error.FFmpegError) as error:
        fail("write_video", f"no encoder {codec!r} for this container ({error}).")
    height, width = shape[:2]
    stream.width, stream.height = width, height
    if pix_fmt is None:
        odd = height % 2 or width % 2
        pix_fmt = "rgb24" if codec == "libx264rgb" else ("yuv444p" if odd else "yuv420p")
    stream.pix_fmt = pix_fmt
    stream.codec_context.time_base = base
    stream.options = {**({} if crf is None else {"crf": str(crf)}), **(options or {})}
    if rotation:
        if not hasattr(stream, "set_display_rotation"):
            fail("write_video", f"PyAV {av.__version__} cannot write a rotation.", "pip install -U av")
        stream.set_display_rotation(-rotation if rotation < 180 else 360 - rotation)
    return stream


def _check_frame(frame, shape) -> None:
    right = isinstance(frame, torch.Tensor) and frame.dtype == torch.uint8 and frame.ndim == 3 and frame.shape[2] == 3
    if not right or frame.numel() == 0:
        got = f"{list(frame.shape)} {frame.dtype}" if isinstance(frame, torch.Tensor) else type(frame).__name__
        fail("write_video", f"expected frames [H, W, 3] of torch.uint8, got {got}.")
    if shape is not None and tuple(frame.shape) != shape:
        fail("write_video", f"all frames must have one size, got {list(frame.shape)} after {list(shape)}.")


def _tick(timestamps, i: int, before: int) -> int:
    if i >= len(timestamps):
        fail("write_video", f"`timestamps` has {len(timestamps)} entries, frame {i} needs one.")
    tick = round(float(timestamps[i]) * _TICKS)
    if tick <= before:
        fail("write_video", "`timestamps` must rise from 0 on.", frame=i, seconds=timestamps[i])
    return tick
