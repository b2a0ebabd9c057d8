"""Opening a file with PyAV: one place that says why a file is not a video we can read."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NoReturn

from .._check import fail


class MissingVideoError(FileNotFoundError, ValueError):
    """The path names no file. Both a FileNotFoundError and a ValueError, like every other bad-file error here."""


def import_av():
    try:
        import av
    except ImportError:
        fail(
            "vidkernels.data",
            "reading and writing video needs PyAV.",
            "pip install 'vidkernels[video]'",
            error=ImportError,
        )
    return av


def open_video(path: str, threads: int = 0, codec_options: dict | None = None):
    """Open `path`; return (container, video stream), or raise ValueError naming the path and the reason.

    Only the local file itself is read: playlists that point elsewhere are refused by the protocol list.
    """
    av = import_av()
    file = Path(path)
    if not file.exists():
        fail("VideoReader", "no such file.", error=MissingVideoError, path=path)
    if not file.is_file():
        _unreadable(path, "it is not a regular file")
    if file.stat().st_size == 0:
        _unreadable(path, "the file is empty (0 bytes)")
    try:
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        if _lacks_moov(file):
            _unreadable(
                path,
                "it is cut short: the mp4 index (`moov`) is missing",
                "copy or download the whole file again; an interrupted recording needs a repair tool.",
            )
        _unreadable(path, f"it is not in a format FFmpeg can open ({_text(error)})")
    try:
        stream = _video_stream(container, path)
        context = stream.codec_context
        context.thread_type = "AUTO"
        context.thread_count = threads
        if codec_options:
            context.options = codec_options
    except BaseException:
        container.close()
        raise
    return container, stream


def _video_stream(container, path: str):
    name = container.format.name
    if name.endswith("_pipe") or name == "image2":
        _unreadable(path, f"it is a picture (format {name})", "make an image a one-frame video in memory.")
    if name == "tty":
        _unreadable(path, "it is a text file")
    cover = 1024  # AV_DISPOSITION_ATTACHED_PIC: the cover art of an audio file is a "video" of one picture
    for stream in container.streams.video:
        disposition = getattr(stream, "disposition", 0)  # older PyAV does not tell
        if not int(getattr(disposition, "value", disposition)) & cover:
            if stream.codec_context is None:
                _unreadable(path, "this FFmpeg build has no decoder for its video codec")
            return stream
    kinds = sorted({stream.type for stream in container.streams}) or ["none"]
    _unreadable(path, f"it has no video stream (streams: {', '.join(kinds)})")


def _unreadable(path: str, why: str, hint: str = "") -> NoReturn:
    size = os.path.getsize(path) if os.path.isfile(path) else None
    fail("VideoReader", f"cannot read the file as video: {why}.", hint, path=path, bytes=size)


def _text(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _lacks_moov(file: Path) -> bool:
    """True for an ISO media file (mp4, mov) whose top-level boxes end without a `moov`."""
    size = file.stat().st_size
    boxes, at = [], 0
    with file.open("rb") as stream:
        while at + 8 <= size and len(boxes) < 64:
            stream.seek(at)
            length, kind = struct.unpack(">I4s", stream.read(8))
            if length == 1 and at + 16 <= size:
                length = struct.unpack(">Q", stream.read(8))[0]
            boxes.append(kind)
            if length < 8:
                break
            at += length
    return bool(boxes) and boxes[0] == b"ftyp" and b"moov" not in boxes
