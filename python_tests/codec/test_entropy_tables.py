"""Tables of the entropy coder: shapes, bits, escapes."""

import hashlib

import numpy as np
import pytest

from vidkernels.codec.bits import BitReader, BitWriter, pack_fields, unpack_fields
from vidkernels.codec.fit import escape_of, fit
from vidkernels.codec.tables import GAUSSIAN, LAPLACE, MIXTURE, Table, _profile, normalize, shape_weights

LOW, HIGH = -(1 << 31), (1 << 31) - 1


def test_shapes_are_the_curves_they_are_called_after():
    for level in range(0, 48, 5):
        width = 2 ** ((level - 12) / 4)
        d = np.arange(768) / 4
        for kind, curve in ((LAPLACE, np.exp(-d / width)), (GAUSSIAN, np.exp(-0.5 * (d / width) ** 2))):
            assert np.allclose(np.array(_profile(kind, level), float) / 2**48, curve, atol=1e-9)


def test_shapes_are_pinned():
    """Integers that every machine must rebuild alike."""
    text = repr([_profile(kind, level) for kind in (LAPLACE, GAUSSIAN) for level in range(48)])
    text += repr(shape_weights(50, MIXTURE, 77, (10, 20), 3))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "586ef0af85bdd60b"


def test_normalize_sums_and_keeps_the_rare():
    rng = np.random.default_rng(0)
    for bits in (8, 12, 14):
        for _ in range(200):
            weights = (rng.random(256) ** rng.integers(1, 60) * 2**30).astype(np.int64)
            weights[rng.random(256) < rng.random()] = 0
            weights[3] = max(weights[3], 1)
            freqs = normalize(weights, 1 << bits)
            assert freqs.sum() == 1 << bits
            assert ((freqs > 0) == (weights > 0)).all()
    assert normalize(np.array([3, 1]), 4096).tolist() == [3072, 1024]
    assert normalize(np.array([1 << 30] + [1] * 255), 4096).tolist() == [4096 - 255] + [1] * 255


def test_tables_come_back_from_their_bits():
    rng = np.random.default_rng(1)
    tables = [Table(0, 0), Table(-(1 << 31), 1, weights=(1,)), Table(HIGH, 1, weights=(1,), shift=3)]
    for scale in (0.3, 3, 30, 3000, 1e6):
        for count in (5, 300, 20_000):
            for values in (
                rng.laplace(0, scale, count),
                rng.normal(9, scale, count),
                scale * rng.standard_cauchy(count),
            ):
                found = np.unique(np.round(values).clip(LOW, HIGH).astype(np.int64), return_counts=True)
                tables.append(fit(*found, 12))
    tables.append(Table(-7, 60, MIXTURE, 1, (), 77, (10, 40), 3, (0, 5)))
    assert {t.kind for t in tables} == {0, 1, 2, 3}
    out = BitWriter()
    for table in tables:
        table.write(out)
    bits = BitReader(out.to_bytes())
    assert [Table.read(bits) for _ in tables] == tables
    assert bits.finished()


def test_fields_and_escapes():
    rng = np.random.default_rng(2)
    widths = rng.integers(0, 33, 1000)
    values = rng.integers(0, 1 << 32, 1000) & ((1 << widths) - 1)
    data = pack_fields(values, widths)
    assert len(data) == (widths.sum() + 7) // 8
    assert np.array_equal(unpack_fields(data, widths), values.astype(np.uint64))
    with pytest.raises(ValueError, match="length"):
        unpack_fields(data + b"\0", widths)
    number = int.from_bytes(data, "little")
    assert number & ((1 << int(widths[0])) - 1) == values[0]
    token, raw, width = escape_of(np.array([LOW, HIGH, 5, -1, 6]), 0, 5)
    assert token.tolist() == [2 * 30 + 1 + 2, 2 * 30, 0, 1, 2]
    assert raw.tolist() == [0, HIGH - 5 + 1 - (1 << 30), 0, 0, 0]
    assert width.tolist() == [31, 30, 0, 0, 1]
