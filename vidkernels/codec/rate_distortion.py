"""Points and curves of rate and distortion: kept as JSON, shown as tables and as a plot."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from vidkernels import _check
from vidkernels.metrics import bd_psnr, bd_rate

_FORMAT = 1


@dataclass(frozen=True)
class RDPoint:
    """One encoding of one clip: what it costs and how close it comes.

    Convention: PSNR is over R, G and B of uint8 frames together, peak 255. Rates count every byte on disk, container
    and side information included; `stream_bytes` is the same without the container, where it is known.

    Args:     name: of the codec with its preset: points of one name make a curve.
              bytes: of the file.
              bpp: bits per pixel, 8 bytes / (frames height width).
              psnr: mean over frames of their PSNR, decibels.
              psnr_pixels: PSNR of the mean squared error of all pixels, decibels.
              frames, height, width: of the clip.
              settings: what tells this point from the others of its curve, e.g. {"crf": 30}.
              stream_bytes: without the container, or None.
              encode_s: wall seconds of encoding (fitting), or None.
              decode_fps: frames per second of decoding, or None.
    """

    name: str
    bytes: int
    bpp: float
    psnr: float
    psnr_pixels: float
    frames: int
    height: int
    width: int
    settings: dict[str, int | float | str] = field(default_factory=dict)
    stream_bytes: int | None = None
    encode_s: float | None = None
    decode_fps: float | None = None

    @classmethod
    def of(cls, name: str, frame_psnr: torch.Tensor, size: tuple[int, int], bytes: int, **rest) -> RDPoint:
        """A point from the PSNR of every frame [T], the frames' (height, width) and the bytes of the file."""
        mse = torch.pow(10.0, -frame_psnr.double() / 10).mean().item()
        height, width = size
        return cls(
            name,
            bytes,
            8 * bytes / (len(frame_psnr) * height * width),
            frame_psnr.double().mean().item(),
            math.inf if mse == 0 else -10 * math.log10(mse),
            len(frame_psnr),
            height,
            width,
            **rest,
        )


def save_points(path: str | os.PathLike, points: Iterable[RDPoint]) -> None:
    """Write points as JSON, in one step. An infinite PSNR becomes the text "inf", which JSON has no number for."""
    rows = [{k: "inf" if v == math.inf else v for k, v in asdict(point).items()} for point in points]
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps({"format": _FORMAT, "points": rows}, indent=1, allow_nan=False) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_points(path: str | os.PathLike) -> list[RDPoint]:
    """Read what `save_points` wrote.

    Raises:   ValueError: not such a file, another format, a field missing, unknown or of the wrong kind.
    """
    try:
        document = json.loads(Path(path).read_text())
    except ValueError as error:
        _check.fail("load_points", f"not a JSON file: {error}.", path=str(path))
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        _check.fail("load_points", f"not a list of rate-distortion points of format {_FORMAT}.", path=str(path))
    try:
        return [_point(row) for row in document["points"]]
    except (TypeError, KeyError, ValueError) as error:
        _check.fail("load_points", f"a point is malformed: {error}.", path=str(path))


_KINDS = {
    "name": str,
    "bytes": int,
    "bpp": (int, float),
    "psnr": (int, float),
    "psnr_pixels": (int, float),
    "frames": int,
    "height": int,
    "width": int,
    "settings": dict,
    "stream_bytes": (int, type(None)),
    "encode_s": (int, float, type(None)),
    "decode_fps": (int, float, type(None)),
}


def _point(row: dict) -> RDPoint:
    point = RDPoint(**{k: math.inf if v == "inf" and k.startswith("psnr") else v for k, v in row.items()})
    for name, kinds in _KINDS.items():
        value = getattr(point, name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}")
    return point


def curves(points: Iterable[RDPoint]) -> dict[str, list[RDPoint]]:
    """Points by name, each curve by rising size; names in the order of their first point."""
    found: dict[str, list[RDPoint]] = {}
    for point in points:
        found.setdefault(point.name, []).append(point)
    return {name: sorted(curve, key=lambda p: (p.bytes, p.psnr)) for name, curve in found.items()}


