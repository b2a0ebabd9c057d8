"""Which implementation of an op runs: chosen, forced, or explained.

`None` lets the op choose (compiled kernel of the tensor's device, then Triton, then the reference). A name forces
that backend, by argument (`backend="reference"`) or for a block of code (`with vidkernels.backend("simt"):`).
A forced name never falls back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("reference", "cpu", "cuda", "triton", "simt", "simt_trace")

forced: str | None = None


def checked(name: str | None) -> str | None:
    if name is not None and name not in NAMES:
        raise ValueError(f"backend: expected one of {', '.join(NAMES)} or None, got {name!r}.")
    return name


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """Force a backend for every op called inside the block (process-wide, so not for concurrent threads)."""
    global forced
    before, forced = forced, checked(name)
    try:
        yield
    finally:
        forced = before
