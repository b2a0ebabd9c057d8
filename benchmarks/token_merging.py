<<<<<<< HEAD
"""What token merging gains end to end: a ViT over 16 frames of 224 x 224 (1568 tokens) that ends with a share of them.

python -m benchmarks.token_merging [--preset small base] [--model ours videomae] [--compile] [--json FILE]

Forward only, without gradients; the variants take turns in one process, medians with quartiles. `flops` is the share
of the plain encoder's multiplications that is left, matching included: 1 / flops is what a perfect machine would gain.
`videomae` is transformers' VideoMAE with the patch of vidkernels.integrations.transformers.
=======
"""Token merging as a model calls it, once a layer: match, merge, unmerge, against what people run.

python -m benchmarks.token_merging [--tokens 1568] [--dim 768] [--r 65] [--seconds 4] [--threads N] [--json FILE] ...

`usual` is ToMe's code: a matrix of all similarities, argsort, gathers and scatter_reduce of tokens times sizes.
`tomesd` is the package of that name (cells of 2 x 2, no sizes, so that it averages without weights). Variants take
turns in one process; medians in ms.
>>>>>>> patches
"""

from __future__ import annotations

import argparse
import json
<<<<<<< HEAD
import sys
from collections.abc import Callable
from itertools import pairwise
=======
import math
import sys
>>>>>>> patches
from pathlib import Path

import torch

<<<<<<< HEAD
from vidkernels.models.video_vit import VideoViTConfig, VideoViTEncoder
from vidkernels.nn.tokens.merging import TokenMerging

# Either "python -m benchmarks.token_merging" or run by path.
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
    config: VideoViTConfig, model: str, share: float, batch: int, seconds: float, compiled: bool, peers: bool
) -> dict:
    models, counts = (videomae if model == "videomae" else variants)(config, share)
    if not peers:
        models = {label: m for label, m in models.items() if "usual" not in label}
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
    parser.add_argument("--model", nargs="+", default=["ours", "videomae"], choices=("ours", "videomae"))
    parser.add_argument("--share", type=float, default=1 / 3, help="of the tokens left at the end")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20, help="of timing, per preset")
    parser.add_argument("--compile", action="store_true", help="torch.compile(fullgraph=True) everything")
    parser.add_argument("--no-peers", action="store_true", help="leave the usual ToMe out")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    result = {"threads": torch.get_num_threads(), "torch": torch.__version__, "batch": options.batch,
              "share": options.share, "compiled": options.compile}  # fmt: skip
    for preset in options.preset:
        for model in options.model:
            rows = measure(getattr(VideoViTConfig, preset)(), model, options.share, options.batch, options.seconds,
                           options.compile, not options.no_peers)  # fmt: skip
            result[f"{model} {preset}"] = rows
            for label, row in rows.items():
                print(
                    f"{model:8s} {preset:5s}  {label:28s} {row['median_ms']:8.1f} ms "
                    f"[{row['q1_ms']:.0f}, {row['q3_ms']:.0f}]  {row['speedup']:.2f}x  flops {row['flops']:.3f} "
                    f"(1 / {1 / row['flops']:.2f})  {row['tokens'][-1]} tokens left"
                )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
=======
# Either "python -m benchmarks.token_merging" or run by path.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import interleave
from vidkernels.functional.tokens.merging import bipartite_soft_matching, merge_tokens, unmerge_tokens


class UsualPlan:
    """ToMe as it is written everywhere: the plan is three index tensors."""

    def __init__(self, metric: torch.Tensor, r: int):
        metric = metric / metric.norm(dim=-1, keepdim=True)
        value, index = (metric[:, ::2] @ metric[:, 1::2].transpose(-1, -2)).max(dim=-1)
        edges = value.argsort(dim=-1, descending=True)[..., None]
        self.stay, self.join, self.length = edges[:, r:], edges[:, :r], metric.shape[1]
        self.target = index[..., None].gather(1, self.join)

    def merge_sum(self, x: torch.Tensor) -> torch.Tensor:
        even, odd, dim = x[:, ::2], x[:, 1::2], x.shape[2]
        kept = even.gather(1, self.stay.expand(-1, -1, dim))
        joined = even.gather(1, self.join.expand(-1, -1, dim))
        return torch.cat([kept, odd.scatter_reduce(1, self.target.expand(-1, -1, dim), joined, reduce="sum")], 1)

    def merge(self, x: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = self.merge_sum(size)
        return self.merge_sum(x * size) / total, total

    def unmerge(self, x: torch.Tensor) -> torch.Tensor:
        stays, dim = self.stay.shape[1], x.shape[2]
        odd = x[:, stays:]
        out = x.new_zeros(x.shape[0], self.length, dim)
        out[:, 1::2] = odd
        out.scatter_(1, (2 * self.stay).expand(-1, -1, dim), x[:, :stays])
        joined = odd.gather(1, self.target.expand(-1, -1, dim))
        return out.scatter_(1, (2 * self.join).expand(-1, -1, dim), joined)


def variants(batch: int, tokens: int, dim: int, r: int) -> dict[str, dict]:
    """{step: {variant: call}}"""
    from tomesd.merge import bipartite_soft_matching_random2d

    g = torch.Generator().manual_seed(0)
    metric, x = torch.randn(batch, tokens, 64, generator=g), torch.randn(batch, tokens, dim, generator=g)
    size = torch.randint(1, 4, (batch, tokens), generator=g).float()
    height = math.gcd(tokens, 2 ** math.ceil(math.log2(math.sqrt(tokens))))
    grid = (1, height, tokens // height)

    def tomesd():
        return bipartite_soft_matching_random2d(metric, grid[2], grid[1], 2, 2, r, no_rand=True)

    plan, usual = bipartite_soft_matching(metric, r), UsualPlan(metric, r)
    merged = merge_tokens(x, plan, size)[0]
    (tomesd_merge, tomesd_unmerge), column = tomesd(), size[..., None]
    return {
        "match": {
            "ours": lambda: bipartite_soft_matching(metric, r),
            "usual": lambda: UsualPlan(metric, r),
        },
        "match, cells": {
            "ours": lambda: bipartite_soft_matching(metric, r, pairing="cell", grid=grid),
            "tomesd": tomesd,
        },
        "match, neighbours": {
            "ours": lambda: bipartite_soft_matching(metric, r, pairing="spatial", grid=grid),
        },
        "merge": {
            "ours": lambda: merge_tokens(x, plan, size),
            "usual": lambda: usual.merge(x, column),
            "tomesd": lambda: tomesd_merge(x),
        },
        "match + merge": {
            "ours": lambda: merge_tokens(x, bipartite_soft_matching(metric, r), size),
            "usual": lambda: UsualPlan(metric, r).merge(x, column),
            "tomesd": lambda: tomesd()[0](x),
        },
        "unmerge": {
            "ours": lambda: unmerge_tokens(merged, plan),
            "usual": lambda: usual.unmerge(merged),
            "tomesd": lambda: tomesd_unmerge(merged),
        },
    }


def check(batch: int, tokens: int, r: int) -> None:
    """The variants do the same job: equal tokens once they are put back."""
    metric = torch.randn(batch, tokens, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    size = torch.ones(batch, tokens, dtype=torch.float64)
    plan, usual = bipartite_soft_matching(metric, r), UsualPlan(metric, r)
    ours = unmerge_tokens(merge_tokens(metric, plan, size)[0], plan)
    torch.testing.assert_close(ours, usual.unmerge(usual.merge(metric, size[..., None])[0]))


def measure(batch: int = 8, tokens: int = 1568, dim: int = 768, r: int = 65, seconds: float = 4.0) -> dict:
    """{step: {variant: statistics}}"""
    check(batch, tokens, r)
    steps = variants(batch, tokens, dim, r)
    return {step: interleave(functions, seconds=seconds / len(steps)) for step, functions in steps.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("batch", 8), ("tokens", 1568), ("dim", 768), ("r", 65), ("threads", torch.get_num_threads())):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(options.batch, options.tokens, options.dim, options.r, options.seconds)
    for step, timed in result.items():
        ours = timed["ours"]["median_ms"]
        line = "  ".join(f"{label} {t['median_ms']:.2f} ({t['median_ms'] / ours:.1f}x)" for label, t in timed.items())
        print(f"{step:18} {line}")
    if options.json:
        sizes = {name: getattr(options, name) for name in ("batch", "tokens", "dim", "r", "threads")}
        options.json.write_text(json.dumps({"sizes": sizes, "steps": result}, indent=1))
>>>>>>> patches


if __name__ == "__main__":
    main()
