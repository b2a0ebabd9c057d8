"""fake_quantize_rate: closed forms, the distribution behind the bits, gradients, tails, refusals."""

import math

import pytest
import torch

from vidkernels.functional.nerv.rate import fake_quantize_rate
from vidkernels.ops.fake_quantize_rate.op import fake_quantize_rate as op

BACKENDS = ("reference", "cpu", "simt", "triton")


def need(backend):
    reason = op.why_not(backend)
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(params=BACKENDS)
def backend(request):
    need(request.param)
    return request.param


def one(value):
    return torch.tensor(float(value))


def laplace(count, spread, seed=0):
    g = torch.Generator().manual_seed(seed)
    sign = torch.randint(0, 2, (count,), generator=g) * 2.0 - 1
    return sign * torch.empty(count).exponential_(1 / spread, generator=g)


def test_bits_by_hand(backend):
    """P(0) = 1 - e^(-1/2), P(k) = e^-|k| sinh(1/2) for a spread of one step."""
    value, bits = fake_quantize_rate(torch.tensor([[0.2, -1.8, 6.2]]), one(2), one(1), mode="round", backend=backend)
    assert value.tolist() == [[0.0, -2.0, 6.0]]
    expected = -math.log2(1 - math.exp(-0.5)) - math.log2(math.exp(-1 - 3) * math.sinh(0.5) ** 2)
    assert bits.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("spread", [0.05, 0.3, 1.0, 7.0, 300.0])
def test_the_masses_of_all_integers_sum_up_to_one(backend, spread):
    if spread > 10 and backend in ("simt", "triton"):
        pytest.skip("thousands of rows take these too long")
    reach = math.ceil(15 * spread) + 2
    k = torch.arange(-reach, reach + 1.0)[:, None]
    bits = fake_quantize_rate(k, torch.ones(len(k)), torch.full((len(k),), spread), mode="round", backend=backend).bits
    assert float((-bits.double() * math.log(2)).exp().sum()) == pytest.approx(1, abs=2e-6)


@pytest.mark.parametrize("offset", [-0.5, -0.3, 0.0, 0.25, 0.499])
def test_the_masses_of_a_shifted_grid_sum_up_to_one(offset):
    noise = torch.full((51, 1), offset)
    k = torch.arange(-25, 26.0)[:, None]
    for name in BACKENDS:
        if op.why_not(name) is None:
            bits = op(k, torch.ones(51), torch.full((51,), 1.3), "noise", noise, backend=name)[1]
            assert float((-bits.double() * math.log(2)).exp().sum()) == pytest.approx(1, abs=2e-6)


def test_ties_go_to_the_even_neighbour(backend):
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, 4194304.5, 4194305.5, 8388609.0, -6291455.5]])
    value = fake_quantize_rate(x, one(1), one(1), mode="round", backend=backend).value
    assert torch.equal(value, x.round())


def test_far_and_narrow_is_large_and_finite(backend):
    x = torch.tensor([[1e6, -1e6, 40.0, 0.0]], requires_grad=True)
    spread = torch.tensor([1e-3], requires_grad=True)
    bits = fake_quantize_rate(x, torch.ones(1), spread, mode="round", backend=backend).bits
    expected = sum(1e3 * (v - 0.5) + math.log(2) for v in (1e6, 1e6, 40.0)) / math.log(2)
    assert bits.item() == pytest.approx(expected, rel=1e-6)
    bits.sum().backward()
    assert bool(x.grad.isfinite().all())
    assert bool(spread.grad.isfinite().all())
    torch.testing.assert_close(x.grad, torch.tensor([[1.0, -1.0, 1.0, 0.0]]) * 1e3 / math.log(2))


def test_what_is_almost_certain_costs_almost_nothing_but_something(backend):
    bits = fake_quantize_rate(torch.zeros(1, 1000), one(1), one(0.025), mode="round", backend=backend).bits
    assert bits.item() == pytest.approx(1000 * math.exp(-20) / math.log(2), rel=1e-5)


