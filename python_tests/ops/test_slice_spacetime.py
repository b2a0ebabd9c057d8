"""slice_spacetime: the textbook conditional, values by hand, degenerate Gaussians, refusals."""

import math

import pytest
import torch

from vidkernels.functional.splatting.slice import slice_spacetime
from vidkernels.ops.slice_spacetime.cases import CASES
from vidkernels.testing import arguments

BACKENDS = ("reference", "cpu")


def lower(cholesky):
    out = cholesky.new_zeros(len(cholesky), 3, 3)
    rows, columns = torch.tensor([0, 1, 1, 2, 2, 2]), torch.tensor([0, 0, 1, 0, 1, 2])
    out[:, rows, columns] = cholesky
    return out


@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_the_schur_complement(backend):
    means, cholesky, times = arguments(CASES["slice_spacetime"][1], torch.float64)
    factor = lower(cholesky)
    sigma = factor @ factor.mT
    across, time = sigma[:, :2, 2], sigma[:, 2, 2]
    moved, flat, weight = slice_spacetime(means, cholesky, times, backend=backend)
    ahead = times[:, None] - means[:, 2]
    torch.testing.assert_close(moved, means[:, :2] + (across / time[:, None]) * ahead[..., None])
    torch.testing.assert_close(weight, torch.exp(-ahead.square() / (2 * time)))
    small = torch.zeros(len(means), 2, 2, dtype=torch.float64)
    small[:, 0, 0], small[:, 1, 0], small[:, 1, 1] = flat[0].unbind(-1)
    torch.testing.assert_close(
        small @ small.mT, sigma[:, :2, :2] - across[:, :, None] * across[:, None] / time[:, None, None]
    )
    assert flat.shape == (len(times), len(means), 3)
    assert torch.equal(flat[0], flat[-1])


def test_density_factors_into_marginal_and_conditional():
    """exp(-d^T Sigma^-1 d / 2) = weight(t) exp(-e^T cov^-1 e / 2), e from the moved mean."""
    g = torch.Generator().manual_seed(5)
    means = torch.randn(4, 3, generator=g, dtype=torch.float64)
    cholesky = torch.randn(4, 6, generator=g, dtype=torch.float64) + torch.tensor([2.0, 0, 2, 0, 0, 1.5])
    times = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64)
    point = torch.tensor([0.7, -1.1], dtype=torch.float64)
    moved, flat, weight = slice_spacetime(means, cholesky, times)
    for t, now in enumerate(times):
        for n in range(4):
            whole = torch.linalg.solve_triangular(
                lower(cholesky)[n], (torch.cat((point, now[None])) - means[n])[:, None], upper=False
            )
            l11, l21, l22 = flat[t, n]
            x = (point[0] - moved[t, n, 0]) / l11
            y = (point[1] - moved[t, n, 1] - l21 * x) / l22
            joint = torch.exp(-0.5 * whole.square().sum())
            torch.testing.assert_close(weight[t, n] * torch.exp(-0.5 * (x * x + y * y)), joint)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_by_hand(backend):
    """S_tt = 0.09 + 0.16, S_xt = 2 * 0.3: speed 2.4 pixels per unit, variance 4 - 0.36 / 0.25."""
    moved, flat, weight = slice_spacetime(
        torch.tensor([[10.0, 20, 0.5]], dtype=torch.float64),
        torch.tensor([[2.0, 0, 3, 0.3, 0, 0.4]], dtype=torch.float64),
        torch.tensor([0.5, 1.0], dtype=torch.float64),
        backend=backend,
    )
    torch.testing.assert_close(moved[:, 0], torch.tensor([[10.0, 20], [11.2, 20]], dtype=torch.float64))
    torch.testing.assert_close(flat[0, 0], torch.tensor([math.sqrt(4 - 0.36 / 0.25), 0, 3], dtype=torch.float64))
    torch.testing.assert_close(weight[:, 0], torch.tensor([1, math.exp(-0.25 / 0.5)], dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nearly_flat_covariances_keep_their_digits(backend):
    """l33 << l31: the Schur complement in float32 would be rounding only."""
    cholesky = torch.tensor([[1.0, 0, 1, 1, 0, 1e-4]])
    flat = slice_spacetime(torch.zeros(1, 3), cholesky, torch.zeros(1), backend=backend)[1]
    assert flat[0, 0, 0].item() == pytest.approx(1e-4, rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_extent_in_time(backend):
    means = torch.tensor([[1.0, 2, 0.5], [3, 4, 0.5]]).requires_grad_()
    cholesky = torch.tensor([[2.0, 0, 2, 0, 0, 0], [2, 0, 2, 0.1, 0, 0.1]]).requires_grad_()
    moved, flat, weight = slice_spacetime(means, cholesky, torch.tensor([0.5, 0.7]), backend=backend)
    assert weight[:, 0].tolist() == [0, 0]
    assert moved[1, 0].tolist() == [1, 2]
    assert flat[0, 0].tolist() == [2, 0, 2]
    grads = torch.autograd.grad(moved.sum() + flat.sum() + weight.sum(), (means, cholesky))
    assert all(not g[0].any() and g[1].any() and g.isfinite().all() for g in grads)


def test_refusals():
    good = torch.zeros(2, 3), torch.ones(2, 6), torch.zeros(1)
    with pytest.raises(ValueError, match=r"`cholesky` of shape \[N, 6\](.|\n)*means *: shape="):
        slice_spacetime(good[0], torch.ones(2, 3), good[2])
    with pytest.raises(ValueError, match=r"expected `times` of shape \[T\]"):
        slice_spacetime(*good[:2], torch.tensor(0.5))
    assert slice_spacetime(good[0].half(), good[1].half(), good[2])[0].dtype is torch.float32
