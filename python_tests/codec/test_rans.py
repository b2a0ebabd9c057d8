"""The coder below the tables: every backend writes the same bytes, in close to the fewest, and refuses damage."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vidkernels import _native
from vidkernels.codec.rans import rans_decode, rans_encode
from vidkernels.codec.tables import normalize

BACKENDS = ["reference"] + (["cpu"] if hasattr(_native._C, "rans_encode_cpu") else [])
LOW, HIGH = -(1 << 31), (1 << 31) - 1
ROOT = Path(__file__).parent.parent.parent


def random_freqs(rng, tables, bits):
    weights = rng.random((tables, 256)) ** rng.integers(1, 40, (tables, 1)) * (rng.random((tables, 256)) < 0.7)
    weights[:, 17] += 1e-3
    return np.stack([normalize((1e6 * w).astype(np.int64), 1 << bits) for w in weights])


def draw(rng, freqs, contexts, bits):
    at = rng.integers(0, 1 << bits, len(contexts))
    ends = np.cumsum(freqs, 1)
    out = np.empty(len(at), np.uint8)
    for k in range(len(freqs)):
        out[contexts == k] = np.searchsorted(ends[k], at[contexts == k], "right")
    return out


@pytest.mark.parametrize("lanes", [1, 5, 32])
@pytest.mark.parametrize(("tables", "bits"), [(1, 8), (1, 12), (1, 14), (3, 13), (64, 12), (256, 14)])
def test_every_backend_writes_the_same_bytes(tables, bits, lanes):
    rng = np.random.default_rng(tables * bits)
    freqs = random_freqs(rng, tables, bits)
    for count in (0, 1, 31, 32, 33, 1000):
        contexts = rng.integers(0, tables, count).astype(np.uint8)
        symbols = draw(rng, freqs, contexts, bits)
        given_contexts = contexts if tables > 1 else None
        streams = [rans_encode(symbols, given_contexts, freqs, bits, lanes, b) for b in BACKENDS]
        for states, words in streams:
            assert words == streams[0][1]
            assert np.array_equal(states, streams[0][0])
            for backend in BACKENDS:
                back = rans_decode(states, words, given_contexts, freqs, bits, count, backend)
                assert np.array_equal(back, symbols)


def test_one_certain_symbol_costs_nothing():
    freqs = np.zeros((1, 256), np.int32)
    freqs[0, 200] = 1 << 12
    for backend in BACKENDS:
        states, words = rans_encode(np.full(1000, 200, np.uint8), None, freqs, 12, 32, backend)
        assert words == b""
        assert (states == 1 << 16).all()
        assert (rans_decode(states, words, None, freqs, 12, 1000, backend) == 200).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_coder_refuses_what_it_cannot_code(backend):
    freqs = np.zeros((1, 256), np.int32)
    freqs[0, :2] = 1 << 11
    ones = np.ones(4, np.uint8)
    with pytest.raises(ValueError, match="frequency 0"):
        rans_encode(2 * ones, None, freqs, 12, 1, backend)
    with pytest.raises(ValueError, match="no table"):
        rans_encode(ones, ones, freqs, 12, 1, backend)
    for wrong in (freqs + 1, -freqs, freqs[:, :255], freqs[:0]):
        with pytest.raises(ValueError, match="freqs"):
            rans_encode(ones, None, np.ascontiguousarray(wrong), 12, 1, backend)
    with pytest.raises(ValueError, match="backend"):
        rans_encode(ones, None, freqs, 12, 1, "gpu")


def hostile_streams(rng, count):
    """Valid streams with bytes changed, cut or added, and pure noise; a third with contexts outside the tables."""
    for i in range(count):
        bits, tables, lanes = int(rng.integers(8, 15)), int(rng.integers(1, 9)), int(rng.choice([1, 7, 32]))
        freqs = random_freqs(rng, tables, bits)
        size = int(rng.integers(0, 700))
        contexts = rng.integers(0, tables, size).astype(np.uint8)
        states, words = rans_encode(draw(rng, freqs, contexts, bits), contexts, freqs, bits, lanes)
        words = bytearray(words)
        if i % 4 == 0:
            states, words = rng.integers(LOW, HIGH, lanes).astype(np.int32), bytearray(rng.bytes(2 * (size // 2)))
        elif i % 4 == 1:
            words = words[: 2 * int(rng.integers(0, len(words) // 2 + 1))]
        elif i % 4 == 2:
            words += rng.bytes(2 * int(rng.integers(1, 40)))
        elif words:
            words[int(rng.integers(len(words)))] ^= 1 << int(rng.integers(8))
        if i % 3 == 0 and size:
            contexts[int(rng.integers(size))] = rng.integers(0, 256)
        yield states, bytes(words), contexts, freqs, bits, size + int(rng.integers(-1, 2)) * (i % 5 == 0)


def attempt(arguments, backend):
    try:
        return rans_decode(*arguments, backend).tobytes()
    except ValueError as error:
        return None if "damaged stream" in str(error) else str(error)


@pytest.mark.parametrize("count", [600, pytest.param(30_000, marks=pytest.mark.slow)])
def test_hostile_streams_are_refused_by_all_alike(count):
    rng, refused = np.random.default_rng(count), 0
    for number, (states, words, contexts, freqs, bits, size) in enumerate(hostile_streams(rng, count)):
        contexts = np.resize(contexts, max(size, 0)) if len(contexts) else np.zeros(max(size, 0), np.uint8)
        arguments = (states, words, contexts, freqs, bits, len(contexts))
        found = {attempt(arguments, backend) for backend in BACKENDS[::-1][: 2 if number % 6 == 0 else 1]}
        assert len(found) == 1
        refused += found == {None}
    assert refused > count // 2


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no compiled module")
def test_every_instruction_set_gives_the_same_bytes():
    """The oracle's digest, computed in processes that are told which kernels to use."""
    script = (
        "import numpy as np, hashlib, sys\n"
        "from vidkernels import _native\n"
        "from vidkernels.codec import encode_symbols, decode_symbols\n"
        "rng = np.random.default_rng(0); d = hashlib.sha256()\n"
        "for bits in (12, 14):\n"
        "    c = rng.integers(0, 9, 50001).astype(np.uint8); x = np.round(rng.laplace(0, 1 + c)).astype(np.int32)\n"
        "    for k in (None, c):\n"
        "        s = encode_symbols(x, k, bits=bits, backend=sys.argv[1]); d.update(s)\n"
        "        assert (decode_symbols(s, len(x), k, backend=sys.argv[1]) == x).all()\n"
        "print(_native._C.build_info()['isa'], d.hexdigest())"
    )
    digests = set()
    for backend, isa in (("reference", "v2"), ("cpu", "v2"), ("cpu", "v3"), ("cpu", "v4")):
        env = os.environ | {"VIDKERNELS_ISA": isa, "PYTHONPATH": str(ROOT)}
        out = subprocess.run(
            [sys.executable, "-c", script, backend], env=env, capture_output=True, text=True, check=True
        )
        digests.add(out.stdout.split()[1])
    assert len(digests) == 1


def test_rate_against_constriction():
    """The same model through an independent coder: within 1%, and close to the entropy of the model."""
    constriction = pytest.importorskip("constriction")
    rng = np.random.default_rng(3)
    freqs = random_freqs(rng, 1, 12)
    symbols = draw(rng, freqs, np.zeros(100_000, np.uint8), 12)
    for lanes in (1, 32):
        states, words = rans_encode(symbols, None, freqs, 12, lanes)
        ours = 4 * lanes + len(words)
        model = constriction.stream.model.Categorical(freqs[0].astype(np.float64) / 4096 + 1e-12, perfect=False)
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(symbols.astype(np.int32), model)
        theirs = coder.get_compressed().nbytes
        ideal = (12 - np.log2(freqs[0][symbols])).sum() / 8
        assert ours <= 1.01 * theirs
        assert ideal <= ours <= 1.001 * ideal + 4 * lanes
        back = constriction.stream.stack.AnsCoder(coder.get_compressed()).decode(model, len(symbols))
        assert np.array_equal(back, rans_decode(states, words, None, freqs, 12, len(symbols)))
