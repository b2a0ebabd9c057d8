"""Entropy coding of integers: what goes in comes out, in close to the fewest bits, or is refused."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidkernels import _native
from vidkernels.codec import decode_symbols, encode_symbols
from vidkernels.codec.bits import BitReader
from vidkernels.codec.fit import fit
from vidkernels.codec.tables import GAUSSIAN, LAPLACE, MIXTURE, Table

BACKENDS = ["reference"] + (["cpu"] if hasattr(_native._C, "rans_encode_cpu") else [])
LOW, HIGH = -(1 << 31), (1 << 31) - 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [12, 14])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 63, 997, 20_011])
def test_integers_come_back(count, bits, backend):
    rng = np.random.default_rng(count)
    for values in (
        rng.laplace(0, 5, count),
        rng.normal(-(10**6), 40, count),
        rng.normal(0, 0.2, count),
        (10 * rng.standard_cauchy(count)).clip(LOW, HIGH),
        rng.integers(0, 65536, count),
        rng.integers(LOW, HIGH + 1, count),
        rng.choice([LOW, HIGH, 0], count),
        np.full(count, HIGH),
    ):
        values = np.round(values).astype(np.int64).astype(np.int32)
        contexts = rng.integers(0, 5, count).astype(np.uint8)
        for k in (None, contexts):
            data = encode_symbols(values, k, bits=bits, backend=backend)
            back = decode_symbols(data, count, k, backend=backend)
            assert back.dtype == np.int32
            assert np.array_equal(back, values)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(LOW, HIGH) | st.integers(-3, 3), st.integers(0, 255) | st.integers(0, 1))))
def test_any_integers_come_back(pairs):
    values = np.array([p[0] for p in pairs], np.int32)
    contexts = np.array([p[1] for p in pairs], np.uint8)
    assert np.array_equal(decode_symbols(encode_symbols(values), len(values)), values)
    assert np.array_equal(decode_symbols(encode_symbols(values, contexts), len(values), contexts), values)


def test_tensors_and_other_integer_types():
    values = torch.arange(-50, 50)
    contexts = (values % 3).to(torch.uint8)
    data = encode_symbols(values, contexts)
    assert data == encode_symbols(values.numpy().astype(np.int16), contexts.numpy())
    assert np.array_equal(decode_symbols(data, 100, contexts), values.numpy())


@pytest.mark.parametrize(
    ("name", "sample", "ideal", "slack"),
    [  # ideal: entropy in bits of the distribution that is drawn from
        ("uniform of 16 bits", lambda r, n: r.integers(0, 1 << 16, n), 16, 1.004),
        ("all 32 bits", lambda r, n: r.integers(LOW, HIGH + 1, n), 32, 1.002),
        ("geometric, mean 2000", lambda r, n: r.geometric(1 / 2000, n), np.log2(2000 * np.e), 1.004),
        ("normal, sigma 40", lambda r, n: np.round(r.normal(7, 40, n)), np.log2(40 * np.sqrt(2 * np.pi * np.e)), 1.004),
        ("normal, sigma 4", lambda r, n: np.round(r.normal(7, 4, n)), np.log2(4 * np.sqrt(2 * np.pi * np.e)), 1.004),
    ],
)
def test_rate_of_known_distributions(name, sample, ideal, slack):
    count = 200_000
    values = sample(np.random.default_rng(1), count).astype(np.int64)
    assert 8 * len(encode_symbols(values)) / count < slack * ideal, name


def test_a_short_stream_uses_a_shape():
    """300 symbols of a known shape cost little more than their entropy: no explicit table would be as small."""
    values = np.round(np.random.default_rng(0).laplace(0, 8, 300)).astype(np.int32)
    ideal = 300 * np.log2(2 * np.e * 8) / 8
    found, counts = np.unique(values.astype(np.int64), return_counts=True)
    assert fit(found, counts, 12).kind in (LAPLACE, GAUSSIAN, MIXTURE)
    assert len(encode_symbols(values)) < 1.05 * ideal + 24


def test_contexts_pay():
    rng = np.random.default_rng(0)
    contexts = np.repeat(np.arange(4, dtype=np.uint8), 5000)
    values = np.round(rng.laplace(0, 0.5 * 4.0**contexts)).astype(np.int32)
    assert len(encode_symbols(values, contexts)) < 0.92 * len(encode_symbols(values))
    ideal = sum(5000 * np.log2(2 * np.e * 0.5 * 4.0**k) / 8 for k in (1, 2, 3)) + 5000 * 1.6 / 8
    assert len(encode_symbols(values, contexts)) < 1.03 * ideal


def test_a_constant_stream_is_a_header():
    for count in (1, 100, 10**6):
        assert len(encode_symbols(np.full(count, 5, np.int32))) <= 8


PINNED = """
04042d8f0327c64a69310123b58a0c300d000080fff7ffc0ff5b527c0a08a64010f8ffffdfffff7ffeffffa713589c50ac1b52492f6eafc3dcce66
18c4c16b8c17e0cbd17b49789a6a16a9c1aa4e230c01a032e70c2d09b14f7b8e5a0d83171d9b56b7ea11765c2d8ba08a7eaa273523a7e20c49bb3c
be87a2a4a17f840cc559051dac28aef44a51b02167783197f9d42627f1cad6713a667ac5c6e687934387dfbde6ad22d5f2b6ce1cb449603859f1a1
b43a89f595c926314d770dbe4aa3bbea519854468c49c59113e6f0ebbd6027fa059571e0bc352c6a8946217be2cc49085a4295a4f1b2077b737198
1e56c2ae7855de5c296ad3f9ef1fce1a88fe3436bb5a18d9134499ec5d39d3a51f5a273453f83063f4c1aee2db9c21554a2f3fad841693d2a86fec
ba9efb1c05797f98264302235b890611e4bc4ddc592b0a40b420aa3adbc0833e7199e01cfb8121dd387ad004b8f26d63f0730a3d7b5826133bbee5
172ce055c473d935aa8559c6be51d1c6ea03149d6027ae4ef0033542df38b3f8ea850137c5ebe578ff93b102b204b4ff798331fd923b5e151377cd
5acf02692ee8c1a7b9883be0f1d330fe4fd2730d1e028c2a402f0374c50cf182ea3f47bb93043ad79e3c52b8a6a60401a6e7a54be0b8ebb63d6e27
7f9b0020f8278d80537d9883287cfc954b45ee5fafdcf01644134e5d87ee6e1232f8ff5eec57d7581f49fd0c839fdf448c369198e1d7dd763f8bcb
c47e2994f37d588fd9d9022d8c53262cd6c62187cfce5912450b994d6a5578da6ce81d21c58008cfbcf8022a73ea89076f9e625c4a1581845d106a
e7b9318a217552118404af25a8d3e1b53aadd07775ac11fb840ec06d0ac2a306533f22e10b9609773a290186a9724aea79f327bc6acb55a75caad2
07b8678f0ef86897525e79d536019eba6fe689f327e900430c54f7a40095b774e6de3933bee1bafe06993cbd95cd74e882e49ff6f3502bf0e1d656
b1dbd9ec5973b696dd89a51ab10acdeb12ef6e3fbeb5013cf02fc3c36db8d0051543dac9fbdf1652ae617124439301d01a705d7a7d5763aed76a44
1b4de863cccd904a8c6beca28ababd904f5950629fc2560240bd5ae23a02c6ab8af230f2b39dea13ccef8346083010ba17776980d7d5243f26ee7f
c76851f0a052a5865bdaf08ff111545fdee7ad3933a2f80f442feb44b0781bad092bc78fbc2046052a91e3ea23c95cc8820e2f8202a436feb7882c
8da4edd74b1280ce737622ba27de9f882662088983e10775fc03390a6d8650c110457e3e56a8ae48fda08de8d8d39c3eef5f44729de24a4557d614
2542504cd3511460c878bd108ef031f0aa7620df5a66c57c95c4776fdd819c9d975d8764007132630b99e620d0cb5d99db671afee27b6f00ea663e
85501352dcb429cdbeedcaccde5aec1e90a10cd4099aa1c616431cb6cc2df0e448b89613bf6aec5e00
"""


def test_an_old_stream_still_decodes():
    """Files must decode with every later version: these bytes hold every kind of table, escapes and cut bits."""
    contexts = (np.arange(1500) % 5).astype(np.uint8)
    values = decode_symbols(bytes.fromhex(PINNED), 1500, contexts)
    assert hashlib.sha256(values.astype("<i4").tobytes()).hexdigest()[:16] == "a9566192a156ebbc"
    reader = BitReader(bytes.fromhex(PINNED)[5:])
    tables = [Table.read(reader) for _ in range(5)]
    assert {table.kind for table in tables} == {0, LAPLACE, GAUSSIAN, MIXTURE}
    assert any(table.escapes for table in tables)
    assert any(table.shift for table in tables)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 2), np.int32),), "expected `symbols`"),
        ((np.zeros(3),), "expected `symbols`"),
        ((np.array([1 << 31]),), "32 bits"),
        ((np.zeros(3, np.int32), np.zeros(2, np.uint8)), "expected `contexts`"),
        ((np.zeros(3, np.int32), np.zeros(3, np.int32)), "expected `contexts`"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        encode_symbols(*arguments)
    with pytest.raises(ValueError, match="bits"):
        encode_symbols(np.zeros(1, np.int32), bits=11)
    with pytest.raises(ValueError, match="count"):
        decode_symbols(b"", -1)


@pytest.mark.parametrize("count", [1500, pytest.param(60_000, marks=pytest.mark.slow)])
def test_damaged_streams_are_refused_or_read(count):
    rng, refused, read = np.random.default_rng(count), 0, 0
    streams = []
    for size in (3, 40, 400, 3000):
        contexts = rng.integers(0, 4, size).astype(np.uint8)
        for values in (rng.laplace(0, 4, size), rng.standard_cauchy(size) * 9, rng.integers(0, 99999, size)):
            values = np.round(values).clip(LOW, HIGH).astype(np.int32)
            streams += [(encode_symbols(values, k), size, k) for k in (None, contexts)]
    for i in range(count):
        data, size, contexts = streams[i % len(streams)]
        data = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            if rng.random() < 0.2 and data:
                del data[int(rng.integers(len(data))) :][: int(rng.integers(1, 9))]
            elif data:
                data[int(rng.integers(min(len(data), int(rng.choice([8, 60, 10**6])))))] = rng.integers(0, 256)
        try:
            back = decode_symbols(bytes(data), size, contexts)
        except ValueError as error:
            refused += str(error).startswith("decode_symbols: damaged stream: ")
        else:
            assert back.shape == (size,)
            read += 1
    assert refused + read == count
    assert refused > count // 2


def test_a_stream_read_with_the_wrong_count_or_contexts_is_refused():
    values = np.round(np.random.default_rng(0).laplace(0, 9, 1000)).astype(np.int32)
    contexts = (np.arange(1000) % 2).astype(np.uint8)
    data = encode_symbols(values, contexts)
    for count in (0, 1, 999, 1001):
        with pytest.raises(ValueError, match="damaged"):
            decode_symbols(data, count, np.resize(contexts, count))
    with pytest.raises(ValueError, match="damaged"):
        decode_symbols(data, 1000, contexts + 1)
    with pytest.raises(ValueError, match="damaged"):
        decode_symbols(data + b"\0", 1000, contexts)
