"""Coders of key frames: bytes for a PSNR, on four frames of a clip that lie 44 apart.

python -m benchmarks.key_frames CLIP [--size 160x320] [--at 26 28 30 32 34] [--gaussian 28] [--json FILE]

av1 and transform are the coders of `vidkernels fit --model flow --keys`; x264 codes every frame by itself, as do WebP
and JPEG (through Pillow); av1 may refer from one key frame to another. Bytes are those of the streams; RGB PSNR is the
mean over the frames; bytes at a PSNR are interpolated between settings, their logarithm linearly. --gaussian fits each
frame as a Gaussian file of that PSNR, which takes minutes, and counts its layers without the file around them.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from rich.progress import track

from vidkernels.codec import open as open_vkv
from vidkernels.codec import protocol
from vidkernels.codec.keys import CODERS
from vidkernels.metrics import frame_psnr

NUMBERS = (0, 44, 87, 131)
Point = tuple[int, float]  # bytes, decibels


def key_frames(path: Path, size: tuple[int, int]) -> torch.Tensor:
    """[K, H, W, 3] uint8: the middle of the pictures, of the size's shape, scaled by area averaging."""
    frames = []
    with av.open(str(path)) as clip:
        for number, picture in enumerate(clip.decode(video=0)):
            if number in NUMBERS:
                rgb = picture.to_ndarray(format="rgb24")
                height = min(rgb.shape[0], rgb.shape[1] * size[0] // size[1])
                width = min(rgb.shape[1], rgb.shape[0] * size[1] // size[0])
                top, left = (rgb.shape[0] - height) // 2, (rgb.shape[1] - width) // 2
                middle = np.ascontiguousarray(rgb[top : top + height, left : left + width])
                scaled = av.VideoFrame.from_ndarray(middle, format="rgb24").reformat(
                    width=size[1], height=size[0], format="rgb24", interpolation="AREA"
                )
                frames.append(torch.from_numpy(scaled.to_ndarray()))
    return torch.stack(frames)


def ours(coder: str) -> Callable[[torch.Tensor, int], Point]:
    encode, decode = CODERS[coder]

    def point(frames: torch.Tensor, quality: int) -> Point:
        data = encode(frames, quality)
        return len(data), psnr(decode(data, tuple(frames.shape[1:3]), len(frames)), frames)

    return point


def still(kind: str, **options) -> Callable[[torch.Tensor, int], Point]:
    def point(frames: torch.Tensor, quality: int) -> Point:
        size, shown = 0, []
        for frame in frames:
            out = io.BytesIO()
            Image.fromarray(frame.numpy()).save(out, kind, quality=quality, **options)
            size += out.tell()
            shown.append(torch.from_numpy(np.array(Image.open(out).convert("RGB"))))
        return size, psnr(torch.stack(shown), frames)

    return point


def x264(frames: torch.Tensor, crf: int) -> Point:
    height, width = frames.shape[1:3]
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.gop_size = 1, 1
    encoder.options = {"preset": "veryslow", "crf": str(crf), "tune": "psnr"}
    packets = []
    for number, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU709", interpolation="BICUBIC"
        )
        picture.pts = number
        packets += encoder.encode(picture)
    packets += encoder.encode(None)
    decoder = av.CodecContext.create("h264", "r")
    shown = [p for packet in [*packets, None] for p in decoder.decode(packet)]
    rgb = [p.reformat(format="rgb24", src_colorspace="ITU709", interpolation="BICUBIC").to_ndarray() for p in shown]
    return sum(p.size for p in packets), psnr(torch.from_numpy(np.stack(rgb)), frames)


def psnr(decoded: torch.Tensor, frames: torch.Tensor) -> float:
    return float(frame_psnr(decoded, frames).mean())


def gaussian(frames: torch.Tensor, decibels: float) -> Point:
    """Each frame as a file of its own."""
    size, values = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for number, frame in enumerate(track(frames, "gaussian", transient=True)):
            path, out = Path(folder, f"{number}.mkv"), Path(folder, f"{number}.vkv")
            with av.open(str(path), "w") as movie:
                stream = movie.add_stream("libx264rgb", rate=25)
                stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "rgb24"
                stream.options = {"qp": "0"}
                for packet in [
                    *stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")),
                    *stream.encode(),
                ]:
                    movie.mux(packet)
            for _ in protocol.model("gaussian").fit(protocol.Source(path), out, protocol.Goal(psnr=decibels), gop=None):
                pass
            with open_vkv(out) as video:
                size += sum(len(video.reader.read(gop)) for gop in range(len(video.reader.index.gops)))
                values.append(psnr(video[0][None], frame[None]))
    return size, sum(values) / len(values)


CANDIDATES: dict[str, tuple[Callable[[torch.Tensor, int], Point], range]] = {
    "av1": (ours("av1"), range(20, 64, 6)),
    "transform": (ours("transform"), range(20, 64, 6)),
    "x264 intra": (x264, range(14, 50, 5)),
    "WebP": (still("WEBP", method=6), range(0, 100, 12)),
    "JPEG": (still("JPEG", optimize=True, progressive=True), range(4, 97, 12)),
}


def bytes_at(points: list[Point], decibels: float) -> float | None:
    """Interpolated; None outside of what was measured."""
    by_psnr = sorted((db, math.log(size)) for size, db in points)
    values, logs = zip(*by_psnr)
    return math.exp(np.interp(decibels, values, logs)) if values[0] <= decibels <= values[-1] else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("--size", default="160x320", help="height x width to scale to")
    parser.add_argument("--at", type=float, nargs="+", default=[26, 28, 30, 32, 34], help="decibels")
    parser.add_argument("--gaussian", type=float, help="also Gaussian files of this PSNR")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    frames = key_frames(options.clip, tuple(map(int, options.size.split("x"))))
    points, seconds = {}, {}
    for name, (measure, qualities) in CANDIDATES.items():
        start = time.perf_counter()
        points[name] = [measure(frames, q) for q in track(qualities, name, transient=True)]
        seconds[name] = (time.perf_counter() - start) / len(qualities)
    print(f"{len(frames)} frames of {options.size}, bytes at a mean RGB PSNR")
    print(f"{'':12s}" + "".join(f"{db:9.0f} dB" for db in options.at) + "   seconds to code and decode")
    for name, measured in points.items():
        at = [bytes_at(measured, db) for db in options.at]
        cells = "".join(f"{'-' if size is None else round(size):>12}" for size in at)
        print(f"{name:12s}{cells}{seconds[name]:10.2f}")
    if options.gaussian is not None:
        size, reached = gaussian(frames, options.gaussian)
        points["gaussian"] = [(size, reached)]
        beside = ", ".join(f"{n} {round(b)}" for n in CANDIDATES if (b := bytes_at(points[n], reached)))
        print(f"gaussian: {size} bytes at {reached:.2f} dB; there {beside}")
    if options.json:
        options.json.write_text(
            json.dumps({"size": options.size, "points": points, "seconds": seconds}, indent=1) + "\n"
        )


if __name__ == "__main__":
    sys.exit(main())
