"""What this installation is and which backend each op would run on."""

from __future__ import annotations

import importlib.util
import platform

import torch

from vidkernels import _native, _op
from vidkernels._version import __version__


def info() -> dict:
    """Version, build, instruction set, threads, CUDA and Triton state, and the backends of every op.

    Returns:
        dict with keys version, python, torch, native (build facts or the reason why `_C` is missing), threads, cuda,
        triton, emulator, ops. `ops[name]` maps each backend to None if it would run here, else to the reason why not.
    Example:
        >>> info()["ops"]["gather_tokens"]["reference"] is None
        True
    """
    native = _native._C
    count, reason = native.device_count() if native else (0, "no compiled module")
    return {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "native": native.build_info() if native else _native.why_missing("_C"),
        "threads": torch.get_num_threads(),
        "cuda": f"{count} device(s)" if count else f"none: {reason}",
        "triton": "installed" if importlib.util.find_spec("triton") else "not installed",
        "emulator": "built" if _native.module("_simt") else "not built (development only)",
        "ops": {name: op.explain() for name, op in sorted(_op.registry.items())},
    }
