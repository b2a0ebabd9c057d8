"""motion_eval: known curves, an independent B-spline, times outside, refusals."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from vidkernels.functional.splatting.motion import motion_eval

BACKENDS = ("reference", "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("term", range(12))
def test_each_term_alone(backend, term):
    times = torch.tensor([0.0, 0.3, 1.0, -0.7], dtype=torch.float64)
    coefficients = torch.zeros(2, 12, 3, dtype=torch.float64)
    coefficients[1, term, 2] = 2.5
    out = motion_eval(coefficients, times, backend=backend)
    t = times.numpy()
    waves = [np.cos(n * math.pi * t) for n in (1, 2, 3, 4)] + [np.sin(n * math.pi * t) for n in (1, 2, 3, 4)]
    expected = torch.zeros(4, 2, 3, dtype=torch.float64)
    expected[:, 1, 2] = 2.5 * torch.from_numpy([t**0, t, t**2, t**3, *waves][term])
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("terms", [4, 5, 12, 31])
def test_spline_agrees_with_scipy(backend, terms):
    rng = np.random.default_rng(terms)
    control, times = rng.normal(size=(terms, 3)), np.concatenate(([0.0, 1.0], rng.random(20)))
    knots = (np.arange(terms + 4) - 3) / (terms - 3)  # uniform, three before 0 and three behind 1
    out = motion_eval(torch.from_numpy(control)[None], torch.from_numpy(times), "bspline", backend=backend)
    torch.testing.assert_close(out[:, 0], torch.from_numpy(BSpline(knots, control, 3)(times)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_spline_properties(backend):
    """Ends by hand, constant outside, a straight row of control points is a straight line."""
    control = torch.tensor([[[1.0], [2], [4], [7], [3]]], dtype=torch.float64)
    times = torch.tensor([0.0, 1.0, -3.0, 9.0], dtype=torch.float64).requires_grad_()
    out = motion_eval(control, times, "bspline", backend=backend)
    first, last = (1 + 8 + 4) / 6, (4 + 28 + 3) / 6
    torch.testing.assert_close(out.flatten(), torch.tensor([first, last, first, last], dtype=torch.float64))
    (speed,) = torch.autograd.grad(out.sum(), times)
    assert speed[2:].tolist() == [0, 0]
    assert speed[0].item() == pytest.approx((4 - 1) / 2 * 2)  # two segments
    line = torch.arange(6, dtype=torch.float64).reshape(1, 6, 1)
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(motion_eval(line, t, "bspline", backend=backend).flatten(), 1 + 3 * t)


def test_one_read_of_the_coefficients_serves_all_times():
    g = torch.Generator().manual_seed(0)
    coefficients, times = torch.randn(150, 12, 3, generator=g), torch.rand(9, generator=g)
    together = motion_eval(coefficients, times)
    for t in range(9):
        assert torch.equal(motion_eval(coefficients, times[t : t + 1])[0], together[t])


def test_refusals():
    with pytest.raises(ValueError, match=r"expected 12 \(4 polynomial, 4 cosine, 4 sine\) coefficients(.|\n)*got 11"):
        motion_eval(torch.zeros(1, 11, 2), torch.zeros(1))
    with pytest.raises(ValueError, match="at least 4"):
        motion_eval(torch.zeros(1, 3, 2), torch.zeros(1), "bspline")
    with pytest.raises(ValueError, match="expected `kind`"):
        motion_eval(torch.zeros(1, 12, 2), torch.zeros(1), "bezier")
    with pytest.raises(ValueError, match=r"expected `coefficients` of shape \[N, K, D\]"):
        motion_eval(torch.zeros(12, 2), torch.zeros(1))
    assert motion_eval(torch.zeros(1, 12, 2).bfloat16(), torch.zeros(1)).dtype is torch.float32
