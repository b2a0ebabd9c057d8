"""Gradient descent on Gaussians: the kernel against plain torch, and what the fits promise."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vidkernels import _native
from vidkernels.codec import gaussian_fit
from vidkernels.codec.gaussian_fit import LEAST, Moments, descend, fit_change, fit_key, relocations, seeds
from vidkernels.codec.gaussian_model import Grid

pytestmark = pytest.mark.skipif(_native._C is None, reason="needs the compiled module")


@pytest.fixture
def start(moving_clip, generator):
    """make(count, height, width): a frame and Gaussians that have begun to fit it."""

    def make(count=40, height=35, width=50):
        frame = moving_clip(1, height, width)[0]
        even = torch.full((height, width), 1 / (height * width))
        return frame, seeds(frame, even, count, generator)

    return make


def both(numbers, previous, frame, steps, **more):
    """(numbers, moments, errors) after some steps by the kernel, and by plain torch."""
    results = []
    for backend in (None, "reference"):
        current, moments = numbers.clone(), replace(Moments.zeros(len(numbers)), variance_steps=2)
        errors = descend(current, previous, moments, frame, torch.linspace(1, 0.5, steps), backend=backend, **more)
        assert (moments.mean_steps, moments.variance_steps) == (steps, steps + 2)
        results.append((current, moments, errors))
    return results


SHRINK = np.array([0.05, 0.05, 0.2, 0.2, 0.2, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("with_previous", [False, True])
@pytest.mark.parametrize("shrink", [None, SHRINK])
@pytest.mark.parametrize("rounded", [False, True])
def test_one_step_equals_plain_torch(start, with_previous, shrink, rounded):
    frame, numbers = start()
    previous = numbers.clone() if with_previous else None
    numbers[:, :2] += 0.3
    quanta = Grid(35, 50).quanta if rounded else None
    (a, ma, ea), (b, mb, eb) = both(numbers, previous, frame, 1, quanta=quanta, shrink=shrink)
    torch.testing.assert_close(ea, eb, rtol=1e-5, atol=1e-9)
    scale = mb.mean.abs().amax(0)
    assert ((ma.mean - mb.mean).abs().amax(0) <= 1e-4 * scale).all()
    assert ((ma.variance - mb.variance).abs().amax(0) <= 2e-4 * mb.variance.amax(0)).all()
    # The first step of Adam is as long as its rate, and its sign hangs on rounding where a gradient is next to nothing.
    sure = mb.mean.abs() > 1e-3 * scale
    assert sure.float().mean() > 0.7
    assert ((a - b).abs()[sure] <= 1e-3).all()
    assert (b != numbers).any(0).all()


def test_a_few_steps_descend_as_plain_torch_does(start):
    frame, numbers = start()
    (a, _, ea), (b, _, eb) = both(numbers, None, frame, 6)
    torch.testing.assert_close(ea, eb, rtol=1e-3, atol=0)
    assert (a - b).abs().median() < 1e-4
    assert ea[-1] < ea[0]


def test_where_nothing_is_felt_nothing_moves(start):
    frame, numbers = start()
    numbers[5, 0], numbers[6, 1] = -900.0, 5000.0
    numbers[7, 2] = float("nan")
    for current, moments, errors in both(numbers, None, frame, 3):
        torch.testing.assert_close(current[5:8], numbers[5:8], rtol=0, atol=0, equal_nan=True)
        assert not moments.variance[5:8].any()
        assert errors.isfinite().all()


def test_shapes_stay_above_the_least(start):
    frame, numbers = start()
    numbers[:, 2], numbers[:, 4] = LEAST, LEAST
    for current, *_ in both(numbers, None, frame, 4):
        assert (current[:, [2, 4]] >= np.float32(LEAST)).all()


def test_a_key_frame_gets_better_with_steps_and_gaussians(moving_clip):
    frame, grid = moving_clip(1, 48, 64)[0], Grid(48, 64)

    def error(count, steps):
        q, _ = fit_key(frame, grid, count, steps, torch.Generator().manual_seed(3))
        assert q.shape == (count, 8)
        assert q.dtype == np.int32
        return float((grid.draw(grid.values(q * grid.steps)).float() - frame.float()).square().mean())

    assert error(60, 80) < 0.6 * error(60, 6)
    assert error(100, 80) < error(20, 80)


@pytest.mark.parametrize(
    ("count", "steps", "height", "width"), [(1, 1, 1, 1), (1, 0, 5, 3), (7, 3, 47, 61), (2, 9, 1, 64)]
)
def test_key_frames_of_odd_sizes(generator, count, steps, height, width):
    frame = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=generator)
    q, moments = fit_key(frame, Grid(height, width), count, steps, torch.Generator().manual_seed(0))
    assert q.shape == (count, 8)
    assert moments.variance_steps == steps
    assert moments.variance.isfinite().all()


def test_the_same_bits_for_a_seed_and_for_any_threads(moving_clip):
    frames, grid = moving_clip(2, 48, 64), Grid(48, 64)

    def work(seed):
        q, moments = fit_key(frames[0], grid, 60, 30, torch.Generator().manual_seed(seed))
        q = q * grid.steps
        return q, fit_change(q, moments, frames[1], grid, 8, 0.001)[0]

    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 2):
            torch.set_num_threads(n)
            results.append(work(4))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(work(5)[0], results[0][0])


def test_what_stands_still_does_not_change_at_a_high_price(moving_clip):
    frame, grid = moving_clip(1, 48, 64)[0], Grid(48, 64)
    q, moments = fit_key(frame, grid, 60, 60, torch.Generator().manual_seed(0))
    q = q * grid.steps
    shown = grid.draw(grid.values(q))
    assert not fit_change(q, moments, shown, grid, 10, 5.0)[0].any()


def test_a_change_follows_the_picture_and_its_price(moving_clip):
    frames, grid = moving_clip(2, 48, 64), Grid(48, 64)

    def follow(price):
        q, moments = fit_key(frames[0], grid, 60, 60, torch.Generator().manual_seed(0))
        q = q * grid.steps
        after = q + fit_change(q, moments, frames[1], grid, 20, price)[0] * grid.steps
        error = [float((grid.draw(grid.values(x)).float() - frames[1].float()).square().mean()) for x in (q, after)]
        return int((after != q).sum()), error

    (many, (still, moved)), (few, _) = follow(1e-4), follow(0.05)
    assert moved < still
    assert few < many


def test_gaussians_that_do_nothing_go_to_where_the_error_is():
    grid, frame = Grid(48, 64), torch.zeros(48, 64, 3, dtype=torch.uint8)
    frame[16:24, 40:48] = 255  # one cell
    values = torch.zeros(4, 8)
    values[:, 2] = values[:, 4] = 2.0
    values[:, :2] = torch.tensor([[20.0, 20.0], [-50.0, 5.0], [10.0, 40.0], [30.0, 500.0]])
    values[:, 5] = 0.3
    values[2, 5] = 1e-4  # hardly shows
    rows, fresh = relocations(values, frame, grid, 0.001)
    assert rows[0] == 1  # outside, like 3; which of the two is first is their order
    np.testing.assert_allclose(fresh[0, :2], [44.0, 20.0])
    assert 0 not in rows  # it shows, and draws where nothing should be: not to be helped by others
    assert not fresh[:, 5:].any()
    # Nothing moves where the picture is right, or where a bit is worth more than all of the error.
    assert len(relocations(values, grid.draw(values), grid, 0.001)[0]) == 0
    assert len(relocations(values, frame, grid, 10.0)[0]) == 0


def test_what_comes_into_view_gets_gaussians(monkeypatch):
    """A square appears on a still background; some Gaussians lie outside and are of use there."""
    grid = Grid(48, 64)
    frame = torch.full((48, 64, 3), 60, dtype=torch.uint8)
    q, moments = fit_key(frame, grid, 60, 60, torch.Generator().manual_seed(0))
    q = q * grid.steps
    q[:12, :2] = -100 * 16
    target = grid.draw(grid.values(q)).clone()
    target[8:24, 8:24] = 250

    def follow():
        change, _ = fit_change(q, moments, target, grid, 100, 1e-3)
        after = grid.draw(grid.values(q + change * grid.steps))
        return change, float((after.float() - target.float()).square().mean())

    change, error = follow()
    assert (np.abs(change[:12, :2]).max(1) > 50).any()
    monkeypatch.setattr(gaussian_fit, "_BITS_OF_NEW", float("inf"))
    change, without = follow()
    assert not change[:12].any()
    assert error < 0.85 * without
