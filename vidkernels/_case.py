"""Named inputs of an op. Contract tests, benchmarks and the emulator's report all read `ops/<op>/cases.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """One named input of one op.

    name: starts with its kind: tiny (gradcheck), odd (63, primes), empty, strided, extreme, real (a named model's
        sizes; run under --runslow and in benchmarks).
    args: args(generator, dtype) -> the op's arguments in schema order, on the CPU; `dtype` is the floating type.
    grad: names of the arguments that take gradients.
    dtypes: floating types that every backend must take.
    rtol: largest |error| / max |expected| per dtype, against the reference in float64; None asks for equal bits.
    grad_rtol: largest relative L2 error of a gradient per dtype; None takes four times ROUNDING.
    oracle: the reference can check it in reasonable time (False: for benchmarks, whose variants check each other).
    thread_bits: the bits of the result do not depend on the number of threads (False where torch's matrix product,
        which makes no such promise, sits inside).
    bytes: bytes(*args) -> (read, written), the least global memory traffic that the op can do.
    flops: flops(*args) -> floating-point operations, for the bound of compute-limited ops.
    """

    name: str
    args: Callable[[torch.Generator, torch.dtype], tuple]
    grad: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    rtol: dict[torch.dtype, float] | None = None
    grad_rtol: dict[torch.dtype, float] | None = None
    oracle: bool = True
    thread_bits: bool = True
    bytes: Callable[..., tuple[int, int]] | None = None
    flops: Callable[..., float] | None = None

    @property
    def kind(self) -> str:
        return self.name.split("_")[0]


ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}
"""A few units in the last place of each type: the default tolerance of ops that sum."""
