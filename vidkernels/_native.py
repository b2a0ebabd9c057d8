"""The only loader of the compiled modules; remembers why one is missing."""

from __future__ import annotations

import importlib

import torch  # noqa: F401  (first: its OpenMP pool must be the one that the kernels join)

missing: dict[str, str] = {}


def _load(name: str):
    try:
        return importlib.import_module(f"vidkernels.{name}")
    except ImportError as error:
        missing[name] = f"vidkernels.{name} cannot be imported: {error}"
        return None


_C = _load("_C")
_emulators: dict[str, object] = {}


def module(name: str):
    """The module `_C`, `_simt` or `_simt_trace`, or None. The emulators load at first use."""
    if name == "_C":
        return _C
    if name not in _emulators:
        _emulators[name] = _load(name)
    return _emulators[name]


def why_missing(name: str) -> str:
    if name.startswith("_simt"):
        return f"{missing.get(name, '')} (the emulator is built for development: make build)".strip()
    return missing.get(name, "")
