"""splat_alpha against closed forms, plain autograd, and the mistakes that others are known for."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidkernels import _native
from vidkernels.ops.splat_alpha.cases import CASES, conic_of, scene, settle
from vidkernels.ops.splat_alpha.op import splat_alpha, splat_alpha_backward
from vidkernels.testing import arguments, assert_close, assert_gradient_close

needs_cpu = pytest.mark.skipif(_native._C is None, reason="needs the compiled module")
BACKENDS = ["reference", pytest.param("cpu", marks=needs_cpu)]
TOLERANCE = 1e-5


def render(means, cholesky, colors, opacities, depths, size, background=None, backend="cpu", form="cholesky"):
    tensors = [torch.as_tensor(t, dtype=torch.float32) for t in (means, cholesky, colors, opacities, depths)]
    back = None if background is None else torch.as_tensor(background)
    image, alpha, order = splat_alpha(*tensors, back, None, *size, 0.5, form, None, backend=backend)
    return image[0], alpha[0], order


def composite(means, conics, colors, opacities, depths, background, height, width):
    """Every Gaussian at every pixel with torch operations only, so that autograd gives the gradient."""
    y, x = torch.meshgrid(torch.arange(height).double() + 0.5, torch.arange(width).double() + 0.5, indexing="ij")
    light, finished = torch.ones(height, width, dtype=means.dtype), torch.zeros(height, width, dtype=torch.bool)
    image = torch.zeros(height, width, colors.shape[1], dtype=means.dtype)
    for i in depths.argsort(stable=True).tolist():
        dx, dy = x - means[i, 0], y - means[i, 1]
        a, b, c = conics[i]
        alpha = (opacities[i] * torch.exp(-(0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy))).clamp(max=0.99)
        alpha = torch.where((alpha >= 1 / 255) & ~finished, alpha, 0.0)
        ends = light * (1 - alpha) <= 1e-4
        finished = finished | ends
        alpha = torch.where(ends, 0.0, alpha)
        image = image + (light * alpha)[..., None] * colors[i]
        light = light * (1 - alpha)
    return image + light[..., None] * background, 1 - light


@pytest.mark.parametrize("backend", BACKENDS)
def test_peak_and_fall_off_of_one_gaussian(backend):
    image, alpha, _ = render([[2.5, 1.5]], [[2.0, 0, 1.0]], [[0.5, 2.0]], [0.8], [0], (3, 6), [1.0, 0.0], backend)
    for row, column, sigma in ((1, 2, 0), (1, 4, 0.5), (0, 2, 0.5), (2, 3, 0.125 + 0.5), (1, 5, 1.125)):
        a = 0.8 * math.exp(-sigma)
        expected = torch.tensor([0.5 * a + (1 - a), 2 * a])
        assert torch.allclose(image[row, column], expected, rtol=TOLERANCE, atol=0)
        assert alpha[row, column].item() == pytest.approx(a, rel=TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nearest_comes_first_whatever_the_index(backend):
    centres, shapes = [[0.5, 0.5]] * 3, [[4.0, 0, 4.0]] * 3
    colors = [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]
    image, alpha, order = render(centres, shapes, colors, [0.5, 0.25, 0.2], [3, -1, 2], (1, 1), None, backend)
    assert order.tolist() == [1, 2, 0]
    assert torch.allclose(image[0, 0], torch.tensor([0.5 * 0.75 * 0.8, 0.25, 0.2 * 0.75]), rtol=TOLERANCE, atol=0)
    assert alpha.item() == pytest.approx(1 - 0.5 * 0.75 * 0.8, rel=TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_depths_go_by_index_and_nan_is_deepest(backend):
    depths = [0.0, -0.0, math.nan, 0.0, math.inf, -math.inf, -math.nan]
    *_, order = render([[0.5, 0.5]] * 7, [[1.0, 0, 1]] * 7, [[1.0]] * 7, [0.5] * 7, depths, (1, 1), None, backend)
    assert order.tolist() == [5, 0, 1, 3, 4, 2, 6]


@needs_cpu
@pytest.mark.parametrize("images", [1, 3])
def test_order_of_many_is_torchs_stable_sort(images, generator):
    count = 60_000  # the sort shares work from 16384 on
    depths = torch.randn(count, generator=generator) * torch.tensor(10.0) ** torch.randint(-9, 9, (count,))
    depths[torch.randint(0, count, (20_000,), generator=generator)] = 1.5
    offsets = torch.tensor([0, count]) if images == 1 else torch.tensor([0, 7, 40_000, count])
    args = torch.rand(count, 2), torch.ones(count, 3), torch.ones(count, 1), torch.zeros(count), depths
    order = splat_alpha(*args, None, offsets, 2, 2, 0.5, "cholesky", None, backend="cpu")[2]
    edges = offsets.tolist()
    expected = [depths[lo:hi].sort(stable=True).indices + lo for lo, hi in itertools.pairwise(edges)]
    assert torch.equal(order.long(), torch.cat(expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_finished_pixel_takes_nothing_more_not_even_a_faint_one(backend):
    """0.9, 0.9, 0.9 leaves 1e-3; 0.95 would leave 5e-5, so it ends the pixel; the faint one behind must not show."""
    opacities = [0.9, 0.9, 0.9, 0.95, 0.01]
    colors = torch.eye(5)
    image, alpha, _ = render(
        [[0.5, 0.5]] * 5, [[3.0, 0, 3]] * 5, colors, opacities, range(5), (1, 1), [7.0] * 5, backend
    )
    light = 1e-3
    expected = torch.tensor([0.9, 0.09, 0.009, 0, 0]) + 7 * light
    assert torch.allclose(image[0, 0], expected, rtol=2e-5, atol=0)
    assert alpha.item() == pytest.approx(1 - light, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_than_256_gaussians_in_a_tile_all_count(backend):
    count = 1000
    image, alpha, _ = render([[4.5, 4.5]] * count, [[9.0, 0, 9]] * count, torch.ones(count, 1), [0.005] * count,
                             range(count), (9, 9), None, backend)  # fmt: skip
    assert alpha[4, 4].item() == pytest.approx(1 - 0.995**count, rel=1e-4)
    assert image[4, 4, 0].item() == pytest.approx(1 - 0.995**count, rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_support_follows_both_axes(backend):
    """A long thin tilted ellipse: taking its size from one axis would cut it, or reach too far."""
    angle, long, thin = 0.6, 14.0, 0.7
    cos, sin = math.cos(angle), math.sin(angle)
    covariance = torch.tensor([[cos, -sin], [sin, cos]]) @ torch.diag(torch.tensor([long**2, thin**2]))
    covariance = covariance @ torch.tensor([[cos, sin], [-sin, cos]])
    factor = torch.linalg.cholesky(covariance)
    shape = torch.stack([factor[0, 0], factor[1, 0], factor[1, 1]])[None]
    mean = torch.tensor([[50.2, 40.9]])
    image, _, _ = render(mean, shape, [[1.0]], [0.9], [0], (80, 100), None, backend)
    y, x = torch.meshgrid(torch.arange(80) + 0.5, torch.arange(100) + 0.5, indexing="ij")
    d = torch.stack([x, y], -1).double() - mean.double()
    sigma = 0.5 * torch.einsum("hwi,ij,hwj->hw", d, torch.linalg.inv(covariance.double()), d)
    expected = 0.9 * torch.exp(-sigma)
    expected = torch.where(expected >= 1 / 255, expected, 0)
    assert_close(image[..., 0], expected, 1e-4)  # float32 factor of a covariance of condition 400
    assert int((image[..., 0] > 0).sum()) == int((expected > 0).sum())


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_equals_autograd_through_plain_torch(backend):
    """Also d b of the conic in full (elsewhere halved) and no gradient through a cut alpha, forward and backward."""
    height, width, count = 17, 21, 24
    g = torch.Generator().manual_seed(3)
    means, cholesky, colors = scene(g, count, height, width, 3, cover=1.5)
    opacities = torch.rand(count, generator=g).double() * 1.3
    assert int((opacities > 0.99).sum()) > 2
    depths, background = torch.rand(count, generator=g).double(), torch.rand(3, generator=g).double()
    leaves = [t.clone().requires_grad_() for t in (means, conic_of(cholesky), colors, opacities)]
    back = background.clone().requires_grad_()
    image, alpha = composite(*leaves, depths, back, height, width)
    g_image = torch.randn(image.shape, generator=g).double()
    g_alpha = torch.randn(alpha.shape, generator=g).double()
    expected = torch.autograd.grad((image * g_image).sum() + (alpha * g_alpha).sum(), [*leaves, back])
    dtype = torch.float64 if backend == "reference" else torch.float32
    given = [t.detach().to(dtype).requires_grad_() for t in (*leaves, back)]
    mine, seen, _ = splat_alpha(
        *given[:4], depths.to(dtype), given[4], None, height, width, 0.5, "conic", None, backend=backend
    )
    assert_close(mine[0].detach(), image.detach(), TOLERANCE)
    actual = torch.autograd.grad((mine[0] * g_image).sum() + (seen[0] * g_alpha).sum(), given)
    for name, a, e in zip(("means", "conics", "colors", "opacities", "background"), actual, expected):
        assert_gradient_close(a, e, f"{backend} d/d{name}", 1e-4 if dtype is torch.float32 else 1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cut_alpha_passes_colour_gradient_only(backend):
    args = [torch.tensor(t) for t in ([[0.9, 0.4]], [[2.0, 0.3, 2.0]], [[0.5]], [1.5], [0.0])]
    leaves = [t.requires_grad_() for t in args[:4]]
    image, _, _ = splat_alpha(*leaves, args[4], None, None, 1, 1, 0.5, "cholesky", None, backend=backend)
    assert image.item() == pytest.approx(0.495, rel=1e-6)
    grads = torch.autograd.grad(image.sum(), leaves)
    assert [float(d.abs().sum()) for d in grads] == pytest.approx([0, 0, 0.99, 0], rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_absgrad_is_the_gradient_of_its_argument(backend):
    """One row of pixels, one Gaussian: the signed sum cancels, the absolute one does not."""
    mean, shape = torch.tensor([[3.5, 0.5]], requires_grad=True), torch.tensor([[1.5, 0.0, 1.5]])
    probe = torch.zeros(1, 2, requires_grad=True)
    image, _, _ = splat_alpha(mean, shape, torch.ones(1, 1), torch.tensor([0.5]), torch.zeros(1), None, None, 1, 7, 0.5,
                              "cholesky", probe, backend=backend)  # fmt: skip
    signed, absolute = torch.autograd.grad(image.sum(), [mean, probe])
    dx = torch.arange(7) - 3.0
    each = 0.5 * torch.exp(-(dx**2) / 4.5) * dx / 2.25
    assert signed.abs().max() < 1e-6
    assert absolute.flatten().tolist() == pytest.approx([each.abs().sum().item(), 0], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_useless_gaussians_show_nowhere_and_get_zero_gradients(backend):
    case = next(c for c in CASES["splat_alpha_backward"] if c.name == "extreme")
    args = arguments(case, torch.float32)
    grads = splat_alpha_backward(*args, backend=backend)
    useless = [1, 2, 5, 6, 7, 8, 9, 14, 15, 16]
    for d in (*grads[:4], grads[5]):
        assert bool(d.isfinite().all())
        assert float(d[useless].abs().sum()) == 0
        assert float(d[[3, 4, 11]].abs().sum()) > 0


@needs_cpu
@pytest.mark.parametrize("count", [40, 500])
def test_wide_gaussians_in_rounds_are_bit_identical_for_any_thread_count(count, one_and_two_threads, generator):
    """More than 16 tiles each, in two images: their sums are taken in rounds of tiles (at 500 there are several)."""
    means = torch.rand(count, 2, generator=generator) * 400
    shapes = torch.tensor([90.0, 20.0, 70.0]) * (0.7 + torch.rand(count, 1, generator=generator))
    colors, depths = torch.rand(count, 2, generator=generator), torch.rand(count, generator=generator)
    opacities = torch.rand(count, generator=generator) * 0.05 + 0.01
    if count == 40:  # these are compared with the reference
        opacities = settle(means, shapes, opacities, 390, 410, "cholesky", 0.5)
    offsets = torch.tensor([0, count // 3, count])
    args = [means, shapes, colors, opacities, depths, None, offsets, 390, 410, 0.5, "cholesky", None]
    grad = torch.randn(2, 390, 410, 2, generator=generator)

    def run():
        image, alpha, order = splat_alpha(*args, backend="cpu")
        rest = (means, shapes, colors, opacities, None, offsets, 0.5, "cholesky", True)
        return image, alpha, *splat_alpha_backward(grad, alpha, image, alpha, order, *rest, backend="cpu")

    one, two = one_and_two_threads(run)
    for a, b in zip(one, two):
        assert torch.equal(a, b)
    if count == 40:
        image, alpha, order = splat_alpha(*args, backend="cpu")
        wide = [t.double() for t in (grad, alpha, image, alpha)]
        expected = splat_alpha_backward(
            *wide, order, *(t.double() for t in args[:4]), None, offsets, 0.5, "cholesky", True, backend="reference"
        )
        for a, e in zip(one[2:], expected):
            assert_gradient_close(a, e, rtol=1e-4)


@needs_cpu
@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 80), width=st.integers(1, 80), count=st.integers(0, 40), channels=st.integers(1, 6),
    seed=st.integers(0, 2**31), conic=st.booleans(), center=st.sampled_from([0.0, 0.5]),
)  # fmt: skip
def test_kernel_equals_reference_for_any_shape(height, width, count, channels, seed, conic, center):
    """In L1 per pixel, because a pixel on a threshold may fall either way: one such pixel changes little of the sum."""
    g = torch.Generator().manual_seed(seed)
    means, shapes, colors = scene(g, count, height, width, channels)
    shapes = conic_of(shapes) if conic else shapes
    opacities, depths = torch.rand(count, generator=g).double(), torch.rand(count, generator=g).double()
    args = [t.float() for t in (means, shapes, colors, opacities, depths)]
    rest = (None, None, height, width, center, "conic" if conic else "cholesky", None)
    image, alpha, order = splat_alpha(*args, *rest, backend="cpu")
    expected, expected_alpha, expected_order = splat_alpha(*(t.double() for t in args), *rest, backend="reference")
    assert torch.equal(order, expected_order)
    for a, e in ((image, expected), (alpha, expected_alpha)):
        off = (a - e).abs().reshape(height * width, -1).amax(1) > 1e-5
        assert int(off.sum()) <= 1
        assert bool(((a - e).abs() <= 2 / 255).all())
