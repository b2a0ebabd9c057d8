"""Integers of a Gaussian video to bytes and back, and what hostile bytes do."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidkernels.codec.gaussian_bits import (
    ATTRIBUTES,
    decode_change,
    decode_key,
    encode_change,
    encode_key,
    pack,
    unpack,
    z_order,
)
from vidkernels.codec.gaussian_model import decode_gop, join_gop

SETTINGS = settings(max_examples=15, deadline=None)
COUNTS = st.sampled_from([0, 1, 2, 3, 4, 5, 17, 64, 201])
SEEDS = st.integers(0, 2**31)
LARGEST = 1 << 23  # of what Grid.rounded lets into a file


def key_frame(count, seed, spread=1500):
    random = np.random.default_rng(seed)
    q = np.concatenate([random.integers(-40, spread, (count, 2)), random.integers(-99, 99, (count, 6))], 1)
    return q.astype(np.int32)[z_order(q[:, :2], 4)]


def change(count, seed, share):
    random = np.random.default_rng(seed)
    rows = random.random(count) < share
    return (random.integers(-5, 6, (count, ATTRIBUTES)) * rows[:, None]).astype(np.int32)


@given(COUNTS, SEEDS)
@SETTINGS
def test_a_key_frame_comes_back(count, seed):
    q = key_frame(count, seed)
    got = decode_key(memoryview(encode_key(q)), count)
    assert got.dtype == np.int32
    assert got.shape == (count, ATTRIBUTES)
    np.testing.assert_array_equal(got, q)


@given(COUNTS, SEEDS, st.integers(0, 7))
@SETTINGS
def test_a_key_frame_in_any_order_and_of_extreme_numbers_comes_back(count, seed, bits):
    """Only the bytes get more: the order and the size of the numbers are no part of the format."""
    random = np.random.default_rng(seed)
    q = random.integers(-LARGEST >> bits, (LARGEST >> bits) + 1, (count, ATTRIBUTES), dtype=np.int32)
    np.testing.assert_array_equal(decode_key(memoryview(encode_key(q)), count), q)


@given(COUNTS, SEEDS, st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.sampled_from([0.0, 0.1, 1.0]))
@SETTINGS
def test_a_change_comes_back(count, seed, share, share_before):
    before, now = change(count, seed + 1, share_before), change(count, seed, share)
    got = decode_change(memoryview(encode_change(now, before)), before)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, now)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_every_pattern_of_changing_gaussians_comes_back(count):
    for pattern in range(1 << count):
        for before_pattern in (0, 1, (1 << count) - 1, pattern, pattern >> 1):
            now, before = np.zeros((2, count, ATTRIBUTES), np.int32)
            now[[k for k in range(count) if pattern >> k & 1], 3] = -2
            before[[k for k in range(count) if before_pattern >> k & 1], 6] = 9
            np.testing.assert_array_equal(decode_change(memoryview(encode_change(now, before)), before), now)


def test_nothing_that_changes_costs_next_to_nothing():
    still = np.zeros((5000, ATTRIBUTES), np.int32)
    assert len(encode_change(still, still)) < 60


def test_what_changed_before_makes_the_next_change_cheaper():
    """The contexts are worth something: the same ten places again, against ten others."""
    before = np.zeros((4000, ATTRIBUTES), np.int32)
    before[100:500] = 1
    elsewhere = np.roll(before, 2000, 0)
    elsewhere[::3] = 0
    again = before.copy()
    again[::3] = 0
    assert len(encode_change(again, before)) < len(encode_change(elsewhere, before)) - 20


def test_neighbours_on_the_curve_are_cheap():
    q = key_frame(2000, 3)
    shuffled = q[np.random.default_rng(0).permutation(2000)]
    assert len(encode_key(q)) < 0.9 * len(encode_key(shuffled))


# ---- the curve


@given(COUNTS, SEEDS, st.integers(1, 40))
@SETTINGS
def test_z_order_is_a_permutation_and_sorted_it_stays(count, seed, cell):
    positions = np.random.default_rng(seed).integers(-300, 3000, (count, 2)).astype(np.int32)
    order = z_order(positions, cell)
    assert sorted(order.tolist()) == list(range(count))
    again = z_order(positions[order], cell)
    np.testing.assert_array_equal(positions[order][again], positions[order])


def test_z_order_by_hand():
    x, y = np.meshgrid(np.arange(4), np.arange(4))
    positions = np.stack([x.ravel(), y.ravel()], 1)
    bits = [(px & 1) | (py & 1) << 1 | (px >> 1) << 2 | (py >> 1) << 3 for px, py in positions]
    np.testing.assert_array_equal(z_order(positions, 1), np.argsort(bits))
    tied = np.array([[1, 1], [1, 0], [0, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(z_order(tied, 2), [3, 4, 2, 1, 0])
    np.testing.assert_array_equal(z_order(tied, 0), z_order(tied, 1))


# ---- groups of pictures


def gop(count, frames, seed):
    q = key_frame(count, seed)
    pictures, coded, before = [q], [encode_key(q)], np.zeros_like(q)
    for k in range(frames - 1):
        step = change(count, seed + k, 0.3)
        coded.append(encode_change(step, before))
        pictures.append(pictures[-1] + step)
        before = step
    return join_gop(count, coded), pictures


@given(st.sampled_from([1, 2, 5, 40]), st.integers(1, 5), SEEDS)
@SETTINGS
def test_a_gop_comes_back(count, frames, seed):
    data, pictures = gop(count, frames, seed)
    np.testing.assert_array_equal(list(decode_gop(memoryview(data), frames)), pictures)


def test_a_gop_of_another_number_of_frames_is_refused():
    data, _ = gop(40, 3, 0)
    for frames in (0, 1, 2, 4):
        with pytest.raises(ValueError, match="parts"):
            list(decode_gop(memoryview(data), frames))


@given(st.lists(st.binary(max_size=20), max_size=6))
@SETTINGS
def test_parts_come_back(parts):
    assert [bytes(p) for p in unpack(memoryview(pack(*parts)), len(parts))] == parts
    with pytest.raises(ValueError, match="expected"):
        unpack(memoryview(pack(*parts)), len(parts) + 1)


@given(st.binary(max_size=200), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_random_bytes_are_refused(data, frames):
    with pytest.raises(ValueError, match=r"."):
        list(decode_gop(memoryview(data), frames))


def mutations(data, count, seed):
    random = np.random.default_rng(seed)
    for _ in range(count):
        bad = bytearray(data)
        for _ in range(random.integers(1, 4)):
            kind, at = random.integers(4), int(random.integers(len(bad)))
            if kind == 0:
                bad[at] ^= 1 << int(random.integers(8))
            elif kind == 1:
                bad[at : at + 4] = (b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff" * 4)[int(random.integers(3))]
            elif kind == 2:
                del bad[at : at + int(random.integers(1, 9))]
            else:
                bad[at:at] = random.bytes(int(random.integers(1, 9)))
            if not bad:
                break
        yield bytes(bad)


def survive(count):
    good, _ = gop(60, 4, 1)
    refused = 0
    tracemalloc.start()
    try:
        for bad in mutations(good, count, 2):
            try:
                for q in decode_gop(memoryview(bad), 4):
                    assert q.dtype == np.int32
                    assert q.shape[1] == ATTRIBUTES
            except ValueError:
                refused += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused > count / 2
    assert peak < 32 << 20


def test_mutated_gops_raise_nothing_but_value_errors_and_take_little_memory():
    survive(120)


@pytest.mark.slow
def test_many_mutated_gops():
    survive(20_000)


def test_a_count_that_the_bytes_cannot_hold_is_refused_before_memory_is_taken():
    key = encode_key(key_frame(60, 0))
    for count in (1 << 22, (1 << 22) + 1, (1 << 32) - 1, 8 * len(key) + 1):
        tracemalloc.start()
        with pytest.raises(ValueError, match="cannot be in"):
            list(decode_gop(memoryview(join_gop(count, [key])), 1))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def test_a_key_frame_far_outside_of_any_picture_is_refused():
    q = key_frame(10, 0)
    q[3, 0] = (1 << 24) + 1
    with pytest.raises(ValueError, match="outside"):
        decode_key(memoryview(encode_key(q)), 10)
