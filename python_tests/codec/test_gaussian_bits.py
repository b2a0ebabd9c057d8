"""Integers of a Gaussian video to bytes and back, and what hostile bytes do."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidkernels.codec.block_motion import Motion
from vidkernels.codec.gaussian_bits import (
    ATTRIBUTES,
    Written,
    decode_key,
    encode_key,
    pack,
    unpack,
    z_order,
)
from vidkernels.codec.gaussian_model import Grid, decode_gop, join_gop
from vidkernels.codec.passes import Estimate, PassReader, encode_passes

SETTINGS = settings(max_examples=15, deadline=None)
COUNTS = st.sampled_from([0, 1, 2, 3, 4, 5, 17, 64, 201])
SEEDS = st.integers(0, 2**31)
LARGEST = 1 << 23  # of what Grid.rounded lets into a file


def key_frame(count, seed, spread=1500):
    random = np.random.default_rng(seed)
    q = np.concatenate([random.integers(-40, spread, (count, 2)), random.integers(-99, 99, (count, 6))], 1)
    return q.astype(np.int32)[z_order(q[:, :2], 4)]


GRID = Grid(72, 100, block=16)  # 3 x 4 coarse blocks, 5 x 7 fine ones


def motion(seed, share=0.3, size=60):
    random = np.random.default_rng(seed)
    coarse, fine = (random.integers(-size, size + 1, (2, *shape)).astype(np.int32) for shape in ((3, 4), (5, 7)))
    return Motion(coarse, fine * (random.random((5, 7)) < share))


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


def written(count, frames):
    """The bytes of [(motion, change)]."""
    writer, changes = Written(), GRID.changes(count)
    for frame in frames:
        changes.step(writer, *frame)
    return encode_passes(writer.passes)


def read(data, count, frames):
    reader, changes = PassReader(data), GRID.changes(count)
    for _ in range(frames):
        changes.step(lambda contexts, _: reader.take(len(contexts), contexts))
        yield changes.motion, changes.change
    assert reader.finished()


def assert_comes_back(count, frames):
    for got, meant in zip(read(written(count, frames), count, len(frames)), frames, strict=True):
        assert got[1].dtype == np.int32
        np.testing.assert_array_equal(got[0].coarse, meant[0].coarse)
        np.testing.assert_array_equal(got[0].fine, meant[0].fine)
        np.testing.assert_array_equal(got[1], meant[1])


@given(COUNTS, SEEDS, st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.sampled_from([0.0, 0.1, 1.0]))
@SETTINGS
def test_changes_come_back(count, seed, share, other_share):
    assert_comes_back(count, [(motion(seed + k, s), change(count, seed + k, s)) for k, s in
                              enumerate((other_share, share, 0.2, share, 0.0))])  # fmt: skip


@given(SEEDS, st.integers(0, 22))
@SETTINGS
def test_changes_of_any_size_come_back(seed, bits):
    random = np.random.default_rng(seed)
    large = random.integers(-LARGEST >> bits, (LARGEST >> bits) + 1, (17, ATTRIBUTES), dtype=np.int32)
    assert_comes_back(17, [(motion(seed, 1.0, LARGEST >> bits), large), (motion(seed, 0.0), -large)])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_every_pattern_of_changing_gaussians_comes_back(count):
    for pattern in range(1 << count):
        for before_pattern in (0, 1, (1 << count) - 1, pattern, pattern >> 1):
            now, before = np.zeros((2, count, ATTRIBUTES), np.int32)
            now[[k for k in range(count) if pattern >> k & 1], 3] = -2
            before[[k for k in range(count) if before_pattern >> k & 1], 6] = 9
            assert_comes_back(count, [(motion(0, 0.0), before), (motion(1, 0.5), now)])


def test_every_set_of_changing_numbers_comes_back():
    now = np.array([[(mask >> k & 1) * (k - 9) for k in range(ATTRIBUTES)] for mask in range(256)], np.int32)
    assert_comes_back(256, [(motion(0), now), (motion(1), now[::-1].copy())])


def test_nothing_that_changes_costs_next_to_nothing():
    still = np.zeros((5000, ATTRIBUTES), np.int32)
    for steady in (motion(0, 0.0, 0), motion(0, 0.0)):  # no motion, and always the same
        one, many = (len(written(5000, [(steady, still)] * count)) for count in (1, 9))
        assert one < 200
        assert many - one < 8 * 20


def test_what_changed_before_makes_the_next_change_cheaper():
    """The contexts are worth something: the same places again, against others."""
    at_rest, before = motion(0, 0.0, 0), np.zeros((4000, ATTRIBUTES), np.int32)
    before[100:500] = 1
    again, elsewhere = before.copy(), np.roll(before, 2000, 0)
    again[::3] = elsewhere[::3] = 0
    costs = [len(written(4000, [(at_rest, before), (at_rest, after)])) for after in (again, elsewhere)]
    assert costs[0] < costs[1] - 20


@given(st.sampled_from([201]), SEEDS)
@SETTINGS
def test_an_estimate_is_near_what_passes_take(count, seed):
    writer, changes, estimate = Written(), GRID.changes(50 * count), Estimate()
    for k in range(4):
        changes.step(writer, motion(seed + k), change(50 * count, seed + k, 0.4))
    estimate.add(writer.passes[:7])
    estimate.add(writer.passes[7:])
    size = len(encode_passes(writer.passes))
    assert abs(estimate.bytes() - size) < 0.1 * size


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
    key = key_frame(count, seed, 200)
    pictures, steps = [key * GRID.steps], []
    for k in range(frames - 1):
        steps.append((motion(seed + k), change(count, seed + k, 0.3)))
        pictures.append(GRID.moved(pictures[-1], steps[-1][0]) + steps[-1][1] * GRID.steps)
    return join_gop(count, encode_key(key), written(count, steps)), pictures


@given(st.sampled_from([1, 2, 5, 40]), st.integers(1, 5), SEEDS)
@SETTINGS
def test_a_gop_comes_back(count, frames, seed):
    data, pictures = gop(count, frames, seed)
    np.testing.assert_array_equal(list(decode_gop(memoryview(data), frames, GRID)), pictures)


def test_blocks_take_along_what_is_in_them():
    still = motion(0, 0.0, 0)
    still.coarse[:, 1, 2] = 24, -8  # 32 to 64 pixels down, 64 to 96 to the right
    still.fine[:, 2, 5] = -16, 0  # the right upper quarter of it
    at = np.array([[63.9, 40.0], [64.0, 32.0], [80.0, 47.9], [80.0, 48.0], [95.0, 63.0], [70.0, 64.0]])
    q = np.zeros((6, ATTRIBUTES), np.int32)
    q[:, :2] = np.floor(16 * at)
    q[:, 2:] = 7
    moved = GRID.moved(q, still) - q
    expected = [(0, 0), (24, -8), (8, -8), (24, -8), (24, -8), (0, 0)]
    np.testing.assert_array_equal(moved[:, :2], expected)
    assert not moved[:, 2:].any()


def test_what_is_outside_of_the_picture_moves_with_the_nearest_block():
    field = motion(3)
    q = np.zeros((4, ATTRIBUTES), np.int32)
    q[:, :2] = [(-500, -1), (16 * 3000, 16 * 30), (16 * 50, 16 * 5000), (-1, 16 * 71)]
    whole = field.whole()
    assert whole.shape == (2, 5, 7)
    expected = [whole[:, 0, 0], whole[:, 1, 6], whole[:, 4, 3], whole[:, 4, 0]]
    np.testing.assert_array_equal((GRID.moved(q, field) - q)[:, :2], expected)


def test_a_gop_of_another_number_of_frames_is_refused():
    data, _ = gop(40, 3, 0)
    for frames in (1, 2, 4):
        with pytest.raises(ValueError, match=r"."):
            list(decode_gop(memoryview(data), frames, GRID))


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
        list(decode_gop(memoryview(data), frames, GRID))


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
                for q in decode_gop(memoryview(bad), 4, GRID):
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
            list(decode_gop(memoryview(join_gop(count, key, b"")), 1, GRID))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def test_a_key_frame_far_outside_of_any_picture_is_refused():
    q = key_frame(10, 0)
    q[3, 0] = (1 << 24) + 1
    with pytest.raises(ValueError, match="outside"):
        decode_key(memoryview(encode_key(q)), 10)
