"""k-means, its seeding and a VQ training step as users call them, against what they would call instead.

python -m benchmarks.clustering [kmeans seeding vq] [--points 100000] [--threads N] [--seconds S] [--json FILE]

Calls take turns in one process (`benchmarks.timing.interleave`); the table shows medians. Before the clock starts, each
result is compared with ours: a peer that clusters worse, or a step that gives other codes, is named and not timed.
- kmeans: three Lloyd iterations from given centres, k = 1000, D = 256. Ours and scikit-learn's end with the labels and
  the inertia of the final centres; faiss and `usual` (distances by a matrix product, index_add) have only centres.
- seeding: greedy k-means++, k = 500, D = 64, and the sum of squared distances that the seeds leave, in units of ours.
- vq: forward, backward and codebook update of a moving-average codebook of 8192 codes, D = 64.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

# Appended: an installed vidkernels wins over the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.timing import interleave
from vidkernels.functional.clustering.kmeans import kmeans
from vidkernels.functional.clustering.nearest import nearest_code
from vidkernels.functional.clustering.seeding import kmeans_plus_plus
from vidkernels.nn.quantize.vector_quantizer import VectorQuantizer

_ITERATIONS = 3


def _points(length: int, dim: int) -> torch.Tensor:
    """Features with some structure: noise around one of 3000 places."""
    g = torch.Generator().manual_seed(0)
    places = 2 * torch.randn(3000, dim, generator=g)
    return places[torch.randint(3000, (length,), generator=g)] + torch.randn(length, dim, generator=g)


def _cost(x: torch.Tensor, centres: torch.Tensor) -> float:
    return float(nearest_code(x, centres)[1].double().sum())


def lloyd(points: int) -> tuple[dict[str, Callable], Callable]:
    """Calls that return centres, and what they are judged by."""
    import faiss
    from sklearn.cluster import KMeans

    x = _points(points, 256)
    start = x[:: max(1, points // 1000)][:1000].clone()
    k = len(start)

    def scikit_learn():
        model = KMeans(k, init=start.numpy(), n_init=1, max_iter=_ITERATIONS, tol=0, algorithm="lloyd")
        return torch.from_numpy(model.fit(x.numpy()).cluster_centers_)

    def faiss_cpu():
        model = faiss.Kmeans(
            x.shape[1], k, niter=_ITERATIONS, max_points_per_centroid=points, min_points_per_centroid=1
        )
        model.train(x.numpy(), init_centroids=start.numpy())
        return torch.from_numpy(model.centroids)

    def usual():
        centres = start
        for _ in range(_ITERATIONS):
            index = torch.addmm(centres.square().sum(1), x, centres.t(), alpha=-2).argmin(1)
            sums = torch.zeros_like(centres).index_add_(0, index, x)
            counts = torch.bincount(index, minlength=k)[:, None]
            centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        return centres

    def ours():
        return kmeans(x, k, iterations=_ITERATIONS, init=start).centres

    return {"ours": ours, "scikit-learn": scikit_learn, "faiss": faiss_cpu, "usual": usual}, lambda c: _cost(x, c)


def seeding(points: int) -> tuple[dict[str, Callable], Callable]:
    from sklearn.cluster import kmeans_plusplus

    x = _points(points, 64)

    def ours():
        return x[kmeans_plus_plus(x, 500, generator=torch.Generator().manual_seed(0))]

    def scikit_learn():
        return torch.from_numpy(kmeans_plusplus(x.numpy(), 500, random_state=0)[0])

    return {"ours": ours, "scikit-learn": scikit_learn}, lambda c: _cost(x, c)


def vq(points: int) -> tuple[dict[str, Callable], Callable]:
    from vector_quantize_pytorch import VectorQuantize

    x = _points(points, 64).requires_grad_()
    codes = x.detach()[torch.randint(points, (8192,), generator=torch.Generator().manual_seed(1))]
    settings = {"decay": 0.8, "eps": 1e-5}
    mine = VectorQuantizer(64, 8192, commitment=1.0, dead_below=2, **settings)
    theirs = VectorQuantize(64, 8192, threshold_ema_dead_code=2, rotation_trick=False, **settings)
    books = {"ours": (mine, mine.codebook, mine.ema_sums),
             "vector_quantize_pytorch": (theirs, theirs._codebook.embed, theirs._codebook.embed_avg)}  # fmt: skip
    for _, codebook, sums in books.values():
        codebook.copy_(codes.expand_as(codebook))
        sums.copy_(codes.expand_as(codebook))

    def step(module):
        quantized, _, loss = module(x)
        torch.autograd.grad(quantized.sum() + loss.sum(), x)
        return quantized.detach()

    def step_of(module):
        return lambda: step(module)

    steps = {label: step_of(module) for label, (module, _, _) in books.items()}
    return steps, lambda q: float((x.detach() - q).square().double().sum())


JOBS = {"kmeans": lloyd, "seeding": seeding, "vq": vq}


def run(name: str, points: int, seconds: float) -> dict:
    calls, judge = JOBS[name](points)
    judged = {label: judge(call()) for label, call in calls.items()}
    quality = {label: value / judged["ours"] for label, value in judged.items()}
    timed = {label: call for label, call in calls.items() if name == "seeding" or abs(quality[label] - 1) < 0.01}
    return {
        "points": points,
        "cost / ours": quality,
        "refused": sorted(set(calls) - set(timed)),
        "variants": interleave(timed, seconds=seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", choices=[[], *JOBS], default=[])
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {"threads": options.threads}
    for name in options.jobs or JOBS:
        results[name] = found = run(name, options.points, options.seconds)
        ours = found["variants"]["ours"]["median_ms"]
        for label, times in found["variants"].items():
            print(
                f"{name:8} {label:24} {times['median_ms']:10.1f} ms  [{times['q1_ms']:.1f}, {times['q3_ms']:.1f}]"
                f"  {times['median_ms'] / ours:6.2f} x ours  cost {found['cost / ours'][label]:.4f}",
                flush=True,
            )
        for label in found["refused"]:
            print(f"{name:8} {label:24} refused: cost {found['cost / ours'][label]:.4f} of ours")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
