"""splat_topk against closed forms, torch.topk, and plain autograd."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidkernels import _native
from vidkernels.ops.splat_topk.cases import CASES, conic_of, scene
from vidkernels.ops.splat_topk.op import splat_topk, splat_topk_backward
from vidkernels.testing import arguments, assert_close, assert_gradient_close

needs_cpu = pytest.mark.skipif(_native._C is None, reason="needs the compiled module")
BACKENDS = ["reference", pytest.param("cpu", marks=needs_cpu)]


def weights(means, conics, opacities, height, width):
    y, x = torch.meshgrid(torch.arange(height).double() + 0.5, torch.arange(width).double() + 0.5, indexing="ij")
    dx, dy = x[..., None] - means[:, 0], y[..., None] - means[:, 1]
    a, b, c = conics.unbind(1)
    w = opacities * torch.exp(-(0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy))
    return torch.where(w >= 1 / 255, w, 0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_gaussians_share_a_pixel_by_weight(backend):
    means = torch.tensor([[0.5, 0.5], [1.5, 0.5]])
    image, index = splat_topk(means, torch.tensor([[1.0, 0, 1]] * 2), torch.eye(2), None, None, 1, 2, 10, 0.5,
                              "cholesky", backend=backend)  # fmt: skip
    far = math.exp(-0.5)
    total = 1 + far + 1e-4
    assert torch.allclose(image[0, 0], torch.tensor([[1 / total, far / total], [far / total, 1 / total]]), rtol=1e-6)
    assert index[0, 0].tolist() == [[0, 1] + [-1] * 8] * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_heaviest_count_and_ties_go_to_the_lower_index(backend):
    opacities = torch.tensor([0.3, 0.9, 0.5, 0.9, 0.5, 0.004, 0.003])
    args = torch.full((7, 2), 0.5), torch.tensor([[2.0, 0, 2]] * 7), torch.eye(7), opacities, None, 1, 1
    image, index = splat_topk(*args, 3, 0.5, "cholesky", backend=backend)
    assert index.flatten().tolist() == [1, 2, 3]
    expected = torch.tensor([0, 0.9, 0.5, 0.9, 0, 0, 0]) / (2.3 + 1e-4)
    assert torch.allclose(image.flatten(), expected, rtol=1e-6)
    _, index = splat_topk(*args, 10, 0.5, "cholesky", backend=backend)
    assert index.flatten().tolist() == [0, 1, 2, 3, 4, 5, -1, -1, -1, -1]  # 0.003 is below 1/255


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_there_is_black(backend):
    far = torch.tensor([[50.0, 50.0]]), torch.ones(1, 3), torch.ones(1, 3)
    image, index = splat_topk(*far, None, None, 4, 4, 2, 0.5, "cholesky", backend=backend)
    assert float(image.abs().sum()) == 0
    assert bool((index == -1).all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("top", [1, 3, 10])
def test_equals_torch_topk_with_gradients_by_autograd(backend, top):
    height, width, count = 15, 18, 30
    g = torch.Generator().manual_seed(5)
    means, cholesky, colors = scene(g, count, height, width, 3, cover=1.5)
    opacities = torch.rand(count, generator=g).double() + 0.1
    leaves = [t.clone().requires_grad_() for t in (means, conic_of(cholesky), colors, opacities)]
    w = weights(leaves[0], leaves[1], leaves[3], height, width)
    heaviest = w.topk(top, -1)
    chosen = leaves[2][heaviest.indices]
    image = (heaviest.values[..., None] * chosen).sum(-2) / (heaviest.values.sum(-1, keepdim=True) + 1e-4)
    grad = torch.randn(image.shape, generator=g).double()
    expected = torch.autograd.grad((image * grad).sum(), leaves)
    dtype = torch.float64 if backend == "reference" else torch.float32
    given = [t.detach().to(dtype).requires_grad_() for t in leaves]
    mine, index = splat_topk(*given, None, height, width, top, 0.5, "conic", backend=backend)
    rank = heaviest.indices.masked_fill(heaviest.values == 0, count).sort(-1).values
    assert torch.equal(index[0].long(), rank.masked_fill(rank == count, -1))
    assert_close(mine[0].detach(), image.detach(), 1e-5)
    actual = torch.autograd.grad((mine[0] * grad).sum(), given)
    for name, a, e in zip(("means", "conics", "colors", "opacities"), actual, expected):
        assert_gradient_close(a, e, f"{backend} d/d{name}", 1e-4 if dtype is torch.float32 else 1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_useless_gaussians_show_nowhere_and_get_zero_gradients(backend):
    case = next(c for c in CASES["splat_topk_backward"] if c.name == "extreme")
    args = arguments(case, torch.float32)
    useless = [1, 2, 5, 6, 7, 8, 9, 13, 14, 15]
    assert not any(bool((args[1] == i).any()) for i in useless)
    for d in splat_topk_backward(*args, backend=backend):
        assert bool(d.isfinite().all())
        assert float(d[useless].abs().sum()) == 0


@needs_cpu
def test_refuses_more_than_32_a_pixel():
    args = torch.rand(3, 2), torch.ones(3, 3), torch.ones(3, 1), None, None, 4, 4
    with pytest.raises(ValueError, match="1 to 32 Gaussians a pixel"):
        splat_topk(*args, 33, 0.5, "cholesky", backend="cpu")


@needs_cpu
@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 80), width=st.integers(1, 80), count=st.integers(0, 40), top=st.integers(1, 32),
    seed=st.integers(0, 2**31), conic=st.booleans(),
)  # fmt: skip
def test_kernel_equals_reference_for_any_shape(height, width, count, top, seed, conic):
    """Where a pixel chose the same, which all but one on a threshold or a near tie do."""
    g = torch.Generator().manual_seed(seed)
    means, shapes, colors = scene(g, count, height, width, 2, cover=1.5)
    args = [t.float() for t in (means, conic_of(shapes) if conic else shapes, colors)]
    rest = (None, None, height, width, top, 0.5, "conic" if conic else "cholesky")
    image, index = splat_topk(*args, *rest, backend="cpu")
    expected, expected_index = splat_topk(*(t.double() for t in args), *rest, backend="reference")
    same = (index == expected_index).all(-1)
    assert int((~same).sum()) <= 1
    assert float((image - expected)[same].abs().max() if bool(same.any()) else 0) <= 1e-5