def test_rounding_passes_the_gradient_through(backend):
    x, weight = laplace(500, 3.0).view(4, 125).requires_grad_(), torch.randn(4, 125)
    step = torch.full((4,), 0.7, requires_grad=True)
    value = fake_quantize_rate(x, step, torch.ones(4), mode="round", backend=backend).value
    (value * weight).sum().backward()
    assert torch.equal(x.grad, weight)
    z = (x / 0.7).detach()
    torch.testing.assert_close(step.grad, ((z.round() - z) * weight).sum(1), rtol=1e-4, atol=1e-5)


def test_the_spread_that_costs_least_is_the_mean_magnitude():
    """The maximum-likelihood scale of a Laplace law; the grid widens it by less than a step."""
    x = laplace(40000, 6.0).view(1, -1)
    spread = torch.full((1,), 1.0, requires_grad=True)
    optimizer = torch.optim.LBFGS([spread], line_search_fn="strong_wolfe", max_iter=60)

    def closure():
        optimizer.zero_grad()
        bits = fake_quantize_rate(x, torch.ones(1), spread, mode="round").bits.sum() / x.numel()
        bits.backward()
        return bits

    optimizer.step(closure)
    assert spread.item() == pytest.approx(float(x.abs().mean()), rel=0.02)


def test_noise_estimates_what_rounding_costs():
    """Over a Laplace source as wide as the step, the two agree to a per cent or two."""
    x = laplace(200_000, 2.0).view(2, -1)
    noisy, rounded = (
        fake_quantize_rate(x, one(1).expand(2), one(2).expand(2), mode=mode).bits.sum() for mode in ("noise", "round")
    )
    assert noisy.item() == pytest.approx(rounded.item(), rel=0.02)


def test_noise_comes_from_the_generator():
    x = torch.zeros(3, 50)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return fake_quantize_rate(x, torch.ones(3), torch.ones(3), mode="noise", generator=generator).value

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert float(draw(1).abs().max()) < 0.5


def test_noise_is_uniform():
    """Bins of a histogram, moments, neighbours (four share a draw)."""
    x = torch.zeros(1, 1_000_003)
    one_step = one(1)
    g = torch.Generator().manual_seed(0)
    noise = fake_quantize_rate(x, one_step, one_step, mode="noise", generator=g).value[0].double()
    counts = torch.histc(noise, 64, -0.5, 0.5)
    assert float((counts / 1_000_003 * 64 - 1).abs().max()) < 0.05
    assert abs(float(noise.mean())) < 2e-3
    assert float(noise.var()) == pytest.approx(1 / 12, rel=5e-3)
    for lag in (1, 2, 3, 4):
        assert abs(float((noise[lag:] * noise[:-lag]).mean()) * 12) < 5e-3


@pytest.mark.parametrize("mode", ["noise", "round"])
def test_a_prediction_changes_the_bits_and_not_the_values(backend, mode):
    """What is coded is the integer less the predicted integer; ties aside, rounding commutes with that."""
    x, known = laplace(600, 9.0).view(3, 200), laplace(600, 5.0, 1).view(3, 200)
    step, spread = torch.tensor([0.7, 1.0, 0.3]), torch.tensor([2.0, 30.0, 9.0])

    def coded(of, **more):
        generator = torch.Generator().manual_seed(4)
        return fake_quantize_rate(of, step, spread, mode=mode, generator=generator, backend=backend, **more)

    value, bits = coded(x, prediction=known)
    torch.testing.assert_close(value, coded(x).value, rtol=1e-5, atol=1e-5)
    missing = x - (known / step[:, None]).round() * step[:, None]
    torch.testing.assert_close(bits, coded(missing).bits, rtol=1e-5, atol=1e-3)
    assert torch.equal(coded(x, prediction=torch.zeros_like(x)).bits, coded(x).bits)
    near = coded(x, prediction=x + 0.2 * known).bits
    assert bool((near < bits).all())


