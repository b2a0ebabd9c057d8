"""Which machine a figure belongs to."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

from vidkernels import _native
from vidkernels._version import __version__

RESULTS = Path(__file__).parent / "results"
_FLAGS = ("sse4_2", "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
          "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve")  # fmt: skip


def describe(threads: int, device: str = "cpu") -> dict:
    """CPU (and GPU) model, cores, threads, instruction sets, versions."""
    facts = _cpu_facts()
    build = _native._C.build_info() if _native._C else {"missing": _native.why_missing("_C")}
    return {
        "cpu": facts["model"],
        "cores": os.cpu_count(),
        "threads": threads,
        "flags": [f for f in _FLAGS if f in facts["flags"]],
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vidkernels": __version__,
        "build": build,
    }


def slug(machine: dict) -> str:
    """A file name: model, cores, the widest instruction set, e.g. intel-xeon-processor-2c-amx."""
    if machine["gpu"]:
        return _plain(machine["gpu"])
    flags = machine["flags"]
    widest = next((w for f, w in (("amx_bf16", "amx"), ("avx512f", "avx512"), ("avx2", "avx2")) if f in flags), "base")
    return f"{_plain(machine['cpu'])}-{machine['cores']}c-{widest}"


def results_file(machine: dict) -> Path:
    return RESULTS / machine["vidkernels"] / f"{slug(machine)}.json"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)|@.*", "", name.lower())).strip("-")


def _cpu_facts() -> dict:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {"model": platform.processor() or platform.machine(), "flags": set()}
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return {
        "model": model.group(1).strip() if model else platform.machine(),
        "flags": set(flags.group(1).split()) if flags else set(),
    }
