"""The calls of run.py under pytest-benchmark: `pytest benchmarks/test_speed.py --benchmark-group-by=group`.

One variant at a time, so the ratios are rougher than those of run.py, which interleaves; what this adds is
pytest-benchmark's storage, comparison (`--benchmark-compare`) and profiling.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.run import DTYPES
from benchmarks.variants import PASSES, Job, load_peers, peers_directory
from vidkernels.testing import all_cases

LABELS = ("ours", "usual", "careful")
ROWS = [
    (op, case, dtype, direction, label)
    for op, case in all_cases()
    if case.kind == "real" and not op.name.endswith("_backward")
    for dtype in DTYPES
    if dtype in case.dtypes
    for direction in PASSES[: 2 if case.grad else 1]
    for label in LABELS
    if label == "ours" or label in getattr(load_peers(peers_directory(op)), "PEERS", {}).get(op.name, {})
]


def _id(row):
    op, case, dtype, direction, label = row
    return f"{op.name}-{case.name}-{str(dtype)[6:]}-{direction.replace(' ', '')}-{label}"


@pytest.mark.parametrize("row", ROWS, ids=_id)
def test_speed(row, benchmark):
    op, case, dtype, direction, label = row
    job = Job(op, case, dtype, direction, load_peers(peers_directory(op)))
    job.prepare()
    benchmark.group = f"{op.name} {case.name} {str(dtype)[6:]} {direction}"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark(job.variants[label])
