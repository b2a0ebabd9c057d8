"""The ways to do one op on one case: ours and the peers, as calls without arguments, each checked before it is timed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch

from vidkernels._case import ROUNDING, Case
from vidkernels._op import Op
from vidkernels._pool import pool
from vidkernels.testing import arguments, assert_close, assert_gradient_close, to_float64

PEERS_DIRECTORY = Path(__file__).parent / "peers"
PASSES = ("forward", "forward + backward")


class Refused(Exception):
    """A variant's result is wrong; the row is not timed."""


@dataclass
class Job:
    """One row: an op, a case, a dtype and a pass, with everything to call and to compare."""

    op: Op
    case: Case
    dtype: torch.dtype
    direction: str
    peers: ModuleType | None
    device: str = "cpu"
    args: tuple = ()
    inputs: list[torch.Tensor] = field(default_factory=list)
    cotangents: list[torch.Tensor | None] = field(default_factory=list)
    variants: dict[str, Callable[[], object]] = field(default_factory=dict)

    def prepare(self) -> None:
        """Make the arguments and every variant; raise Refused if one of them computes something else."""
        backward = self.direction != "forward"
        self.args = tuple(
            a.detach().to(self.device).requires_grad_(backward and name in self.case.grad)
            if isinstance(a, torch.Tensor)
            else a
            for name, a in zip(self.op.spec.arg_names, arguments(self.case, self.dtype))
        )
        named = dict(zip(self.op.spec.arg_names, self.args))
        self.inputs = [named[name] for name in self.case.grad] if backward else []
        makers = dict(getattr(self.peers, "PEERS", {}).get(self.op.name, {}))
        direct = dict(getattr(self.peers, "DIRECT", {}).get(self.op.name, {})) if backward else {}
        makers = {"ours": makers.pop("ours", lambda *args: lambda: self.op(*args)), **makers} | direct
        calls = {}
        for label, make in makers.items():
            calls[label] = make(*self.args)
        ours = _as_tuple(calls["ours"]())
        self.cotangents = [_cotangent(o) if backward and o.requires_grad else None for o in ours]
        for label in makers:
            is_direct = label in direct
            self.variants[label] = self._timed(calls[label], is_direct)
        self._check_all(calls, set(direct))

    def _timed(self, call: Callable, is_direct: bool) -> Callable[[], object]:
        if self.direction == "forward" or is_direct:
            return call
        return lambda: self._gradients(call())

    def _gradients(self, outputs: object) -> tuple[torch.Tensor, ...]:
        pairs = [(o, c) for o, c in zip(_as_tuple(outputs), self.cotangents) if c is not None and o is not None]
        return torch.autograd.grad([o for o, _ in pairs], self.inputs, [c for _, c in pairs], allow_unused=True)

    # ---- checks

    def _check_all(self, calls: dict[str, Callable], direct: set[str]) -> None:
        expected, gradients = self._expected()
        same = getattr(self.peers, "SAME", {}).get(self.op.name)
        for label, call in calls.items():
            try:
                outputs = call()
                if label in direct:
                    outputs, got = outputs
                else:
                    got = self._gradients(outputs) if self.inputs else ()
                outputs = _as_tuple(outputs)
                if same is not None and not label.startswith("ours"):
                    reason = same(outputs, expected, self.args)
                    if reason is not None:
                        raise AssertionError(reason)
                    continue
                self._compare(label, outputs, expected, got, gradients)
            except AssertionError as error:
                raise Refused(f"{label}: {error}") from error

    def _expected(self) -> tuple[tuple, tuple]:
        """Outputs and gradients of the reference: float64, or the same dtype where equal bits are asked for."""
        exact = self.case.rtol is None
        args = self.args if exact else to_float64(self.args)
        args = tuple(
            a.detach().clone().requires_grad_(old.requires_grad) if isinstance(a, torch.Tensor) else a
            for a, old in zip(args, self.args)
        )
        outputs = _as_tuple(self.op.spec.reference(*args))
        if not self.inputs:
            return outputs, ()
        named = dict(zip(self.op.spec.arg_names, args))
        pairs = [(o, c.to(o.dtype)) for o, c in zip(outputs, self.cotangents) if c is not None]
        leaves = [named[name] for name in self.case.grad]
        return outputs, torch.autograd.grad([o for o, _ in pairs], leaves, [c for _, c in pairs])

    def _compare(self, label: str, outputs: tuple, expected: tuple, got: tuple, gradients: tuple) -> None:
        ours = label.startswith("ours")
        assert len(outputs) == len(expected), f"{len(outputs)} outputs, expected {len(expected)}"
        for i, (o, e) in enumerate(zip(outputs, expected)):
            if o is None and not ours:
                continue
            rtol = self.case.rtol[self.dtype] if self.case.rtol is not None else None
            if not ours and o.is_floating_point():
                # A peer may round between its steps where ours rounds once; it must still be the same computation.
                rtol = 8 * ROUNDING[o.dtype] if rtol is None else max(rtol, 8 * ROUNDING[o.dtype])
            if not ours and not o.is_floating_point():
                e = e.to(o.dtype)
            assert_close(o.detach(), e.detach(), rtol, f"output {i}")
        for name, g, e in zip(self.case.grad, got, gradients):
            assert_gradient_close(g, e, f"gradient of {name}", rtol=None if ours else 16 * ROUNDING[g.dtype])

    # ---- what the row's bound is made of

    def work(self, siblings: dict[str, Case]) -> tuple[tuple[int, int] | None, float | None]:
        """((read, written), flops) of the row, None where nothing declares them."""
        args = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in self.args)
        own = (self.case.bytes and self.case.bytes(*args), self.case.flops and self.case.flops(*args))
        if self.direction == "forward":
            return own
        moved = getattr(self.peers, "BYTES", {}).get(self.op.name)
        flops = getattr(self.peers, "FLOPS", {}).get(self.op.name)
        if moved is not None or flops is not None:
            return moved and moved(*args), flops and flops(*args)
        sibling = siblings.get(self.case.name)
        if sibling is None or sibling.bytes is None or own[0] is None:
            return None, None
        back = arguments(sibling, self.dtype)
        read, written = sibling.bytes(*back)
        both = own[1] + sibling.flops(*back) if own[1] is not None and sibling.flops is not None else None
        return (own[0][0] + read, own[0][1] + written), both

    def with_fresh(self) -> tuple[dict[str, Callable], dict[str, Callable]]:
        """The variants, and `fresh` (ours with an emptied pool) where the pool took part; with what runs before it."""
        pool.clear()
        self.variants["ours"]()
        if self.device != "cpu" or pool.idle_bytes == 0:
            return self.variants, {}
        return {**self.variants, "fresh": self.variants["ours"]}, {"fresh": pool.clear}


def load_peers(directory: str) -> ModuleType | None:
    """`peers/<directory>.py`, or None if nobody wrote it."""
    path = PEERS_DIRECTORY / f"{directory}.py"
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location(f"benchmarks.peers.{directory}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _as_tuple(value: object) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _cotangent(output: torch.Tensor) -> torch.Tensor:
    if output.dim() == 0:
        return torch.ones_like(output)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, generator=generator).to(output.device, output.dtype)
