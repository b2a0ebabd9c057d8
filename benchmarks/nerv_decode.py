"""Decoding of HNeRV, from a frame's embedding to uint8 [H, W, 3]: integers, our float ops, and plain PyTorch.

python -m benchmarks.nerv_decode [--parameters 1500000 350000] [--size 640x1280] [--seconds 20] [--json FILE]

One frame at a time, as a player asks for them; the variants hold the same weights, untrained, and take turns in one
process. `psnr` is that of the frame against the float32 one: what rounding does to it, not how good the pictures are.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vidkernels.metrics import frame_psnr
from vidkernels.models.nerv.hnerv import HNeRV
from vidkernels.nn.nerv.integer import quantize_decoder

# Either "python -m benchmarks.nerv_decode" or run by path.
try:
    from benchmarks.timing import interleave
except ImportError:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from benchmarks.timing import interleave

FRAMES = 132  # of the clip that the size rule is asked for
CALIBRATION = 4  # frames
FIRST = "torch fp32"


def picture(y: Tensor) -> Tensor:
    """[H, W, 3] uint8 of what a head gave."""
    return (127.5 * torch.tanh(y.float()) + 127.5).round().to(torch.uint8)[0].permute(1, 2, 0).contiguous()


def plain(model: HNeRV, dtype: torch.dtype, layout: torch.memory_format) -> Callable[[Tensor], Tensor]:
    """The decoder as it is usually written."""
    stages = [(b.conv.weight, b.conv.bias, b.scale) for b in (model.stem, *model.blocks)]
    stages = [(w.detach().to(dtype, memory_format=layout), b.detach().to(dtype), s) for w, b, s in stages]
    head = model.head.weight.detach().to(dtype, memory_format=layout), model.head.bias.detach().to(dtype)

    def draw(embedding: Tensor) -> Tensor:
        x = embedding.to(dtype, memory_format=layout)
        for weight, bias, scale in stages:
            x = F.gelu(F.pixel_shuffle(F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2), scale))
        return picture(F.conv2d(x, *head, padding=1))

    return draw


def ours(model: HNeRV, bf16: bool) -> Callable[[Tensor], Tensor]:
    def draw(embedding: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return picture(model.head(model.features(embedding)))

    return draw


def variants(parameters: int, size: tuple[int, int]) -> tuple[dict[str, Callable[[], Tensor]], int]:
    """label -> call that draws one frame; parameters of decoder and embeddings."""
    model = HNeRV.from_size(parameters, *size, FRAMES, generator=torch.Generator().manual_seed(0)).eval()
    shape = CALIBRATION, model.embedding, *model.grid
    embeddings = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    integers = quantize_decoder([model.stem, *model.blocks], model.head, embeddings, size=size)
    first, coded = embeddings[:1], integers.encode(embeddings[:1])
    last, bf16 = torch.channels_last, torch.bfloat16
    drawers = {
        FIRST: plain(model, torch.float32, torch.contiguous_format),
        "torch fp32 channels_last": plain(model, torch.float32, last),
        "torch bf16": plain(model, bf16, torch.contiguous_format),
        "torch bf16 channels_last": plain(model, bf16, last),
        "vidkernels fp32": ours(model, False),
        "vidkernels bf16": ours(model, True),
    }
    calls = {label: lambda d=draw: d(first) for label, draw in drawers.items()}
    return {**calls, "vidkernels int8, exact": lambda: integers(coded)[0]}, model.stored_parameters()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, nargs="+", default=[1_500_000, 350_000])
    parser.add_argument("--size", default="640x1280", help="height x width")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each size of network")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    size = tuple(map(int, options.size.split("x")))
    result = {"threads": torch.get_num_threads(), "torch": torch.__version__, "size": size, "networks": []}
    for parameters in options.parameters:
        calls, stored = variants(parameters, size)
        frames = {label: draw() for label, draw in calls.items()}
        rows = interleave(calls, seconds=options.seconds)
        for label, row in rows.items():
            psnr = frame_psnr(frames[label], frames[FIRST]).item()
            row["psnr"] = psnr if math.isfinite(psnr) else None
        result["networks"].append({"parameters": stored, "rows": rows})
        print(f"{stored / 1e6:.2f} M parameters, {size[0]} x {size[1]}, {result['threads']} threads")
        exact = rows["vidkernels int8, exact"]["median_ms"]
        for label, row in rows.items():
            near = "" if row["psnr"] is None else f"{row['psnr']:6.1f} dB to float32"
            print(f"  {label:26s} {row['median_ms']:8.2f} ms  (quartiles {row['q1_ms']:.2f} .. {row['q3_ms']:.2f})"
                  f"  {row['median_ms'] / exact:6.2f}x  {near}")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
