"""The commands around `.vkv` files: fit, resume, decode, verify, compare, and the description that `info` prints.

Only signatures live at import time; torch, PyAV and the models are imported by the command that needs them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from . import units

_SHEET_FRAMES = 4


def _unit(parse: Callable[[str], Any], name: str) -> dict[str, Any]:
    """Options of a typer parameter that `parse` reads; its ValueError becomes the message."""

    def parser(value: object) -> Any:
        try:
            return parse(value) if isinstance(value, str) else value
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return {"parser": parser, "metavar": name}


_CODERS = {"transform": "our own coder"}  # of key frames; others: AV1
_OUT = "the .vkv file to write"
Start = Annotated[Any, typer.Option(help="leave out what is before this time", **_unit(units.position, "TIME"))]
End = Annotated[Any, typer.Option(help="leave out what is from this time on", **_unit(units.position, "TIME"))]
Resize = Annotated[
    Any, typer.Option(help="scale frames to WxH, or to a short side", **_unit(units.picture, "WxH|SIDE"))
]
ModelName = Annotated[
    str, typer.Option("--model", help="the representation to fit: gaussian, latent, flow, nerv, hnerv, pfnr")
]
Sheet = Annotated[bool, typer.Option(help="write a contact sheet beside the file")]


def register(app: typer.Typer) -> None:
    for command in (fit, append, resume, decode, verify, compare):
        app.command()(command)


def fit(
    source: Annotated[Path, typer.Argument(help="the video to compress")],
    out: Annotated[Path, typer.Argument(help=_OUT)],
    model: ModelName = "gaussian",
    budget: Annotated[Any, typer.Option(help="stop after so much fitting", **_unit(units.duration, "TIME"))] = None,
    size: Annotated[Any, typer.Option(help="stay under so many bytes", **_unit(units.size, "BYTES"))] = None,
    psnr: Annotated[Any, typer.Option(help="stop at this mean PSNR", **_unit(units.decibels, "DB"))] = None,
    start: Start = None,
    end: End = None,
    resize: Resize = None,
    gop: Annotated[int | None, typer.Option(min=1, help="frames per group of pictures")] = None,
    mask: Annotated[Path | None, typer.Option(help="a picture or video: what is white there need not be kept")] = None,
    floats: Annotated[bool, typer.Option("--float", help="draw with floats, not bit for bit everywhere")] = False,
    planes: Annotated[int, typer.Option(min=1, max=4, help="code weights in so many parts, coarse ones first")] = 1,
    keys: Annotated[str | None, typer.Option(help="coder of flow's key frames: av1 (usual), transform")] = None,
    sheet: Sheet = True,
) -> None:
    """Fit a model to a video and write it as a .vkv file. Without --budget, --size or --psnr: 60 seconds.

    A network (every model but gaussian) takes --budget with --size or --psnr: it is made for these, and the time is how
    long it is fitted.
    """
    from vidkernels.codec import protocol

    goal = _goal(budget, size, psnr)
    with _told():
        if out.suffix != ".vkv":
            raise ValueError(f"{out} does not end with .vkv")
        _no_state(out)
        cut = protocol.Source(source, start, end, resize)
        special = (
            ({} if mask is None else {"mask": mask})
            | ({"exact": False} if floats else {})
            | ({} if planes == 1 else {"planes": planes})
            | ({} if keys is None else {"keys": keys})
        )
        if special and model == "gaussian":
            raise ValueError(
                "the Gaussian model has no mask, planes, keys or float profile; networks have: --model latent"
            )
        _run(protocol.model(model).fit(cut, out, goal, gop=gop, **special), out, sheet)


def append(
    path: Annotated[Path, typer.Argument(help="the .vkv file that is to grow")],
    source: Annotated[Path, typer.Argument(help="the video to add behind what it holds")],
    budget: Annotated[Any, typer.Option(help="stop after so much fitting", **_unit(units.duration, "TIME"))] = None,
    size: Annotated[Any, typer.Option(help="grow by no more bytes than this", **_unit(units.size, "BYTES"))] = None,
    psnr: Annotated[Any, typer.Option(help="stop at this mean PSNR", **_unit(units.decibels, "DB"))] = None,
    start: Start = None,
    end: End = None,
    gop: Annotated[int | None, typer.Option(min=1, help="frames per group of pictures")] = None,
    mask: Annotated[Path | None, typer.Option(help="a picture or video: what is white there need not be kept")] = None,
    sheet: Sheet = True,
) -> None:
    """Add more video to a .vkv file, which stays what it was until all is done. Without a goal: 60 seconds."""
    from vidkernels.codec import protocol

    goal = _goal(budget, size, psnr)
    with _told():
        _no_state(path)
        more = {} if mask is None else {"mask": mask}
        model = protocol.appending(path)
        if more and "mask" not in signature(model.append).parameters:
            raise ValueError("the file's model has no mask")
        _run(model.append(path, protocol.Source(source, start, end), goal, gop=gop, **more), path, sheet)


def resume(
    path: Annotated[Path, typer.Argument(help="the .vkv file that was to be written, or its .state file")],
    sheet: Sheet = True,
) -> None:
    """Go on with a fit or an append that was interrupted; the result is the one that it would have had."""
    from vidkernels.codec import protocol

    with _told():
        state = protocol.state_path(path)
        if not state.exists():
            raise ValueError(f"there is no unfinished fit: {state} does not exist")
        _run(protocol.model(protocol.state_model(state)).resume(state), state.with_suffix(""), sheet)


def decode(
    path: Annotated[Path, typer.Argument(help="a .vkv file")],
    out: Annotated[str, typer.Argument(help=".mp4, .mkv, .mov, .y4m, a folder for PNG files, or - for stdout")],
    frames: Annotated[Any, typer.Option(help="only these, e.g. 0:48", **_unit(units.frame_range, "A:B"))] = None,
    fps: Annotated[float | None, typer.Option(min=1e-3, max=1e5, help="draw at this rate instead")] = None,
    size: Resize = None,
    raw: Annotated[bool, typer.Option("--raw", help="to stdout: bare rgb24 instead of y4m")] = False,
    planes: Annotated[int | None, typer.Option(min=1, help="draw from the first so many of --planes only")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="the file is cut short: draw what is there")] = False,
) -> None:
    """Decode a .vkv file into a movie, y4m, pictures or a pipe."""
    from vidkernels.codec import export, protocol

    with _told():
        if raw and out != "-":
            raise ValueError("--raw is for stdout (-)")
        more = ({} if planes is None else {"planes": planes}) | ({"partial": True} if partial else {})
        video = protocol.open_video(path, **more)
        chosen = range(*(slice(None) if frames is None else frames).indices(len(video)))
        if len(chosen) == 0:
            raise ValueError(f"no frame in that range: the file has {len(video)}")
        pictures = _scaled(_drawn(video, chosen, fps), video.size, size)
        rate = Fraction(fps or video.fps).limit_denominator(100_000)
        if out == "-":
            with _pipe() as pipe:
                export.write_raw(pipe, pictures) if raw else export.write_y4m(pipe, pictures, rate)
            return
        whole = len(chosen) == len(video) and Path(out).suffix.lower() in export.MOVIES
        count = export.export(out, pictures, rate, audio=video.audio if whole else None)
        Console(stderr=True).print(f"{out}: {count} frames", highlight=False)


def verify(path: Annotated[Path, typer.Argument(help="a .vkv file")]) -> None:
    """Check every byte of a .vkv file, and every decoded frame against its hash."""
    from vidkernels.codec import protocol

    with _told():
        report = protocol.open_video(path).verify()
        wrong = list(report.mismatches)
        print(
            f"{path}: {report.bytes} bytes, {report.chunks} chunks, {report.gops} GOPs, {report.frames} frames: whole"
        )
        print(f"profile: {report.profile}; {report.checked_frames} of {report.hashed_frames} frame hashes checked")
        if wrong:
            shown = ", ".join(map(str, wrong[:20])) + (", ..." if len(wrong) > 20 else "")
            print(f"{len(wrong)} frames differ from those of the encoder: {shown}")
        if not report.ok:
            raise typer.Exit(1)


def compare(
    source: Annotated[Path, typer.Argument(help="the video that the files were made from")],
    files: Annotated[list[Path] | None, typer.Argument(help=".vkv files; .json points of an earlier run")] = None,
    peers: Annotated[
        Any, typer.Option(help="encoders, or none; e.g. x264,svtav1-p8", **_unit(units.words, "NAMES"))
    ] = "x264,x265,svtav1",
    crf: Annotated[Any, typer.Option(help="qualities for every peer", **_unit(units.numbers, "N,N,..."))] = None,
    out: Annotated[Path | None, typer.Option(help="draw the curves into this picture")] = None,
    points: Annotated[Path | None, typer.Option(help="keep the points in this .json file")] = None,
    start: Start = None,
    end: End = None,
    resize: Resize = None,
    threads: Annotated[int, typer.Option(min=0, help="of encoders and decoders; 0: theirs to choose")] = 0,
) -> None:
    """Rate and distortion of .vkv files beside x264, x265 and SVT-AV1: same frames, same metric, bytes on disk."""
    from vidkernels.codec import rate_distortion as rd
    from vidkernels.codec.compare import compare as measure
    from vidkernels.codec.protocol import Source, read_source

    with _told():
        clip, rate, _ = read_source(Source(source, start, end, resize))
        console = Console(stderr=True)
        with console.status("reading") as status:
            found = measure(clip, rate, files or [], peers, crfs=crf, threads=threads, progress=status.update)
        if points is not None:
            rd.save_points(points, found)
        screen = Console()
        screen.print(rd.rd_table(found))
        if len(rd.curves(found)) > 1:
            screen.print(rd.bd_table(found))
        if out is not None:
            frames, height, width = clip.shape[:3]
            rd.plot_rd(found, out, f"{source.name}, {frames} frames, {width}x{height}")


def describe(path: Path, as_json: bool) -> None:
    """What `vidkernels info FILE` prints: the header and the sizes of the file, nothing decoded."""
    from vidkernels.codec import ContainerReader

    with _told(), ContainerReader(path) as file:
        header = file.header
        height, width, frames = header.height, header.width, file.frames
        duration = float(file.duration)
        facts = {
            "file": str(path),
            "bytes": file.end,
            "audio bytes": file.audio_bytes,
            f"key frame bytes ({_CODERS.get(header.config.get('coder'), 'AV1')})": len(file.chunk("KEYS") or b""),
            "model": header.model,
            "width": width,
            "height": height,
            "rotation": header.rotation,
            "frames": frames,
            "gops": len(file.gops),
            "seconds": duration,
            "fps": frames / duration if duration else None,
            "bpp": 8 * (file.end - file.audio_bytes) / (frames * height * width) if frames else None,
            "kbit/s": file.end * 8e-3 / duration if duration else None,
            "exact": header.exact,
            "config": dict(header.config),
            "metadata": dict(header.metadata),
        }
        if as_json:
            print(json.dumps(facts, indent=2))
            return
        from rich.table import Table

        table = Table(show_header=False, box=None)
        for key, value in facts.items():
            table.add_row(key, f"{value:.6g}" if isinstance(value, float) else str(value))
        Console().print(table)


@contextmanager
def _told() -> Iterator[None]:
    """Expected failures become a message and exit code 1; a bug keeps its traceback."""
    try:
        yield
    except (ValueError, RuntimeError, OSError, ImportError, IndexError) as error:
        if isinstance(error, typer.Exit | typer.Abort):  # both are RuntimeErrors
            raise
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None


def _goal(budget: float | None, size: int | None, psnr: float | None):
    from vidkernels.codec.protocol import Goal

    if size is not None and psnr is not None:
        raise typer.BadParameter("give one of --size and --psnr.")
    return Goal(60.0 if budget is size is psnr is None else budget, size, psnr)


def _no_state(out: Path) -> None:
    from vidkernels.codec.protocol import state_path

    state = state_path(out)
    if state.exists():
        raise ValueError(f"{state} holds an unfinished fit; go on with `vidkernels resume {out}`, or delete it")


def _run(work, out: Path, sheet: bool) -> None:
    """Drive a fit to its end, with a bar; Ctrl-C leaves the state and says how to go on."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
    )
    last = None
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("fitting", total=None, facts="")
            while True:
                try:
                    last = next(work)
                except StopIteration as end:
                    source = end.value
                    break
                bar.update(task, completed=last.done, total=last.total, facts=_facts(last))
    except KeyboardInterrupt:
        work.close()
        Console(stderr=True).print(f"stopped; go on with: vidkernels resume {out}", highlight=False)
        raise typer.Exit(130) from None
    bits = f"{out}: {out.stat().st_size} bytes"
    if last is not None:
        bits += f", {_facts(last)}"
    Console(stderr=True).print(bits, highlight=False)
    if sheet:
        _contact_sheet(source, out)


