"""The numbers of a network video as bytes: there and back, and whatever a damaged file may hold."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidkernels.codec.entropy import encode_symbols
from vidkernels.codec.nerv_bits import (
    PARTS,
    LatentCode,
    Quantised,
    decode_latent_code,
    decode_latents,
    decode_tensor,
    encode_latent_code,
    encode_latents,
    encode_tensor,
    join,
    latent_code,
    residual,
    split,
)
from vidkernels.codec.nerv_families import NETWORKS
from vidkernels.codec.nerv_integer import Layer
from vidkernels.codec.nerv_model import Numbers
from vidkernels.functional.nerv.rate import fake_quantize_rate

CONFIG = {"latent": 3, "channels": [4, 2], "strides": [2, 2, 2]}


def laplace(rng, spread, shape):
    return np.rint(rng.laplace(0, spread, shape)).clip(-127, 127).astype(np.int32)


@pytest.mark.parametrize("shape", [(5,), (1,), (7, 3, 3, 3), (2, 1, 1, 1), (64, 9)])
def test_tensors_come_back(shape):
    rng = np.random.default_rng(len(shape))
    values = laplace(rng, 5, shape)
    tensor = Quantised(values, float(np.float32(0.0123)))
    back = decode_tensor(encode_tensor(tensor), shape)
    assert np.array_equal(back.values, values)
    assert back.step == tensor.step


def test_classes_pay_where_channels_differ():
    """Half of the channels hold small numbers: together they take little more than each half with its own table."""
    rng = np.random.default_rng(0)
    values = np.concatenate([laplace(rng, 0.4, (32, 400)), laplace(rng, 12, (32, 400))])
    coded = len(encode_tensor(Quantised(values, 1.0)))
    apart = sum(len(encode_symbols(part.reshape(-1))) for part in (values[:32], values[32:]))
    mixed = rng.permuted(values.reshape(-1)).reshape(values.shape)
    assert coded < apart + 60
    assert coded < 0.9 * len(encode_tensor(Quantised(mixed, 1.0)))


@pytest.mark.parametrize(("frames", "gop"), [(1, 1), (6, 4), (5, 5)])
def test_latents_come_back_group_by_group(frames, gop):
    rng = np.random.default_rng(frames)
    q = np.cumsum(laplace(rng, 3, (frames, 4, 2, 3)), 0, dtype=np.int32)
    follow = np.array([0, 13, PARTS, 40], np.int32)
    code = latent_code(q, 0.25, follow, gop)
    same = decode_latent_code(encode_latent_code(code), 4)
    assert np.array_equal(same.follow, follow)
    assert np.array_equal(same.kind, code.kind)
    for k in range(0, frames, gop):
        part = q[k : k + gop]
        assert np.array_equal(decode_latents(encode_latents(part, code), part.shape, same), part)
    assert np.array_equal(residual(q, code)[0], q[0])
    if frames > 1:
        assert np.array_equal(residual(q, code)[1, 2], q[1, 2] - q[0, 2])  # all of the frame before
        assert np.array_equal(residual(q, code)[1, 0], q[1, 0])  # nothing of it


def test_the_rate_of_the_loss_is_about_that_of_the_coder():
    rng = np.random.default_rng(3)
    for spread in (1.5, 6.0, 20.0):
        values = laplace(rng, spread, (8, 4000))
        x = torch.from_numpy(values).float()
        said = float(fake_quantize_rate(x, torch.ones(8), x.abs().mean(1), mode="round").bits.sum()) / 8
        assert len(encode_tensor(Quantised(values, 1.0))) == pytest.approx(said, rel=0.03)


def test_the_rate_of_predicted_latents_is_about_that_of_the_coder():
    rng = np.random.default_rng(5)
    q = np.cumsum(laplace(rng, 2, (2, 6, 40, 50)), 0, dtype=np.int32)
    follow = np.array([64, 64, 48, 64, 32, 0], np.int32)
    code = latent_code(q, 0.5, follow, 2)
    before, now = (torch.from_numpy(frame).float() * 0.5 for frame in q)
    known = torch.from_numpy(follow / 64).float()[:, None, None] * before
    spread = torch.from_numpy(np.abs(residual(q, code)[1:]).mean((0, 2, 3))).float()
    said = fake_quantize_rate(now, torch.tensor(0.5), spread, mode="round", prediction=known)
    assert torch.allclose(said.value, now, atol=1e-4)
    both = len(encode_latents(q, code)), len(encode_latents(q[:1], code))
    assert 8 * (both[0] - both[1]) == pytest.approx(float(said.bits.sum()), rel=0.05)


def _network():
    return NETWORKS["latent"].network(CONFIG, (10, 12))


@lru_cache
def _coded(seed, exact=True):
    rng = np.random.default_rng(seed)
    weights = {n: Quantised(laplace(rng, 4, s), 0.1) for n, s in _network().shapes.items()}
    code = LatentCode(0.5, np.full(3, 60, np.int32), np.array([0, 1, 1], np.uint8))
    table = np.sort(rng.integers(0, 256, 256)).astype(np.uint8)
    layers = [Layer(128, 256 * k + 77, -5 * k, 20_000 + k, 17 + k, table) for k in range(3)]
    return Numbers(weights, code, layers if exact else None, 9 if exact else 1).chunks()[0]


@pytest.mark.parametrize("exact", [True, False])
def test_a_network_comes_back(exact):
    numbers = Numbers.from_bytes(_coded(1, exact), _network(), exact)
    assert numbers.chunks()[0] == _coded(1, exact)
    assert numbers.stretch == (9 if exact else 1)
    with pytest.raises(ValueError, match="part"):
        Numbers.from_bytes(_coded(1, exact), _network(), not exact)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_decoded(data):
    for decode in (
        lambda: Numbers.from_bytes(data, _network(), True),
        lambda: decode_tensor(data, (3, 5)),
        lambda: decode_latent_code(data, 4),
        lambda: decode_latents(data, (2, 4, 1, 2), LatentCode(1.0, np.zeros(4, np.int32), np.zeros(4, np.uint8))),
        lambda: split(data, 3),
    ):
        try:
            decode()
        except ValueError:
            continue


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_networks_are_refused_or_decoded(seed, damage):
    data = bytearray(_coded(seed))
    for at, byte in damage:
        data[at % len(data)] = byte
    try:
        numbers = Numbers.from_bytes(bytes(data), _network(), True)
        drawn = numbers.drawer(_network()).draw(torch.ones(_network().latent_shape), 0)
    except ValueError:
        return
    assert {n: q.values.shape for n, q in numbers.weights.items()} == _network().shapes
    assert drawn.shape == (10, 12, 3)
    assert drawn.dtype == torch.uint8


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["latent", "channels", "strides"]),
        st.one_of(
            st.none(), st.integers(-3, 1 << 40), st.lists(st.integers(-2, 1 << 20), max_size=20), st.text(max_size=3)
        ),
    )
)
def test_any_config_is_refused_or_a_network(config):
    try:
        network = NETWORKS["latent"].network(config, (64, 48))
    except ValueError:
        return
    assert all(p.is_meta for p in network.module.parameters())  # nothing is allocated for a number in a header


def test_parts():
    assert [bytes(p) for p in split(join(b"", b"ab", b"x" * 300), 3)] == [b"", b"ab", b"x" * 300]
    for bad in (join(b"a"), join(b"a", b"b", b"c"), join(b"a", b"b")[:-1]):
        with pytest.raises(ValueError, match="part"):
            split(bad, 2)