@pytest.mark.parametrize("mode", ["noise", "round"])
def test_gradients_with_a_prediction(mode):
    """Against the formula written with torch's own operations, the rounding replaced by what passes gradients."""
    x, known = (laplace(60, s, i).double().view(2, 30) for i, s in enumerate((5.0, 4.0)))
    step, spread = torch.tensor([0.6, 1.3]).double(), torch.tensor([2.0, 7.0]).double()
    pull, price = torch.randn(2, 30).double(), torch.randn(2).double()
    leaves = [t.clone().requires_grad_() for t in (x, known, step, spread)]
    value, bits = fake_quantize_rate(
        leaves[0], *leaves[2:], mode=mode, prediction=leaves[1], generator=torch.Generator().manual_seed(2)
    )
    found = torch.autograd.grad((value * pull).sum() + (bits * price).sum(), leaves)

    leaves = [t.clone().requires_grad_() for t in (x, known, step, spread)]
    through = lambda k: k + (k.round() - k).detach()  # noqa: E731
    z, p = leaves[0] / leaves[2][:, None], through(leaves[1] / leaves[2][:, None])
    noise = (value.detach() / step[:, None] - x / step[:, None]) if mode == "noise" else None
    k = z + noise if mode == "noise" else through(z)
    r, b = (k - p).abs(), leaves[3][:, None]
    inside = 1 - (-0.5 / b).exp() * (r / b).cosh()
    mass = torch.where(r < 0.5, inside, (-r / b).exp() * (0.5 / b).sinh())
    expected = torch.autograd.grad((k * leaves[2][:, None] * pull).sum() + (-mass.log2().sum(1) * price).sum(), leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_a_prediction_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="prediction"):
        fake_quantize_rate(torch.zeros(2, 3), one(1), one(1), mode="round", prediction=torch.zeros(2, 1))


def test_one_step_and_one_spread_make_one_row():
    x = torch.randn(4, 3, 5)
    value, bits = fake_quantize_rate(x, one(0.3), one(2), mode="round")
    assert value.shape == x.shape
    assert bits.shape == (1,)
    rows = fake_quantize_rate(x, one(0.3), torch.full((4,), 2.0), mode="round")
    assert rows.bits.shape == (4,)
    torch.testing.assert_close(rows.bits.sum(), bits[0])
    assert torch.equal(rows.value, value)


def test_one_step_for_all_rows_gets_the_sum_of_their_gradients():
    x, spread = torch.randn(4, 30), torch.full((4,), 2.0)
    shared, own = torch.tensor(0.3, requires_grad=True), torch.full((4,), 0.3, requires_grad=True)
    for step in (shared, own):
        fake_quantize_rate(x, step, spread, mode="round").bits.sum().backward()
    torch.testing.assert_close(shared.grad, own.grad.sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float(backend, dtype):
    x = laplace(600, 3.0).view(3, 200).to(dtype)
    step = torch.tensor([0.25, 0.5, 1.0])
    value, bits = fake_quantize_rate(x, step, torch.ones(3), mode="round", backend=backend)
    wide = fake_quantize_rate(x.float(), step, torch.ones(3), mode="round", backend="reference")
    assert value.dtype is dtype
    assert torch.equal(value, wide.value.to(dtype))
    torch.testing.assert_close(bits, wide.bits, rtol=2e-6, atol=0)


def test_nan_spoils_its_row_and_no_other(backend):
    x = torch.ones(3, 20)
    x[1, 7] = math.nan
    for mode in ("noise", "round"):
        value, bits = fake_quantize_rate(x, torch.ones(3), torch.ones(3), mode=mode, backend=backend)
        assert bits.isnan().tolist() == [False, True, False]
        assert value.isnan().sum() == 1


def test_what_does_not_fit_is_refused():
    x = torch.randn(4, 6)
    with pytest.raises(ValueError, match="one of noise, round"):
        fake_quantize_rate(x, one(1), one(1), mode="float")
    with pytest.raises(ValueError, match=r"`step` of shape \[C\] = \[4\]"):
        fake_quantize_rate(x, torch.ones(6), one(1), mode="round")
    with pytest.raises(ValueError, match=r"`spread` of shape \[C\] = \[4\]"):
        fake_quantize_rate(x, one(1), torch.ones(4, 1), mode="round")
    with pytest.raises(ValueError, match="floating tensor"):
        fake_quantize_rate(x.long(), one(1), one(1), mode="round")
    with pytest.raises(ValueError, match="goes with the mode"):
        op(x, torch.ones(4), torch.ones(4), "noise", None, backend="cpu")
