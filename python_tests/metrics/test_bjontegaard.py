"""BD-rate and BD-PSNR: curves whose distance is known."""

import math

import numpy as np
import pytest

from vidkernels.metrics import bd_psnr, bd_rate

ANCHOR = [(120.0, 30.1), (230.0, 33.4), (500.0, 36.2), (1100.0, 38.9)]


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.37, 3.0])
def test_rates_times_a_factor(factor):
    test = [(rate * factor, quality) for rate, quality in ANCHOR]
    assert bd_rate(ANCHOR, test) == pytest.approx((factor - 1) * 100, abs=1e-9)
    assert bd_rate(test, ANCHOR) == pytest.approx((1 / factor - 1) * 100, abs=1e-9)


@pytest.mark.parametrize("gain", [-2.0, 0.0, 0.7])
def test_qualities_plus_a_constant(gain):
    test = [(rate, quality + gain) for rate, quality in ANCHOR]
    assert bd_psnr(ANCHOR, test) == pytest.approx(gain, abs=1e-9)


def test_straight_lines_have_the_distance_of_their_middles():
    """quality = 10 log10(rate) against 10 log10(rate) + 3 on shifted ranges; only the overlap counts."""
    anchor = [(10.0**x, 10 * x) for x in np.linspace(1, 3, 5)]
    test = [(10.0**x, 10 * x + 3) for x in np.linspace(2, 4, 4)]
    assert bd_psnr(anchor, test) == pytest.approx(3, abs=1e-9)
    assert bd_rate(anchor, test) == pytest.approx((10**-0.3 - 1) * 100, abs=1e-9)


def test_order_and_unit_do_not_matter():
    test = [(rate * 1.2, quality - 0.3 * i) for i, (rate, quality) in enumerate(ANCHOR)]
    expected = bd_rate(ANCHOR, test)
    assert bd_rate(ANCHOR[::-1], test[2:] + test[:2]) == expected
    assert bd_rate([(r / 8, q) for r, q in ANCHOR], [(r / 8, q) for r, q in test]) == pytest.approx(expected, abs=1e-9)


def test_two_point_curves_are_lines():
    assert bd_psnr([(10, 30), (1000, 40)], [(10, 31), (1000, 43)]) == pytest.approx(2, abs=1e-12)


def test_interpolation_passes_through_the_points_and_stays_monotone():
    """PCHIP does not overshoot: a plateau between two steps keeps the integral between the stairs' bounds."""
    steps = [(1, 30.0), (10, 30.001), (100, 40.0), (1000, 40.001)]
    flat = [(1, 30.0), (1000, 30.0001)]
    gain = bd_psnr(flat, steps)
    assert (0 + 0 + 10) / 3 < gain < (0 + 10 + 10) / 3
    assert gain == pytest.approx(5, abs=0.01)


def test_bad_curves_are_refused():
    for words, test in [
        ("two or more points", ANCHOR[:1]),
        ("two or more points", []),
        ("rates above 0", [(0, 30), (10, 31)]),
        ("finite", [(1, 30), (10, math.inf)]),
        ("rise with the rate", [(100, 33), (200, 32), (300, 35)]),
        ("rise with the rate", [(100, 33), (100, 34)]),
        ("no quality in common", [(100, 50), (200, 60)]),
    ]:
        with pytest.raises(ValueError, match=words):
            bd_rate(ANCHOR, test)
    with pytest.raises(ValueError, match="no rate in common"):
        bd_psnr(ANCHOR, [(2000, 30), (3000, 40)])
