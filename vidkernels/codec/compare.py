"""Rate and distortion of `.vkv` files beside classical encoders: same frames, same metric, bytes on disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import torch

from vidkernels import _check
from vidkernels.metrics import frame_psnr

from . import classical, protocol
from .protocol import Video
from .rate_distortion import RDPoint, load_points


def measure_file(
    path: str | os.PathLike, source: torch.Tensor, *, opener: Callable[..., Video] | None = None
) -> RDPoint:
    """Decode a `.vkv` file and compare it with its source: one point, timed frame by frame.

    Args:
        path: the file.
        source: [T, H, W, 3] uint8, the frames that it was made from.
        opener: what opens it; None: `codec.open`.
    Raises:
        ValueError: another number of frames or another size than the source's.
    """
    video = (opener or protocol.open_video)(path)
    size = tuple(video.size)
    if len(video) != len(source) or size != tuple(source.shape[1:3]):
        _check.fail(
            "compare",
            "the file and the source have different frames.",
            "give --start, --end and --resize as they were given to `fit`.",
            file=str(path),
            file_frames=(len(video), *size),
            source_frames=tuple(source.shape[:3]),
        )
    values, seconds = [], 0.0
    frames = iter(video)
    for wanted in source:
        start = time.perf_counter()
        frame = next(frames)
        seconds += time.perf_counter() - start
        values.append(frame_psnr(frame, wanted))
    # What the disk holds, not what the file says of itself; without audio, which the peers' files do not have either.
    audio = video.bytes - video.video_bytes if hasattr(video, "video_bytes") else 0
    return RDPoint.of(
        video.model,
        torch.cat(values),
        size,
        Path(path).stat().st_size - audio,
        settings={"file": Path(path).name},
        decode_fps=len(source) / seconds,
    )


def compare(
    source: torch.Tensor,
    fps: float | Fraction,
    files: Iterable[str | os.PathLike] = (),
    peers: Sequence[str] = ("x264", "x265", "svtav1"),
    *,
    crfs: Sequence[float] | None = None,
    threads: int = 0,
    opener: Callable[..., Video] | None = None,
    progress: Callable[[str], object] = lambda text: None,
) -> list[RDPoint]:
    """Points of files and of classical encoders on one clip.

    Args:
        source: [T, H, W, 3] uint8.
        fps: frames per second.
        files: `.vkv` files of this clip, and `.json` files of points measured before (taken as they are).
        peers: encoders, as `classical.encode` names them.
        crfs: qualities for every peer; None takes each encoder's own list.
        threads: of encoders and decoders; 0 lets them choose.
        opener: what opens a `.vkv` file; None: `codec.open`.
        progress: called with a line before each measurement.
    Returns:
        points: files first, then peers, in the order given.
    Raises:
        ValueError: an unknown peer (before anything is encoded), a file of another clip, points of another clip.
    """
    chosen = [classical.encoder(name) for name in peers]
    points = []
    for path in files:
        progress(f"decoding {Path(path).name}")
        if Path(path).suffix == ".json":
            points += (_same_clip(p, source, path) for p in load_points(path))
        else:
            points.append(measure_file(path, source, opener=opener))
    for name, settings in chosen:
        for crf in settings.crfs if crfs is None else crfs:
            progress(f"encoding {name} crf {crf:g}")
            points.append(classical.measure(source, fps, name, crf, threads=threads))
    return points


def _same_clip(point: RDPoint, source: torch.Tensor, path: str | os.PathLike) -> RDPoint:
    if (point.frames, point.height, point.width) != tuple(source.shape[:3]):
        _check.fail(
            "compare",
            "these points belong to another clip.",
            file=str(path),
            point=(point.frames, point.height, point.width),
            source=tuple(source.shape[:3]),
        )
    return point
