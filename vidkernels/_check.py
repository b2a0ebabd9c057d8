"""Argument checks of the public functions, and the one form that their error texts have."""

from __future__ import annotations

from typing import NoReturn

import torch


def describe(value: object) -> str:
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"shape={list(value.shape)} dtype={dtype} device={value.device}"
    return repr(value)


def fail(op: str, message: str, hint: str | None = None, error: type[Exception] = ValueError, **arguments) -> NoReturn:
    """Raise `op: message`, every argument on a line of its own, and a hint that says what to do."""
    width = max((len(name) for name in arguments), default=0)
    lines = [f"{op}: {message}"]
    lines += [f"  {name:<{width}} : {describe(value)}" for name, value in arguments.items()]
    if hint:
        lines.append(f"HINT: {hint}")
    raise error("\n".join(lines))


def is_tensor(op: str, name: str, value: object, axes: str) -> None:
    """`value` is a tensor with as many axes as `axes` names, e.g. "[B, N, D]"."""
    if not isinstance(value, torch.Tensor):
        fail(op, f"expected `{name}` to be a torch.Tensor {axes}, got {type(value).__name__}.", error=TypeError)
    if value.dim() != axes.count(",") + 1:
        fail(op, f"expected `{name}` of shape {axes}, got {list(value.shape)}.", **{name: value})


def as_index(op: str, name: str, value: torch.Tensor) -> torch.Tensor:
    """int32 index tensor from any integer tensor."""
    if value.dtype is torch.int32:
        return value
    if value.dtype in (torch.int64, torch.int16, torch.int8, torch.uint8):
        return value.to(torch.int32)
    fail(
        op,
        f"expected `{name}` to hold integers, got {str(value.dtype).removeprefix('torch.')}.",
        **{name: value},
    )
