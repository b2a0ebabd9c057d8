"""composite: closed forms that pin the reference, properties, alpha = 1, refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidkernels import functional
from vidkernels.ops.composite.op import composite, composite_backward

BACKENDS = ("reference", "cpu", "simt")


def need(backend):
    reason = composite.why_not(backend)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("backend", BACKENDS)
def test_three_samples_by_hand(backend):
    need(backend)
    values = torch.tensor([[[8.0, 0], [16, 4], [32, 1]]])
    out, weights, left = composite(values, torch.tensor([[0.5, 0.25, 0.5]]), backend=backend)
    assert weights.tolist() == [[0.5, 0.125, 0.1875]]
    assert left.tolist() == [0.1875]
    assert out.tolist() == [[12.0, 0.6875]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_uniform_fog_has_its_closed_form(backend):
    """Equal alphas: a geometric series; weight s is a (1 - a)^s."""
    need(backend)
    samples, a = 100, 0.03
    alpha = torch.full((2, samples), a, dtype=torch.float64)
    out, weights, left = composite(torch.ones(2, samples, 1, dtype=torch.float64), alpha, backend=backend)
    powers = torch.tensor([a * (1 - a) ** s for s in range(samples)], dtype=torch.float64)
    torch.testing.assert_close(weights, powers.expand(2, -1), rtol=1e-12, atol=0)
    torch.testing.assert_close(out, torch.full_like(out, 1 - (1 - a) ** samples), rtol=1e-12, atol=0)
    torch.testing.assert_close(left, torch.full_like(left, (1 - a) ** samples), rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_opaque_sample_hides_all_behind_it(backend):
    need(backend)
    values = torch.tensor([[[1.0], [2.0], [1e30]]])
    out, weights, left = composite(values, torch.tensor([[0.0, 1.0, 1.0]]), backend=backend)
    assert (out.item(), weights.tolist(), left.item()) == (2.0, [[0, 1, 0]], 0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_at_alpha_one_is_the_difference_of_the_ends(backend):
    """out is linear in each alpha, so d out / d alpha_s = out(alpha_s = 1) - out(alpha_s = 0), at alpha_s = 1 too."""
    need(backend)
    g = torch.Generator().manual_seed(0)
    values = torch.randn(6, 9, 3, generator=g, dtype=torch.float64)
    alpha = torch.rand(6, 9, generator=g, dtype=torch.float64)
    alpha[:, 4], alpha[3], alpha[5, ::2] = 1, 1, 0
    up = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((6, 3), (6, 9), (6,))]
    grad_values, grad_alpha = composite_backward(*up, values, alpha, backend=backend)

    def loss(changed, to):
        other = alpha.clone()
        other[:, changed] = to
        keep = torch.ones(6, dtype=torch.float64)
        total = torch.zeros(6, dtype=torch.float64)
        for s in range(9):
            worth = (up[0] * values[:, s]).sum(1) + up[1][:, s]
            total, keep = total + keep * other[:, s] * worth, keep * (1 - other[:, s])
        return total + keep * up[2]

    expected = torch.stack([loss(s, 1.0) - loss(s, 0.0) for s in range(9)], 1)
    torch.testing.assert_close(grad_alpha, expected, rtol=1e-10, atol=1e-12)
    weights = composite(values, alpha, backend="reference")[1]
    torch.testing.assert_close(grad_values, weights[..., None] * up[0][:, None], rtol=1e-12, atol=1e-14)
    assert grad_alpha[3].abs().sum() > 0  # the first of nothing but opaque samples still has a gradient


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 5), st.integers(0, 90), st.integers(1, 7)),
    sharp=st.sampled_from([0.1, 1.0, 20.0]),
    seed=st.integers(0, 2**31),
)
def test_weights_and_transmittance_share_out_one(sizes, sharp, seed):
    rays, samples, channels = sizes
    g = torch.Generator().manual_seed(seed)
    alpha = torch.sigmoid(sharp * torch.randn(rays, samples, generator=g))
    out, weights, left = composite(torch.ones(rays, samples, channels), alpha)
    assert (weights >= 0).all()
    assert (weights.sum(1) <= 1 + 1e-6).all()
    torch.testing.assert_close(weights.sum(1) + left, torch.ones(rays), rtol=0, atol=2e-6)
    torch.testing.assert_close(out, weights.sum(1, keepdim=True).expand(-1, channels), rtol=0, atol=2e-6)


def test_splitting_a_sample_in_two_changes_nothing():
    """1 - (1 - a)(1 - b) of one colour is a over b: the renderer is independent of the sampling of a uniform slab."""
    g = torch.Generator().manual_seed(1)
    values, alpha = torch.rand(4, 10, 3, generator=g).double(), torch.rand(4, 10, generator=g).double()
    half = 1 - (1 - alpha).sqrt()
    whole = composite(values, alpha)
    split = composite(values.repeat_interleave(2, 1), half.repeat_interleave(2, 1))
    torch.testing.assert_close(split[0], whole[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(split[2], whole[2], rtol=1e-12, atol=1e-14)


def test_no_gradient_asked_of_weights_costs_no_zeros():
    values = torch.rand(2, 3, 4, requires_grad=True)
    alpha = torch.rand(2, 3, requires_grad=True)
    composite(values, alpha)[2].sum().backward()
    assert values.grad.abs().sum() == 0
    expected = -torch.stack([(1 - alpha[:, [j for j in range(3) if j != s]]).prod(1) for s in range(3)], 1)
    torch.testing.assert_close(alpha.grad, expected.detach())


def test_public_function_takes_leading_axes_background_and_halves():
    g = torch.Generator().manual_seed(2)
    values, alpha = torch.rand(2, 3, 5, 4, generator=g), torch.rand(2, 3, 5, generator=g)
    plain, weights, left = functional.composite(values, alpha)
    assert plain.shape == (2, 3, 4)
    assert weights.shape == (2, 3, 5)
    sky = torch.tensor([0.1, 0.2, 0.3, 0.4])
    with_sky = functional.composite(values, alpha, sky)[0]
    torch.testing.assert_close(with_sky, plain + left[..., None] * sky)
    torch.testing.assert_close(functional.composite(values, alpha, sky.expand(2, 3, 4))[0], with_sky)
    half = functional.composite(values.half(), alpha.half(), sky)
    assert {t.dtype for t in half} == {torch.float16}
    torch.testing.assert_close(half[0].float(), with_sky, rtol=0, atol=2e-3)


def test_public_function_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"composite: expected `values` of shape \[..., S, C\]"):
        functional.composite(torch.rand(2, 3, 4), torch.rand(2, 4))
    with pytest.raises(ValueError, match="`background` of shape"):
        functional.composite(torch.rand(2, 3, 4), torch.rand(2, 3), torch.rand(3))


def test_native_wall_names_every_argument():
    with pytest.raises(ValueError, match=r"composite: expected `alpha` of dtype float32(.|\n)*values *: shape="):
        composite(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.float64), backend="cpu")