def _facts(at) -> str:
    quality = "" if at.psnr is None else f"PSNR {at.psnr:.2f} dB, "
    return f"{quality}{at.bytes / 1000:.0f} kB, frame {at.frame}, {at.elapsed:.0f} s"


def _contact_sheet(source, out: Path) -> None:
    import torch

    from vidkernels.codec import pictures, protocol

    video, numbers = protocol.open_video(out), []

    def spread(count):
        chosen = pictures.spread(_SHEET_FRAMES, count)
        numbers.extend(len(video) - count + i for i in chosen)  # what was appended is the end of the file
        return chosen

    frames, _, _ = protocol.read_source(source, spread)
    decoded = torch.stack([video[i] for i in numbers])
    path = out.with_suffix(".sheet.png")
    title = f"{out.name}, {out.stat().st_size} bytes, {len(video)} frames"
    pictures.contact_sheet(path, frames, decoded, [f"frame {i}" for i in numbers], title=title)
    Console(stderr=True).print(f"{path}: source, decoded, error", highlight=False)


def _drawn(video, chosen: range, fps: float | None) -> Iterator:
    if fps is None:
        for i in chosen:
            yield video[i]
        return
    rate = float(video.fps)
    # Half a new frame short of the end, so that rounding adds none.
    for k in range(max(round(len(chosen) / rate * fps), 1)):
        yield video.at(chosen[0] / rate + k / fps)


def _scaled(frames: Iterator, stored: tuple[int, int], size: tuple[int, int] | int | None) -> Iterator:
    import torch
    import torch.nn.functional as F

    if isinstance(size, int):
        factor = size / min(stored)
        size = (max(round(stored[0] * factor), 1), max(round(stored[1] * factor), 1))
    for frame in frames:
        if size is None or tuple(size) == tuple(stored):
            yield frame
            continue
        planes = frame.permute(2, 0, 1)[None].float()
        planes = F.interpolate(planes, size=tuple(size), mode="bicubic", antialias=True, align_corners=False)
        yield planes[0].permute(1, 2, 0).round_().clamp_(0, 255).to(torch.uint8).contiguous()


@contextmanager
def _pipe() -> Iterator:
    """Binary stdout. A reader that has seen enough (`| head`) is no error."""
    pipe = sys.stdout.buffer
    try:
        yield pipe
        pipe.flush()
    except BrokenPipeError:
        # Python flushes stdout again at exit; it must find an open file.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
