"""Motion of blocks against shifts that are known."""

import numpy as np
import pytest
import torch

from vidkernels.codec.block_motion import UNITS, block_motion, shapes, still


def texture(height, width, seed=0):
    """A smooth picture [H, W, 3] uint8, and the same one drawn anywhere: f(dx, dy)."""
    random = np.random.default_rng(seed)
    waves = random.uniform(-0.25, 0.25, (12, 2)), random.uniform(0, 6, 12), random.uniform(4, 12, 12)

    def at(dx=0.0, dy=0.0):
        y, x = np.mgrid[:height, :width].astype(np.float64)
        value = np.full((height, width), 128.0)
        for (fx, fy), phase, size in zip(*waves, strict=True):
            value += size * np.sin(fx * (x - dx) + fy * (y - dy) + phase)
        return torch.from_numpy(np.repeat(value.round().clip(0, 255)[..., None], 3, 2).astype(np.uint8))

    return at


def none(height, width, block=16):
    return still(height, width, block).coarse


@pytest.mark.parametrize("shift", [(0.5, -0.25), (3.0, 2.0), (-1.75, 0.0), (0.0, 9.5)])
def test_a_shift_is_found_to_an_eighth_of_a_pixel(shift):
    at = texture(120, 160)
    motion = block_motion(at(), at(*shift), none(120, 160), 16)
    assert motion.coarse.dtype == motion.fine.dtype == np.int32
    inner = motion.whole()[:, 1:-2, 1:-1] / UNITS  # at the border it leaves the picture
    wrong = np.abs(inner - np.array(shift)[:, None, None]).max(0) > 0.125
    assert wrong.mean() < 0.1


def test_what_stands_still_has_no_motion():
    at = texture(72, 100)
    motion = block_motion(at(), at(), none(72, 100), 16)
    assert not motion.coarse.any()
    assert not motion.fine.any()
    flat = torch.full((72, 100, 3), 90, dtype=torch.uint8)
    assert not block_motion(flat, flat, none(72, 100), 16).whole().any()


def test_fine_blocks_follow_the_edge_of_what_moves():
    """The right half moves; its edge lies in the middle of coarse blocks."""
    here, there = texture(128, 160, 1), texture(128, 160, 2)
    before, after = here().clone(), here().clone()
    before[:, 80:], after[:, 80:] = there()[:, 80:], there(0.0, 3.0)[:, 80:]
    motion = block_motion(before, after, none(128, 160), 16)
    whole = motion.whole() / UNITS
    assert np.abs(whole[1, 1:-1, 5:-1] - 3).mean() < 0.3
    assert np.abs(whole[1, 1:-1, :4]).mean() < 0.3
    assert motion.fine.any()


def test_the_last_vectors_are_kept_where_they_show_as_much():
    flat = torch.full((64, 64, 3), 90, dtype=torch.uint8)
    last = none(64, 64) + 24
    np.testing.assert_array_equal(block_motion(flat, flat, last, 16).coarse, last)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (7, 9), (8, 8), (33, 47), (65, 31)])
def test_any_size(height, width):
    random = np.random.default_rng(0)
    frames = torch.from_numpy(random.integers(0, 256, (2, height, width, 3)).astype(np.uint8))
    motion = block_motion(*frames, none(height, width, 32), 32)
    coarse, fine = shapes(height, width, 32)
    assert motion.coarse.shape == (2, *coarse)
    assert motion.fine.shape == motion.whole().shape == (2, *fine)


def test_the_same_for_any_number_of_threads():
    at, threads, found = texture(96, 128), torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(block_motion(at(), at(1.3, -0.7), none(96, 128), 16).whole())
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(*found)
