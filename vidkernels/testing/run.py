"""Finds the named cases of every op and makes their arguments."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import torch

import vidkernels.ops
from vidkernels._case import Case
from vidkernels._op import Op, registry


def all_cases() -> list[tuple[Op, Case]]:
    """Every (op, case) of every `ops/<op>/cases.py`; an op without cases is an error."""
    for module in pkgutil.iter_modules(vidkernels.ops.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"vidkernels.ops.{module.name}.op")
    cases = {}
    for module in pkgutil.iter_modules(vidkernels.ops.__path__):
        if not module.name.startswith("_"):
            cases |= importlib.import_module(f"vidkernels.ops.{module.name}.cases").CASES
    assert set(cases) == set(registry), f"ops and cases differ: {set(cases) ^ set(registry)}"
    return [(registry[name], case) for name in sorted(cases) for case in cases[name]]


def arguments(case: Case, dtype: torch.dtype, seed: int = 0) -> tuple:
    """The arguments of a case, the same for every run."""
    return case.args(torch.Generator().manual_seed(seed), dtype)


def to_float64(args: tuple) -> tuple:
    """Floating tensors as float64, the rest as it is."""
    return tuple(a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)


def strided_copy(value: object) -> object:
    """The same tensor with gaps in memory (other values unchanged)."""
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    wide = torch.empty(*value.shape[:-1], 2 * value.shape[-1], dtype=value.dtype, device=value.device)
    view = wide[..., ::2]
    view.copy_(value)
    return view


def results(op: Op, args: tuple, call: Callable | None = None) -> list[torch.Tensor]:
    """The tensors that an op returns, and copies of those that it changes in place; `args` stay as they are.

    Args:
        op: which arguments it changes.
        args: its arguments.
        call: called with the arguments; None: the op.
    """
    args = tuple(_copy(a) if i in op.spec.changed else a for i, a in enumerate(args))
    returned = (call or op)(*args)
    returned = returned if isinstance(returned, tuple | list) else [returned]
    return [r for r in returned if isinstance(r, torch.Tensor)] + [args[i] for i in op.spec.changed]


def _copy(value: torch.Tensor) -> torch.Tensor:
    return value.clone() if value.is_contiguous() else strided_copy(value)
