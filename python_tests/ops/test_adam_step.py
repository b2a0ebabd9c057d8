"""adam_step: against torch's optimisers and closed forms, masks, lists, refusals."""

import math

import pytest
import torch

from vidkernels.functional.splatting.adam import adam_step
from vidkernels.ops.adam_step.op import adam_step as op

BACKENDS = ("reference", "cpu", "simt")


def need(backend):
    reason = op.why_not(backend)
    if reason is not None:
        pytest.skip(reason)


def start(*shape, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    param = torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)
    grads = [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for _ in range(12)]
    return param, grads, torch.zeros_like(param), torch.zeros_like(param)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_twelve_steps_are_those_of_torch(backend, decay, kind, dtype, tolerance):
    if dtype is torch.float64 and backend != "reference":
        pytest.skip("kernels compute in float32")
    need(backend)
    param, grads, mean, square = start(67, 3, dtype=dtype)
    theirs = torch.nn.Parameter(param.clone())
    optimizer = kind([theirs], lr=0.02, betas=(0.8, 0.95), eps=1e-8, weight_decay=decay)
    for step, grad in enumerate(grads, 1):
        theirs.grad = grad
        optimizer.step()
        adam_step(
            param, grad, mean, square, step=step, lr=0.02, betas=(0.8, 0.95), weight_decay=decay,
            decoupled_weight_decay=kind is torch.optim.AdamW, backend=backend,
        )  # fmt: skip
    torch.testing.assert_close(param, theirs.detach(), rtol=tolerance, atol=tolerance)
    state = optimizer.state[theirs]
    torch.testing.assert_close(mean, state["exp_avg"], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(square, state["exp_avg_sq"], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_step_has_the_length_of_the_rate(backend):
    """Whatever the gradient's size: m / sqrt(v) is its sign."""
    need(backend)
    grad = torch.tensor([1e-6, -3.0, 1e6, 0.0])
    param = torch.zeros(4)
    adam_step(param, grad, torch.zeros(4), torch.zeros(4), step=1, lr=0.25, eps=1e-15, backend=backend)
    torch.testing.assert_close(param, torch.tensor([-0.25, 0.25, -0.25, 0.0]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_steady_gradient_is_followed_at_the_rate(backend):
    """Equal gradients make both unbiased moments exact: every step has the length lr."""
    need(backend)
    param, mean, square = torch.zeros(1, 40), torch.zeros(1, 40), torch.zeros(1, 40)
    for step in range(1, 51):
        adam_step(param, torch.full((1, 40), -2.0), mean, square, step=step, lr=0.01, eps=0.0, backend=backend)
    torch.testing.assert_close(param, torch.full((1, 40), 0.5), rtol=1e-5, atol=0)
    torch.testing.assert_close(mean, torch.full((1, 40), -2 * (1 - 0.9**50)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [1, 3, 4, 16, 48, 61])
def test_a_row_does_not_see_who_else_moves(backend, width):
    """Visible rows get the bits of a step without a mask, the others keep theirs."""
    need(backend)
    param, grads, mean, square = start(333, width, seed=width)
    mean, square = grads[1] * 0.1, grads[2].square()
    before = [t.clone() for t in (param, mean, square)]
    whole = [t.clone() for t in before]
    adam_step(whole[0], grads[0], *whole[1:], step=3, lr=0.1, weight_decay=0.2, backend=backend)
    for share in (0.0, 0.02, 0.5, 0.98, 1.0):
        visible = torch.rand(333, generator=torch.Generator().manual_seed(5)) < share
        got = [t.clone() for t in before]
        grad = torch.where(visible[:, None], grads[0], math.nan)
        adam_step(got[0], grad, *got[1:], step=3, lr=0.1, weight_decay=0.2, visible=visible, backend=backend)
        for g, w, b in zip(got, whole, before):
            assert torch.equal(g, torch.where(visible[:, None], w, b))


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_tensors_with_a_rate_each(backend):
    need(backend)
    sizes = {"means": (50, 3), "quats": (50, 4), "opacities": (50,), "harmonics": (50, 15, 3)}
    rows = [start(*shape, seed=i) for i, shape in enumerate(sizes.values())]
    rates = [0.1, 0.01, 0.05, 0.0025]
    expected = [[t.clone() for t in (p, m, v)] for p, _, m, v in rows]
    visible = torch.arange(50) % 3 > 0
    for (p, m, v), (_, grads, *_), rate in zip(expected, rows, rates):
        adam_step(p, grads[0], m, v, step=1, lr=rate, visible=visible, backend=backend)
    params, grads, means, squares = zip(*rows)
    grads = [g[0] for g in grads]
    adam_step(params, grads, means, squares, step=1, lr=rates, visible=visible, backend=backend)
    for (p, m, v), *got in zip(expected, params, means, squares):
        assert all(torch.equal(a, b) for a, b in zip((p, m, v), got))
    before = params[2].clone()
    adam_step(params, [grads[0], grads[1], None, grads[3]], means, squares, step=2, lr=0.1, backend=backend)
    assert torch.equal(params[2], before)
    assert not torch.equal(params[0], expected[0][0])


def test_halves_and_doubles_go_to_the_reference():
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        param, grads, mean, square = start(5, 3, dtype=dtype)
        before = param.clone()
        adam_step(param, grads[0], mean, square, step=1, lr=0.5)
        assert param.dtype is dtype
        torch.testing.assert_close(before - param, 0.5 * grads[0].sign(), rtol=0.02, atol=0.02)


def test_what_does_not_fit_is_refused_before_anything_moves():
    param, grads, mean, square = start(6, 3)
    other = start(4, 3)
    before = param.clone()
    fine = {"step": 1, "lr": 0.1}
    with pytest.raises(ValueError, match="as many gradients"):
        adam_step([param, other[0]], [grads[0]], [mean, other[2]], [square, other[3]], **fine)
    with pytest.raises(ValueError, match="as many gradients, moments and rates"):
        adam_step([param], [grads[0]], [mean], [square], step=1, lr=[0.1, 0.2])
    with pytest.raises(ValueError, match="of one shape"):
        adam_step(param, grads[0][:5], mean, square, **fine)
    with pytest.raises(ValueError, match=r"`visible` of shape \[N\], bool"):
        adam_step(param, grads[0], mean, square, visible=torch.ones(6), **fine)
    visible = torch.ones(6, dtype=torch.bool)
    with pytest.raises(ValueError, match="an entry for every row"):
        adam_step([param, other[0]], [grads[0], other[1][0]], [mean, other[2]], [square, other[3]], visible=visible, **fine)  # fmt: skip  # noqa: E501
    for wrong in ({"step": 0}, {"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)}, {"eps": -1.0}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match="betas in"):
            adam_step(param, grads[0], mean, square, **(fine | wrong))
    assert torch.equal(param, before)


def test_the_binding_refuses_overlapping_memory():
    need("cpu")
    memory = torch.zeros(12)
    with pytest.raises(ValueError, match="overlaps"):
        adam_step(memory[:8], torch.zeros(8), memory[4:], torch.zeros(8), step=1, lr=0.1, backend="cpu")
