"""Block sizes and the differences between Triton's compiler and its interpreter."""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

INTERPRETING = tl.constexpr(bool(knobs.runtime.interpret))
"""Whether TRITON_INTERPRET was set when triton was imported."""


def power_of_2(n: int) -> int:
    """The block size that holds n elements (at least 1)."""
    return triton.next_power_of_2(max(1, n))


@triton.jit
def dot(a, b):
    """tl.dot with fp32 sums; the interpreter multiplies bf16 bit patterns as integers, so it gets fp32."""
    if INTERPRETING:
        return tl.dot(a.to(tl.float32), b.to(tl.float32))
    else:
        return tl.dot(a, b)
