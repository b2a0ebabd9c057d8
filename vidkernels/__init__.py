"""Kernels and drop-in modules for video tokens and neural video representations."""

from __future__ import annotations

import importlib

import torch  # noqa: F401

from vidkernels import functional, nn
from vidkernels._backend import backend
from vidkernels._info import info
from vidkernels._version import __version__

__all__ = [
    "__version__",
    "backend",
    "codec",
    "data",
    "functional",
    "info",
    "methods",
    "metrics",
    "models",
    "nn",
    "train",
]

_LAZY = ("codec", "data", "methods", "metrics", "models", "train")


def __getattr__(name: str):
    if name in _LAZY:
        return importlib.import_module(f"vidkernels.{name}")
    raise AttributeError(f"module 'vidkernels' has no attribute {name!r}")
