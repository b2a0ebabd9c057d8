"""The training step of a small video network, ours against plain PyTorch: time and loss.

python -m benchmarks.nerv_step [--channels 32,16,16,8,8] [--frames 2] [--rounds 200] [--precision bf16] [--json FILE]

The network has a learned latent [channels, 2, 4] per frame, four blocks (3 x 3 convolution, pixel shuffle, GELU) with
strides 5, 4, 2, 2 and a 3 x 3 head: 160 x 320 frames. A step is forward, mean squared error against uint8 frames,
backward and Adam, of float32 parameters under autocast (bf16) or not (fp32). The peers hold the same numbers in torch's
usual order and in channels_last, and use torch's fused Adam; variants take turns in one process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from vidkernels.functional.nerv.upsample_conv import upsample_conv_loss
from vidkernels.nn.nerv.block import NeRVBlock
from vidkernels.nn.nerv.optim import MultiTensorAdam

# Either "python -m benchmarks.nerv_step" or run by path.
try:
    from benchmarks.timing import turns
except ImportError:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from benchmarks.timing import turns

STRIDES = (5, 4, 2, 2)
LATENT = (2, 4)
VARIANTS = ("vidkernels", "torch", "torch channels_last")


class Plain(nn.Module):
    """The same network of torch's own layers."""

    def __init__(self, channels: list[int]):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o * s * s, 3, padding=1) for i, o, s in zip(channels, channels[1:], STRIDES)
        )
        self.head = nn.Conv2d(channels[-1], 3, 3, padding=1)
        nn.init.constant_(self.head.bias, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, stride in zip(self.convs, STRIDES):
            x = F.gelu(F.pixel_shuffle(conv(x), stride))
        return self.head(x)


def make_step(variant: str, precision: str, channels: list[int], frames: int) -> tuple[Callable[[], float], int]:
    """A function that makes one training step and returns the loss; and how many parameters the network has."""
    torch.manual_seed(0)
    plain = Plain(channels)
    target = torch.randint(0, 256, (frames, 160, 320, 3), dtype=torch.uint8)
    latent = nn.Parameter(torch.randn(frames, channels[0], *LATENT))
    if variant == "vidkernels":
        blocks = [NeRVBlock(i, o, s) for i, o, s in zip(channels, channels[1:], STRIDES)]
        model = nn.Sequential(*blocks, NeRVBlock(channels[-1], 3, 1, activation="none"))
        for block, conv in zip(model, [*plain.convs, plain.head]):
            block.conv.load_state_dict(conv.state_dict())

        hidden, head = model[:-1], model[-1].conv

        def loss() -> torch.Tensor:
            return upsample_conv_loss(hidden(latent), head.weight, head.bias, target)
    else:
        model = plain
        wanted = target.permute(0, 3, 1, 2)
        if variant.endswith("channels_last"):
            model = plain.to(memory_format=torch.channels_last)
            latent.data = latent.data.contiguous(memory_format=torch.channels_last)
        else:
            wanted = wanted.contiguous()

        def loss() -> torch.Tensor:
            return F.mse_loss(model(latent).float(), wanted.float() / 255)

    parameters = [*model.parameters(), latent]
    optimizer = (
        MultiTensorAdam(parameters, lr=1e-3)
        if variant == "vidkernels"
        else torch.optim.Adam(parameters, lr=1e-3, fused=True)
    )

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return value.item()

    return step, sum(p.numel() for p in model.parameters())


def time_step(precision: str, channels: list[int], frames: int, rounds: int) -> dict:
    """{variant: {median_ms, min_ms, first_loss, last_loss}}, the variants taking turns."""
    steps = {v: make_step(v, precision, channels, frames)[0] for v in VARIANTS}
    losses = {v: [step()] for v, step in steps.items()}  # also warms up
    times: dict[str, list[float]] = {v: [] for v in VARIANTS}
    for _, v in turns(VARIANTS, rounds):
        start = time.perf_counter()
        losses[v].append(steps[v]())
        times[v].append((time.perf_counter() - start) * 1e3)
    return {
        v: {
            "median_ms": statistics.median(times[v]),
            "min_ms": min(times[v]),
            "first_loss": losses[v][0],
            "last_loss": losses[v][-1],
        }
        for v in VARIANTS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", default="32,16,16,8,8", help="of the latent and after every block")
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="only this one")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    channels = [int(c) for c in options.channels.split(",")]
    parameters = make_step("torch", "fp32", channels, 1)[1]
    result = {"threads": torch.get_num_threads(), "torch": torch.__version__, "channels": channels,
              "frames": options.frames, "parameters": parameters}  # fmt: skip
    print(f"{parameters / 1e6:.2f} M parameters, {options.frames} frames of 160 x 320, {result['threads']} threads")
    for precision in (options.precision,) if options.precision else ("bf16", "fp32"):
        rows = result[precision] = time_step(precision, channels, options.frames, options.rounds)
        for v, row in rows.items():
            print(
                f"{precision}  {v:20s} {row['median_ms']:7.2f} ms (best {row['min_ms']:.2f})  "
                f"{row['median_ms'] / rows['vidkernels']['median_ms']:.2f}x  "
                f"loss {row['first_loss']:.5f} -> {row['last_loss']:.5f}"
            )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
