"""A step of an optimiser over all parameters of a small decoder: MultiTensorAdam and Muon against torch's.

python benchmarks/optimizer_steps.py [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import nn

from benchmarks.timing import interleave
from vidkernels.nn.nerv.optim import MultiTensorAdam, Muon

_CONVOLUTIONS = {
    "six convolutions, 0.6M": [(1200, 32, 3, 3), (320, 48, 3, 3), (160, 80, 3, 3), (96, 40, 3, 3), (12, 24, 3, 3)],
    "forty small layers": [(24, 24, 3, 3)] * 40,
}


def parameters(shapes: list[tuple[int, ...]], biases: bool) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    shapes = [s for shape in shapes for s in ((shape, shape[:1]) if biases else (shape,))]
    params = [nn.Parameter(torch.randn(s, generator=g) * 0.05) for s in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=g) * 1e-3
    return params


class _Flat:
    """torch.optim.Muon takes matrices only: the weights of convolutions as views, as its users do."""

    def __init__(self, params: list[nn.Parameter]):
        flat = [nn.Parameter(p.detach().flatten(1)) for p in params]
        for p, source in zip(flat, params):
            p.grad = source.grad.flatten(1)
        self.step = torch.optim.Muon(flat, lr=1e-3).step


def variants(shapes: list[tuple[int, ...]]) -> dict[str, dict]:
    adam = {
        "ours": lambda p: MultiTensorAdam(p),
        "torch, for-loop": lambda p: torch.optim.Adam(p, foreach=False),
        "torch, foreach": lambda p: torch.optim.Adam(p, foreach=True),
        "torch, fused": lambda p: torch.optim.Adam(p, fused=True),
    }
    muon = {"ours": lambda p: Muon(p)}
    if hasattr(torch.optim, "Muon"):
        muon["torch"] = _Flat
    return {
        "Adam": {label: make(parameters(shapes, biases=True)).step for label, make in adam.items()},
        "Muon": {label: make(parameters(shapes, biases=False)).step for label, make in muon.items()},
    }


def measure(seconds: float = 2.0) -> list[dict]:
    rows = []
    for name, shapes in _CONVOLUTIONS.items():
        for optimizer, steps in variants(shapes).items():
            timed = interleave(steps, seconds=seconds)
            rows += [{"parameters": name, "optimizer": optimizer, "label": label, **timed[label]} for label in steps]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="for each table")
    parser.add_argument("--json", help="write the rows there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measure(options.seconds)
    for row in rows:
        print(f"{row['parameters']:24} {row['optimizer']:5} {row['label']:16} {row['median_ms']:8.3f} ms")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"threads": options.threads, "torch": torch.__version__, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
