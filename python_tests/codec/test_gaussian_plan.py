"""How a Gaussian fit is steered from frame to frame."""

import pytest

from vidkernels.codec.gaussian_plan import MARGIN, Clock, Plan

PLAN = Plan(count=100, key_steps=50, steps=20, price=0.002)


def test_steps_follow_the_time_that_is_left():
    assert PLAN.quicker(took=1.0, allowed=1.0).steps == 20
    assert PLAN.quicker(took=1.0, allowed=1.2).steps == 24
    assert PLAN.quicker(took=1.0, allowed=9.0).steps == 30  # not by more than half at once
    assert PLAN.quicker(took=1.0, allowed=0.0).steps == 10
    plan = PLAN
    for _ in range(20):
        plan = plan.quicker(took=1.0, allowed=0.0)
    assert plan.steps == 4


def test_steering_settles_where_the_time_is_spent():
    """A machine that takes 0.1 s for a frame and 0.02 s for each step of it."""
    plan, left = PLAN, 60.0
    for done in range(100):
        took = 0.1 + 0.02 * plan.steps
        left -= took
        plan = plan.quicker(took, Clock().allowed(left, 99 - done, 0, 0))
    assert abs(left) < 1.0


def test_the_clock_keeps_time_for_key_frames_and_coding():
    assert Clock(key=3.0, adding=0.1).allowed(left=20.0, frames=10, keys=2, uncoded=5) == pytest.approx(0.95)
    assert Clock(key=3.0).allowed(left=2.0, frames=10, keys=1, uncoded=0) == 0


def test_frames_that_are_left_make_up_for_those_that_are_done():
    plan = Plan(count=100, key_steps=50, steps=20, price=0.002, psnr=35.0 - MARGIN)
    assert plan.better(last=35.0, mean=35.0, done=10, left=10).price == pytest.approx(0.002)
    assert plan.better(last=35.0, mean=34.9, done=10, left=10).price < 0.002  # good, but not good enough for the mean
    assert plan.better(last=35.0, mean=35.1, done=10, left=10).price > 0.002
    assert plan.better(last=35.1, mean=34.9, done=10, left=10).price == pytest.approx(0.002)


def test_bytes_too_many_matter_more_near_the_end():
    plan = Plan(count=100, key_steps=50, steps=20, price=0.002, bytes=10_000)
    assert plan.cheaper(spent=5000, due=5000.0, done=10, left=10).price == pytest.approx(0.002)
    early, late = (plan.cheaper(spent=5100, due=5000.0, done=k, left=20 - k).price for k in (1, 18))
    assert 0.002 < early < late
    assert plan.cheaper(spent=4900, due=5000.0, done=18, left=2).price < 0.002
    assert plan.cheaper(spent=9900, due=9800.0, done=20, left=0).price > 0.002
