"""newton_schulz: singular values and vectors, shapes, lists, precision, refusals."""

import pytest
import torch

from vidkernels.functional.nerv.optim import QUINTIC, newton_schulz
from vidkernels.ops.newton_schulz.op import newton_schulz as op

BACKENDS = ("reference", "cpu", "simt")


@pytest.fixture(params=BACKENDS)
def backend(request):
    reason = op.why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    return request.param


def matrix(m, n, seed=0):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def iterated(s, steps=5):
    """What the iteration does to one singular value."""
    a, b, c = QUINTIC
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return s


@pytest.mark.parametrize(("m", "n"), [(8, 50), (50, 8), (33, 70), (1, 9), (9, 1)])
def test_vectors_stay_and_values_follow_the_polynomial(backend, m, n):
    x = matrix(m, n)
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    expected = u @ torch.diag(iterated(s / x.double().norm())) @ v
    got = newton_schulz(x, backend=backend)
    torch.testing.assert_close(got, expected.float(), rtol=0, atol=2e-5)
    values = torch.linalg.svdvals(got)
    assert float(values.min()) > 0.65
    assert float(values.max()) < 1.25


def test_diagonal_by_hand(backend):
    """One step of x -> 1.5 x - 0.5 x^3, the classical iteration, on (0.6, 0.8)."""
    got = newton_schulz(torch.diag(torch.tensor([0.6, 0.8])), steps=1, coefficients=(1.5, -0.5, 0.0), backend=backend)
    torch.testing.assert_close(got, torch.diag(torch.tensor([0.9 - 0.108, 1.2 - 0.256])), rtol=1e-6, atol=1e-7)


def test_the_classical_iteration_converges_to_orthogonal(backend):
    q = newton_schulz(matrix(12, 40), steps=16, coefficients=(1.5, -0.5, 0.0), backend=backend)
    torch.testing.assert_close(q @ q.T, torch.eye(12), rtol=0, atol=2e-4)


def test_length_and_sign_do_not_matter(backend):
    x = matrix(7, 20)
    got = newton_schulz(x, backend=backend)
    for factor in (1e-6, 1024.0, 1e20):
        torch.testing.assert_close(newton_schulz(x * factor, backend=backend), got, rtol=0, atol=1e-5)
    torch.testing.assert_close(newton_schulz(-x, backend=backend), -got, rtol=0, atol=1e-6)


def test_a_matrix_does_not_see_the_others(backend):
    """Alone, in a list and in a batch it gets the same bits."""
    xs = [matrix(m, n, seed=i) for i, (m, n) in enumerate([(5, 40), (64, 9), (17, 17), (5, 40), (3, 2)])]
    together = newton_schulz(xs, backend=backend)
    for x, got in zip(xs, together):
        assert got.shape == x.shape
        assert torch.equal(got, newton_schulz(x, backend=backend))
    batch = torch.stack([xs[0], xs[3]])
    assert torch.equal(newton_schulz(batch, backend=backend), torch.stack([together[0], together[3]]))
    assert newton_schulz(batch.view(2, 1, 5, 40), backend=backend).shape == (2, 1, 5, 40)


def test_transposing_commutes(backend):
    x = matrix(11, 29)
    tall, wide = newton_schulz(x.T, backend=backend), newton_schulz(x, backend=backend)
    torch.testing.assert_close(tall, wide.T, rtol=0, atol=1e-6)


def test_closer_than_the_usual_bfloat16():
    """A spectrum over six decades: what the docstring promises about small singular values."""
    u, _, v = torch.linalg.svd(matrix(48, 200).double(), full_matrices=False)
    x = u @ torch.diag(torch.logspace(0, -6, 48, dtype=torch.float64)) @ v
    exact = newton_schulz(x)
    error = lambda y: float((y.double() - exact).norm() / exact.norm())  # noqa: E731
    assert error(newton_schulz(x.float())) < 2e-3
    a, b, c = QUINTIC
    y = x.bfloat16() / x.bfloat16().norm()
    for _ in range(5):
        gram = y @ y.T
        y = a * y + (b * gram + c * gram @ gram) @ y
    assert error(y) > 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float(backend, dtype):
    x = matrix(9, 30).to(dtype)
    got = newton_schulz(x, backend=backend)
    assert got.dtype is dtype
    assert torch.equal(got, newton_schulz(x.float(), backend=backend).to(dtype))


def test_nothing():
    assert newton_schulz([]) == []
    assert newton_schulz(torch.zeros(0, 3, 4)).shape == (0, 3, 4)
    assert torch.equal(newton_schulz(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected matrices"):
        newton_schulz([torch.zeros(3, 4), torch.zeros(3)])
    with pytest.raises(ValueError, match="one floating dtype"):
        newton_schulz([torch.zeros(3, 4), torch.zeros(3, 4).double()])
    with pytest.raises(ValueError, match="`steps` of 1 or more"):
        newton_schulz(torch.zeros(3, 4), steps=0)
    for rows, message in (([4], "larger than its"), ([9], "larger than `packed`")):
        with pytest.raises(ValueError, match=message):
            op(torch.zeros(30), rows, [5], 5, list(QUINTIC), 1e-7, backend="cpu")
