"""What token merging gains end to end: a ViT over 16 frames of 224 x 224 (1568 tokens) that ends with a share of them.

python -m benchmarks.merged_encoder [--preset small base] [--model ours videomae] [--compile] [--json FILE]

Forward only, without gradients; the variants take turns in one process, medians with quartiles. `flops` is the share
of the plain encoder's multiplications that is left, matching included: 1 / flops is what a perfect machine would gain.
`videomae` is transformers' VideoMAE with the patch of vidkernels.integrations.transformers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

from vidkernels.models.video_vit import VideoViTConfig, VideoViTEncoder
from vidkernels.nn.tokens.merging import TokenMerging

# Either "python -m benchmarks.merged_encoder" or run by path.
try:
    from benchmarks.peers.tome_encoder import UsualToMe
    from benchmarks.timing import interleave
except ImportError:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from benchmarks.peers.tome_encoder import UsualToMe
    from benchmarks.timing import interleave

LENGTH = 1568
SCHEDULES = ("constant", "decreasing")


def lengths(share: float, schedule: str, depth: int, length: int = LENGTH) -> list[int]:
    """Tokens that come into each block, and those that leave the last one."""
    merging = TokenMerging(share, depth, schedule=schedule)
    x = torch.randn(1, length, 4)
    counts = [length]
    for layer in range(depth):
        x = merging(x, x, layer)
        counts.append(x.shape[1])
    return counts


def flops(counts: list[int], config: VideoViTConfig) -> float:
    """Multiplications of the encoder, 2 each; the matching compares half of the tokens with the other half."""
    width, hidden, total = config.width, int(config.width * config.mlp_ratio), 0.0
    for come, go in pairwise(counts):
        total += 2 * come * 4 * width**2 + 4 * come**2 * width + 4 * go * width * hidden
        if go < come:
            total += 2 * (come / 2) ** 2 * width / config.heads
    return total


def variants(config: VideoViTConfig, share: float) -> tuple[dict[str, Callable], dict[str, list[int]]]:
    """label -> module with the same weights; label -> its token counts."""
    torch.manual_seed(0)
    plain = VideoViTEncoder(config).eval()
    models, counts = {"plain": plain}, {"plain": [LENGTH] * (config.depth + 1)}
    for schedule in SCHEDULES:
        model = VideoViTEncoder(config, TokenMerging(share, config.depth, schedule=schedule)).eval()
        model.load_state_dict(plain.state_dict())
        models[schedule], counts[schedule] = model, lengths(share, schedule, config.depth)
        pairs = [come - go for come, go in pairwise(counts[schedule])]
        for label, fused in (("usual ToMe", False), ("usual ToMe, SDPA", True)):
            models[f"{schedule}, {label}"] = UsualToMe(plain, pairs, fused)
            counts[f"{schedule}, {label}"] = counts[schedule]
    return models, counts


def videomae(config: VideoViTConfig, share: float) -> tuple[dict[str, Callable], dict[str, list[int]]]:
    """The same for transformers' VideoMAE, fed with embedded tokens as ours is."""
    from transformers import VideoMAEConfig, VideoMAEModel

    from vidkernels.integrations.transformers import apply_token_merging

    torch.manual_seed(0)
    sizes = VideoMAEConfig(
        hidden_size=config.width, num_hidden_layers=config.depth, num_attention_heads=config.heads,
        intermediate_size=int(config.width * config.mlp_ratio),
    )  # fmt: skip
    models, counts = {}, {}
    for label in ("plain", *SCHEDULES):
        model = VideoMAEModel(sizes).eval()
        counts[label] = [LENGTH] * (config.depth + 1)
        if label != "plain":
            apply_token_merging(model, share, schedule=label)
            counts[label] = lengths(share, label, config.depth)
        models[label] = model.encoder
    return models, counts


def measure(
    config: VideoViTConfig, model: str, share: float, batch: int, seconds: float, compiled: bool, only: list[str]
) -> dict:
    models, counts = (videomae if model == "videomae" else variants)(config, share)
    models = {label: m for label, m in models.items() if not only or label in ("plain", *only)}
    if compiled:
        models = {label: torch.compile(m, fullgraph=True) for label, m in models.items()}
    x = torch.randn(batch, LENGTH, config.width)
    with torch.no_grad():
        times = interleave({label: (lambda m=m: m(x)) for label, m in models.items()}, seconds=seconds)
    whole = flops(counts["plain"], config)
    return {
        label: row
        | {
            "speedup": times["plain"]["median_ms"] / row["median_ms"],
            "flops": flops(counts[label], config) / whole,
            "tokens": counts[label],
        }
        for label, row in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", nargs="+", default=["small", "base"], choices=("small", "base"))
    parser.add_argument("--model", nargs="+", default=["ours"], choices=("ours", "videomae"))
    parser.add_argument("--share", type=float, default=1 / 3, help="of the tokens left at the end")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20, help="of timing, per preset")
    parser.add_argument("--compile", action="store_true", help="torch.compile(fullgraph=True) everything")
    parser.add_argument("--only", nargs="+", default=[], help="labels to run beside plain; compiling all takes long")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    result = {"threads": torch.get_num_threads(), "torch": torch.__version__, "batch": options.batch,
              "share": options.share, "compiled": options.compile}  # fmt: skip
    for preset in options.preset:
        for model in options.model:
            rows = measure(getattr(VideoViTConfig, preset)(), model, options.share, options.batch, options.seconds,
                           options.compile, options.only)  # fmt: skip
            result[f"{model} {preset}"] = rows
            for label, row in rows.items():
                print(
                    f"{model:8s} {preset:5s}  {label:28s} {row['median_ms']:8.1f} ms "
                    f"[{row['q1_ms']:.0f}, {row['q3_ms']:.0f}]  {row['speedup']:.2f}x  flops {row['flops']:.3f} "
                    f"(1 / {1 / row['flops']:.2f})  {row['tokens'][-1]} tokens left"
                )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
