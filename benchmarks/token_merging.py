"""Token merging as a model calls it, once a layer: match, merge, unmerge, against what people run.

python -m benchmarks.token_merging [--tokens 1568] [--dim 768] [--r 65] [--seconds 4] [--threads N] [--json FILE] ...

`usual` is ToMe's code: a matrix of all similarities, argsort, gathers and scatter_reduce of tokens times sizes.
`tomesd` is the package of that name (cells of 2 x 2, no sizes, so that it averages without weights). Variants take
turns in one process; medians in ms.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch

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


def check(tokens: int, r: int) -> None:
    """The variants do the same job: equal tokens once they are put back."""
    metric = torch.randn(1, tokens, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    size = torch.ones(1, tokens, dtype=torch.float64)
    plan, usual = bipartite_soft_matching(metric, r), UsualPlan(metric, r)
    ours = unmerge_tokens(merge_tokens(metric, plan, size)[0], plan)
    torch.testing.assert_close(ours, usual.unmerge(usual.merge(metric, size[..., None])[0]))


def measure(batch: int = 8, tokens: int = 1568, dim: int = 768, r: int = 65, seconds: float = 4.0) -> dict:
    """{step: {variant: statistics}}"""
    check(tokens, r)
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


if __name__ == "__main__":
    main()
