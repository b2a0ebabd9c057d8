"""What this machine can do: memory bandwidth and GEMM rate, measured in the same run as the ops."""

from __future__ import annotations

import torch

from benchmarks.timing import interleave
from vidkernels._pool import empty

_BYTES = 128 << 20


def measure(device: str = "cpu", seconds: float = 4.0) -> dict[str, float]:
    """Bandwidths in GB/s and GEMM rates in GFLOP/s, each the best round of several.

    Buffers are 128 MiB, with huge pages where the system grants them: neither page faults nor small caches count.
    """
    synchronize = torch.cuda.synchronize if device == "cuda" else None
    n = _BYTES // 4
    a, b, c = (empty((n,), torch.float32, torch.device(device)).fill_(1.0) for _ in range(3))
    moved = {
        "read": (lambda: a.sum(), _BYTES),
        "read_dot": (lambda: torch.dot(a, b), 2 * _BYTES),
        "write": (lambda: c.zero_(), _BYTES),
        "copy": (lambda: c.copy_(a), 2 * _BYTES),
        "triad": (lambda: torch.add(a, b, alpha=0.5, out=c), 3 * _BYTES),
    }
    timed = interleave({k: f for k, (f, _) in moved.items()}, seconds=seconds / 2, synchronize=synchronize)
    rate = {k: moved[k][1] / timed[k]["min_ms"] / 1e6 for k in moved}

    m = 1536 if device == "cpu" else 8192
    gemms = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        x, y = (torch.randn(m, m, device=device).to(dtype) for _ in range(2))
        out = torch.empty(m, m, device=device, dtype=dtype)
        gemms[name] = lambda x=x, y=y, out=out: torch.mm(x, y, out=out)
    timed = interleave(gemms, seconds=seconds / 2, synchronize=synchronize)
    return {
        "read_gb_s": max(rate["read"], rate["read_dot"]),
        "write_gb_s": rate["write"],
        "copy_gb_s": max(rate["copy"], rate["triad"]),
        "gemm_float32_gflop_s": 2 * m**3 / timed["float32"]["min_ms"] / 1e6,
        "gemm_bfloat16_gflop_s": 2 * m**3 / timed["bfloat16"]["min_ms"] / 1e6,
    }


def bound(ceilings: dict[str, float], dtype: str, moved: tuple[int, int] | None, flops: float | None) -> dict:
    """The least time for so many bytes read and written and so many FLOPs: {bound_ms, bound_by}, or None in both.

    Memory is given the shorter of two models: reads and writes one after the other, or together at the rate of a copy.
    """
    times = {}
    if moved is not None:
        read, written = moved
        apart = read / ceilings["read_gb_s"] + written / ceilings["write_gb_s"]
        times["memory"] = min(apart, (read + written) / ceilings["copy_gb_s"]) / 1e6
    if flops is not None and dtype in ("float32", "bfloat16", "float16"):  # integers: no ceiling
        kind = "bfloat16" if dtype in ("bfloat16", "float16") else "float32"
        times["arithmetic"] = flops / ceilings[f"gemm_{kind}_gflop_s"] / 1e6
    if not times:
        return {"bound_ms": None, "bound_by": None}
    by = max(times, key=times.get)
    return {"bound_ms": times[by], "bound_by": by}
