"""The ways to do one op on one case, ours and the peers: calls without arguments, checked before they are timed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """A variant's result is wrong; ours: the row is not timed, a peer's: that variant is not."""


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
    wanted: list[str] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)
    cotangents: list[torch.Tensor | None] = field(default_factory=list)
    variants: dict[str, Callable[[], object]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # peer -> what is wrong with it

    def prepare(self) -> None:
        """Make the arguments and every variant; raise Refused if ours computes something else. Peers that do are left
        out, and `refused` says why."""
        backward = self.direction != "forward"
        self.args = tuple(
            a.detach().to(self.device).requires_grad_(backward and name in self.case.grad)
            if isinstance(a, torch.Tensor)
            else a
            for name, a in zip(self.op.spec.arg_names, arguments(self.case, self.dtype))
        )
        named = dict(zip(self.op.spec.arg_names, self.args))
        self.wanted = [name for name in self.case.grad if isinstance(named[name], torch.Tensor)] if backward else []
        self.inputs = [named[name] for name in self.wanted]
        makers = dict(getattr(self.peers, "PEERS", {}).get(self.op.name, {}))
        direct = dict(getattr(self.peers, "DIRECT", {}).get(self.op.name, {})) if backward else {}
        makers = {"ours": makers.pop("ours", lambda *args: lambda: self.op(*args)), **makers} | direct
        calls = {}
        for label, make in makers.items():
            call = None
            with self._refusing(label):
                call = make(*self.args)
            if call is not None:  # a peer that would take minutes on this case declines it
                calls[label] = call
        with self._refusing("ours"):
            ours = _as_tuple(calls["ours"]())
        self.cotangents = [_cotangent(o) if backward and o.requires_grad else None for o in ours]
        self._check_all(calls, set(direct))
        for label, call in calls.items():
            if label in self.refused:
                continue
            whole = label in direct or not backward
            self.variants[label] = call if whole else lambda call=call: self._gradients(call())

    def _gradients(self, outputs: object) -> tuple[torch.Tensor, ...]:
        pairs = [(o, c) for o, c in zip(_as_tuple(outputs), self.cotangents) if c is not None and o is not None]
        return torch.autograd.grad([o for o, _ in pairs], self.inputs, [c for _, c in pairs], allow_unused=True)

    # ---- checks

    @contextmanager
    def _refusing(self, label: str) -> Iterator[None]:
        """Whatever goes wrong in ours ends its row; in a peer, its part in the row. The run goes on."""
        try:
            yield
        except Exception as error:
            text = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            self.refused[label] = text
            if label == "ours":
                raise Refused(f"{label}: {text}") from error

    def _check_all(self, calls: dict[str, Callable], direct: set[str]) -> None:
        """Outputs first (a wrong shape has no gradient to speak of), then gradients."""
        leaves, expected = self._reference()
        same = getattr(self.peers, "SAME", {}).get(self.op.name)
        for label, call in calls.items():
            with self._refusing(label):
                outputs = call()
                outputs, got = outputs if label in direct else (outputs, None)
                outputs = _as_tuple(outputs)
                if same is not None and not label.startswith("ours"):
                    reason = same(outputs, expected, self.args)
                    assert reason is None, reason
                    continue
                self._compare_outputs(outputs, expected, ours=label.startswith("ours"))
                if self.inputs:
                    gradients = self._expected_gradients(leaves, expected)
                    got = self._gradients(outputs) if got is None else got
                    self._compare_gradients(got, gradients, ours=label.startswith("ours"))

    def _reference(self) -> tuple[tuple, tuple]:
        """Leaves and outputs of the reference: in float64, or in the same dtype where equal bits are asked for. Where
        a reference would take minutes (`Case.oracle`), ours in float32 stands in for it."""
        oracle = self.case.oracle
        args = self.args if self.case.rtol is None else to_float64(self.args)
        if not oracle:
            args = tuple(a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in self.args)
        args = tuple(
            a.detach().clone().requires_grad_(old.requires_grad) if isinstance(a, torch.Tensor) else a
            for a, old in zip(args, self.args)
        )
        named = dict(zip(self.op.spec.arg_names, args))
        if oracle:
            outputs = self.op.spec.reference(*args) if not self.wanted else self.op(*args, backend="reference")
        else:
            outputs = self.op(*args)
        return tuple(named[name] for name in self.wanted), _as_tuple(outputs)

    def _expected_gradients(self, leaves: tuple, expected: tuple) -> tuple[torch.Tensor, ...]:
        pairs = [(o, c.to(o.dtype)) for o, c in zip(expected, self.cotangents) if c is not None]
        return torch.autograd.grad([o for o, _ in pairs], leaves, [c for _, c in pairs], retain_graph=True)

    def _compare_outputs(self, outputs: tuple, expected: tuple, ours: bool) -> None:
        assert len(outputs) == len(expected), f"{len(outputs)} outputs, expected {len(expected)}"
        for i, (o, e) in enumerate(zip(outputs, expected)):
            if o is None and not ours:
                continue
            rtol = None if self.case.rtol is None else self.case.rtol[self.dtype]
            if not ours and o.is_floating_point():
                # A peer may round between its steps where ours rounds once; it must still be the same computation.
                rtol = max(rtol or 0.0, 3 * ROUNDING[o.dtype])
            elif not ours:
                e = e.to(o.dtype)
            assert_close(o.detach(), e.detach(), rtol, f"output {i}")

    def _compare_gradients(self, got: tuple, expected: tuple, ours: bool) -> None:
        for name, g, e in zip(self.wanted, got, expected, strict=True):
            rtol = None if self.case.grad_rtol is None else self.case.grad_rtol[self.dtype]
            if not ours:
                rtol = max(rtol or 0.0, 16 * ROUNDING[g.dtype])
            assert_gradient_close(g, e, f"gradient of {name}", rtol=rtol)

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
        # FLOPs that only one of the two declares are still a bound for both.
        flops = (own[1] or 0) + (sibling.flops(*back) if sibling.flops is not None else 0)
        return (own[0][0] + read, own[0][1] + written), flops or None

    def with_fresh(self) -> tuple[dict[str, Callable], dict[str, Callable]]:
        """The variants, and `fresh` (ours with an emptied pool) where the pool took part; with what runs before it."""
        pool.clear()
        self.variants["ours"]()
        if self.device != "cpu" or pool.idle_bytes == 0:
            return self.variants, {}
        return {**self.variants, "fresh": self.variants["ours"]}, {"fresh": pool.clear}


def peers_directory(op: Op) -> str:
    """The directory under vidkernels/ops/ that defines the op; its peers have the same name."""
    return op.spec.reference.__module__.split(".")[-2]


def takes_floats(case: Case) -> bool:
    """Whether the floating dtype makes a difference to the case's arguments."""
    # Scenes with a threshold cannot be made in types that are not the case's.
    other = torch.float64 if torch.bfloat16 not in case.dtypes and torch.float64 in case.dtypes else torch.bfloat16
    kinds = [
        [a.dtype for a in arguments(case, dtype) if isinstance(a, torch.Tensor)] for dtype in (torch.float32, other)
    ]
    return kinds[0] != kinds[1]


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
    if value is None:  # an op that changes its arguments in place
        return ()
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _cotangent(output: torch.Tensor) -> torch.Tensor:
    if output.dim() == 0:
        return torch.ones_like(output)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(output.shape, generator=generator).to(output.device, output.dtype)