def rd_table(points: Iterable[RDPoint]) -> Table:
    """One row per point, narrow enough for 80 columns. kB are whole files, "stream" is without the container."""
    caption = "PSNR: R, G, B; mean over frames (pooled: of all pixels). dec fps of peers: to YUV only."
    table = Table(title="rate and distortion", caption=caption, box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("codec", no_wrap=True)
    table.add_column("settings", overflow="fold", min_width=9)
    for heading in ("kB", "stream", "bpp", "PSNR", "pooled", "enc s", "dec fps"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, curve in curves(points).items():
        for p in curve:
            table.add_row(
                name,
                " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in p.settings.items()),
                f"{p.bytes / 1000:.1f}",
                "" if p.stream_bytes is None else f"{p.stream_bytes / 1000:.1f}",
                f"{p.bpp:.4f}",
                f"{p.psnr:.2f}",
                f"{p.psnr_pixels:.2f}",
                "" if p.encode_s is None else f"{p.encode_s:.1f}",
                "" if p.decode_fps is None else f"{p.decode_fps:.0f}",
            )
        table.add_section()
    return table


def bd_rows(points: Iterable[RDPoint]) -> list[tuple[str, str, float | None, float | None, str]]:
    """(test, anchor, BD-rate in %, BD-PSNR in dB, why not) of every ordered pair of curves.

    A point that another point of its curve beats (fewer bytes, no worse) is left out, as PCHIP asks for rising curves.
    """
    usable = {name: _front(curve) for name, curve in curves(points).items()}
    rows = []
    for anchor, anchor_curve in usable.items():
        for test, test_curve in usable.items():
            if test == anchor:
                continue
            values, reason = [], ""
            for delta in (bd_rate, bd_psnr):
                try:
                    values.append(delta(anchor_curve, test_curve))
                except ValueError as error:
                    values.append(None)
                    reason = reason or str(error).splitlines()[0].split(": ", 1)[1]
            rows.append((test, anchor, *values, reason))
    return rows


def bd_table(points: Iterable[RDPoint]) -> Table:
    """BD-rate (bytes at equal PSNR) and BD-PSNR of every codec against every other."""
    table = Table(title="Bjontegaard deltas (PCHIP over file bytes and mean PSNR)")
    table.add_column("codec")
    table.add_column("against")
    for heading in ("BD-rate", "BD-PSNR"):
        table.add_column(heading, justify="right")
    table.add_column("no figure, because")
    for test, anchor, rate, quality, reason in bd_rows(points):
        table.add_row(
            test,
            anchor,
            "" if rate is None else f"{rate:+.1f} %",
            "" if quality is None else f"{quality:+.2f} dB",
            reason,
        )
    return table


def plot_rd(points: Iterable[RDPoint], path: str | os.PathLike, title: str = "") -> None:
    """Draw PSNR over bits per pixel (logarithmic) into a picture file; one line per codec.

    Raises:   ValueError: there is no point with a finite PSNR.
              ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: no windows, no global state
        from matplotlib.ticker import LogLocator, NullFormatter
    except ImportError:
        _check.fail("plot_rd", "drawing needs matplotlib.", "pip install 'vidkernels[plot]'", error=ImportError)
    drawn = curves(p for p in points if math.isfinite(p.psnr))
    if not drawn:
        _check.fail("plot_rd", "there is no point with a finite PSNR.", path=str(path))
    figure = Figure(figsize=(8, 5.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (name, curve), marker in zip(drawn.items(), "osD^vP*X<>hd" * len(drawn)):
        axes.plot([p.bpp for p in curve], [p.psnr for p in curve], marker=marker, markersize=5, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bits per pixel (whole file)")
    axes.set_ylabel("PSNR over RGB, mean over frames (dB)")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    if title:
        axes.set_title(title)
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        figure.savefig(temporary)
        os.replace(temporary, path)
    except ValueError as error:
        _check.fail("plot_rd", f"matplotlib refused: {error}.", path=str(path))
    finally:
        temporary.unlink(missing_ok=True)


def _front(curve: list[RDPoint]) -> list[tuple[float, float]]:
    front: list[tuple[float, float]] = []
    for p in curve:
        if math.isfinite(p.psnr) and (not front or p.psnr > front[-1][1]) and not (front and p.bytes == front[-1][0]):
            front.append((p.bytes, p.psnr))
    return front
