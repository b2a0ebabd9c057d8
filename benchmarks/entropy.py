"""Entropy coding against constriction: bytes and symbols a second, one core. `python benchmarks/entropy.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

# Appended: an installed vidkernels wins over the source tree.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import numpy as np
import typer

from benchmarks import machine as machine_of
from benchmarks.timing import interleave
from vidkernels import _native
from vidkernels.codec import decode_symbols, encode_symbols
from vidkernels.codec.rans import rans_decode, rans_encode
from vidkernels.codec.tables import normalize

LANES = 32


def sample(tables: int, count: int, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(symbols, contexts, freqs): two-sided exponentials of several widths around 100, contexts at random."""
    rng = np.random.default_rng(0)
    widths = np.geomspace(2, 20, tables)[:, None] if tables > 1 else np.array([[8.0]])
    weights = np.exp(-np.abs(np.arange(256) - 100) / widths) + 1e-6
    freqs = np.stack([normalize((2**30 * w / w.max()).astype(np.int64), 1 << bits) for w in weights])
    contexts, at = rng.integers(0, tables, count).astype(np.uint8), rng.integers(0, 1 << bits, count)
    symbols = np.empty(count, np.uint8)
    for k in range(tables):
        mine = contexts == k
        symbols[mine] = np.searchsorted(np.cumsum(freqs[k]), at[mine], "right")
    return symbols, contexts, freqs


class Ours:
    def __init__(self, symbols, contexts, freqs, bits, backend):
        self.given = (contexts if len(freqs) > 1 else None, freqs, bits)
        self.symbols, self.backend = symbols, backend
        self.stream = self.encode()
        self.bytes = 4 * LANES + len(self.stream[1])

    def encode(self):
        return rans_encode(self.symbols, *self.given, LANES, self.backend)

    def decode(self):
        return rans_decode(*self.stream, *self.given, len(self.symbols), self.backend)


class Constriction:
    """Its stack coder, one call per table over that table's symbols: faster than a model per symbol."""

    def __init__(self, symbols, contexts, freqs, bits):
        import constriction

        self.stack = constriction.stream.stack
        categorical = constriction.stream.model.Categorical
        self.models = [categorical(f / (1 << bits) + 1e-12, perfect=False) for f in freqs]
        self.groups = [symbols[contexts == k].astype(np.int32) for k in range(len(freqs))]
        self.stream = self.encode()
        self.bytes = self.stream.nbytes

    def encode(self):
        coder = self.stack.AnsCoder()
        for group, model in zip(reversed(self.groups), reversed(self.models)):
            coder.encode_reverse(group, model)
        return coder.get_compressed()

    def decode(self):
        coder = self.stack.AnsCoder(self.stream)
        return [coder.decode(model, len(group)) for group, model in zip(self.groups, self.models)]


def measure(tables: int, bits: int, count: int, seconds: float) -> None:
    symbols, contexts, freqs = sample(tables, count, bits)
    coders = {"constriction": Constriction(symbols, contexts, freqs, bits)}
    if hasattr(_native._C, "rans_decode_cpu"):
        coders |= {"ours": Ours(symbols, contexts, freqs, bits, "cpu")}
    assert np.array_equal(
        np.concatenate(coders["constriction"].decode()), np.concatenate(coders["constriction"].groups)
    )
    for label, coder in coders.items():
        assert label == "constriction" or np.array_equal(coder.decode(), symbols)
    jobs = {(label, way): getattr(coder, way) for label, coder in coders.items() for way in ("encode", "decode")}
    if tables == 1:  # the public functions: choosing and storing the table included
        values = symbols.astype(np.int32) - 100
        data = encode_symbols(values, bits=bits)
        assert np.array_equal(decode_symbols(data, count), values)
        jobs[("symbols", "encode")] = lambda: encode_symbols(values, bits=bits)
        jobs[("symbols", "decode")] = lambda: decode_symbols(data, count)
    times = interleave({"/".join(names): job for names, job in jobs.items()}, seconds=seconds)
    ideal = float((bits - np.log2(freqs[contexts, symbols])).sum() / 8)
    sizes = {label: coder.bytes for label, coder in coders.items()} | ({"symbols": len(data)} if tables == 1 else {})
    for label, size in sizes.items():
        best = [count / times[f"{label}/{way}"]["min_ms"] / 1e3 for way in ("encode", "decode")]
        print(f"| {tables} | {bits} | {label} | {size} | {size / ideal:.4f} | {best[0]:.0f} | {best[1]:.0f} |")


def main(
    count: Annotated[int, typer.Option(help="symbols of a stream")] = 2_000_000,
    seconds: Annotated[float, typer.Option(help="time for the rounds of one row")] = 4.0,
) -> None:
    """Best of the rounds; "ours" and "constriction" code with given tables, "symbols" is encode_symbols."""
    machine = machine_of.describe(1)
    print(f"{machine['cpu']}, {machine['cores']} cores, kernels {machine['build'].get('isa')}; {count} symbols\n")
    print("| tables | bits | coder | bytes | bytes / ideal | encode Msym/s | decode Msym/s |")
    print("| ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for tables, bits in ((1, 12), (1, 14), (64, 12), (64, 14)):
        measure(tables, bits, count, seconds)


if __name__ == "__main__":
    typer.run(main)
