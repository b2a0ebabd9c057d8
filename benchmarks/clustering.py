"""Tokens and clusters as users call them, against what they would call instead: the README's table.

python benchmarks/clustering.py [kmeans seeding code sinkhorn vq dpc sigma sigma40] [--points N] [--threads N]
    [--seconds S] [--json FILE]

Calls take turns in one process (`benchmarks.timing.interleave`); the table shows medians, and ratios of medians and of
minima. Before the clock starts, each result is compared with ours by its cost: a peer that clusters worse is named and
not timed; that call is the figure of what takes longer than eight seconds.
- kmeans: three Lloyd iterations from given centres, k = 1000, D = 256. Ours and scikit-learn's end with the labels and
  the inertia of the final centres; faiss and `usual` (distances by a matrix product, index_add) have only centres.
- seeding: greedy k-means++, k = 200, D = 64, and the sum of squared distances that the seeds leave, in units of ours.
- code: nearest_code, 8192 codes, D = 64: screened, and in float32 alone; the same answer.
- sinkhorn: 4096 x 3000, 10 iterations; the cost is that of the transport. geomloss goes another way to the same plan.
- vq: forward, backward and codebook update of a moving-average codebook of 8192 codes, D = 64.
- dpc: DPC-kNN of 8 x 1568 tokens of 768 numbers into 392 clusters; the cost is that of the centres.
- sigma: SIGMA's loss and its gradients, 3000 prototypes of 256 numbers, batch 8 (11264 rows); the cost is the loss.
  Kept: the scores are stored; otherwise they are multiplied again in every iteration. bf16: inputs of that type.
- sigma40: batch 40, each once and not compared: the usual code alone takes several gigabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Appended: an installed vidkernels wins over the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.peers import density, sigma
from benchmarks.peers import sinkhorn as transport
from benchmarks.timing import VERY_LONG_CALL, interleave
from vidkernels.functional.clustering.kmeans import kmeans
from vidkernels.functional.clustering.nearest import nearest_code
from vidkernels.functional.clustering.prototypes import sigma_loss
from vidkernels.functional.clustering.seeding import kmeans_plus_plus
from vidkernels.functional.clustering.sinkhorn import sinkhorn
from vidkernels.functional.tokens.density import dpc_knn_cluster
from vidkernels.nn.quantize.vector_quantizer import VectorQuantizer
from vidkernels.ops.nearest.op import nearest

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
        return x[kmeans_plus_plus(x, 200, generator=torch.Generator().manual_seed(0))]

    def scikit_learn():
        return torch.from_numpy(kmeans_plusplus(x.numpy(), 200, random_state=0)[0])

    return {"ours": ours, "scikit-learn": scikit_learn}, lambda c: _cost(x, c)


def code(points: int) -> tuple[dict[str, Callable], Callable]:
    import faiss
    from sklearn.metrics import pairwise_distances_argmin

    x = _points(points, 64)
    codes = x[torch.randint(points, (8192,), generator=torch.Generator().manual_seed(1))]
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(64)
    index.add(codes.numpy())
    calls = {
        "ours": lambda: nearest_code(x, codes)[0],
        "ours, float32": lambda: nearest(x[None], codes[None], 1, "l2", "all", False)[0][0, :, 0],
        "faiss": lambda: torch.from_numpy(index.search(x.numpy(), 1)[1][:, 0]),
        "scikit-learn": lambda: torch.from_numpy(pairwise_distances_argmin(x.numpy(), codes.numpy())),
    }
    return calls, lambda found: float((x - codes[found]).square().double().sum())


def balanced(_: int) -> tuple[dict[str, Callable], Callable]:
    g = torch.Generator().manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(n, 256, generator=g), dim=1) for n in (4096, 3000))
    scores = x @ y.t()
    given = scores[None], 0.05, 10, None, None
    calls = {"ours": lambda: sinkhorn(scores, 0.05, 10), "ours, bf16": lambda: sinkhorn(narrow, 0.05, 10)}
    narrow = scores.bfloat16()
    for label, make in transport.PEERS["sinkhorn"].items():
        if call := make(*given):
            calls[label] = lambda call=call: call()[0][0]
    calls["geomloss"] = transport.geomloss_plan(scores, 0.05, 10)
    return {k: v for k, v in calls.items() if v}, lambda plan: float((plan * scores).sum(dtype=torch.float64))


def peaks(_: int) -> tuple[dict[str, Callable], Callable]:
    x = torch.randn(8, 1568, 768, generator=torch.Generator().manual_seed(0))

    def cost(cluster):
        index = cluster.long()[:, :, None].expand_as(x)
        means = torch.zeros(8, 392, 768).scatter_reduce_(1, index, x, "mean", include_self=False)
        return float((x - means.gather(1, index)).square().double().sum())

    return {"ours": lambda: dpc_knn_cluster(x, 392)[0].source, "usual": lambda: density.usual(x, 392)}, cost


def predictions(batch: int) -> dict[str, Callable]:
    """Calls that give the loss, after its gradients."""
    g = torch.Generator().manual_seed(0)
    rows = [torch.randn(batch * 1408, 256, generator=g) for _ in range(2)]
    wide = [t.requires_grad_() for t in (*rows, torch.randn(3000, 256, generator=g))]
    narrow = [t.detach().bfloat16().requires_grad_() for t in wide]

    def call(make, leaves):
        def run():
            loss = make(*leaves)
            torch.autograd.grad(loss, leaves)
            return loss.detach()

        return run

    kept = lambda *leaves: sigma_loss(*leaves, store_scores=True)  # noqa: E731
    return {
        "ours": call(sigma_loss, wide),
        "ours, kept": call(kept, wide),
        "ours, bf16": call(sigma_loss, narrow),
        "ours, bf16, kept": call(kept, narrow),
        "usual": call(sigma.usual, wide),
    }


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


JOBS = {
    "kmeans": lloyd,
    "seeding": seeding,
    "code": code,
    "sinkhorn": balanced,
    "vq": vq,
    "dpc": peaks,
    "sigma": lambda _: (predictions(8), float),
    "sigma40": lambda _: (predictions(40), None),
}
_CLOSE = {"seeding": 0.1, "dpc": 0.05}  # random seeds, and other ties and centres


def once(call: Callable) -> tuple[object, dict]:
    """The result of one call, and its time as `interleave` would give it."""
    begin = time.perf_counter()
    result = call()
    ms = 1e3 * (time.perf_counter() - begin)
    return result, {"median_ms": ms, "q1_ms": ms, "q3_ms": ms, "min_ms": ms, "rounds": 1, "inner": 1}


def run(name: str, points: int, seconds: float) -> dict:
    calls, judge = JOBS[name](points)
    if judge is None:
        return {"refused": [], "variants": {label: once(call)[1] for label, call in calls.items()}}
    judged, first = {}, {}
    for label, call in calls.items():
        result, first[label] = once(call)
        judged[label] = judge(result)
    quality = {label: value / judged["ours"] for label, value in judged.items()}
    timed = {label: call for label, call in calls.items() if abs(quality[label] - 1) < _CLOSE.get(name, 0.01)}
    slow = {label: first[label] for label in timed if first[label]["min_ms"] > 1e3 * VERY_LONG_CALL}
    return {
        "cost / ours": quality,
        "refused": sorted(set(calls) - set(timed)),
        "variants": interleave({label: timed[label] for label in timed if label not in slow}, seconds=seconds) | slow,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", choices=[[], *JOBS], default=[])
    parser.add_argument("--points", type=int, default=100_000, help="of kmeans, code and vq; seeding takes a quarter")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=2.0, help="for the rounds of a job; slow calls take longer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {"threads": options.threads, "points": options.points}
    for name in options.jobs or JOBS:
        points = options.points // 4 if name == "seeding" else options.points
        results[name] = found = run(name, points, options.seconds)
        ours, costs = found["variants"]["ours"], found.get("cost / ours", {})
        for label, times in found["variants"].items():
            median, least, rounds = times["median_ms"], times["min_ms"], times["rounds"]
            cost = f"  cost {costs[label]:.4f}" if costs else ""
            print(
                f"{name:8} {label:24} {median:9.1f} ms, least {least:9.1f}, {rounds:2} rounds"
                f"  {median / ours['median_ms']:6.2f} x ours, least {least / ours['min_ms']:6.2f}{cost}",
                flush=True,
            )
        for label in found["refused"]:
            print(f"{name:8} {label:24} refused: cost {costs[label]:.4f} of ours")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
