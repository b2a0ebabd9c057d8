"""splat_sum against closed forms, finite differences, and the mistakes that others are known for."""

import math

import pytest
import torch

from vidkernels import _native
from vidkernels.functional import splat_2d
from vidkernels.ops.splat_sum.op import splat_sum

needs_cpu = pytest.mark.skipif(_native._C is None, reason="needs the compiled module")
BACKENDS = ["reference", pytest.param("cpu", marks=needs_cpu)]
pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def draw(means, cholesky, colors, opacities=None, backend="cpu", **more):
    tensors = [
        None if t is None else torch.as_tensor(t, dtype=torch.float32) for t in (means, cholesky, colors, opacities)
    ]
    return splat_2d(*tensors, backend=backend, **more)


def test_peak_and_one_sigma_off(backend):
    image = draw([[10.5, 7.5]], [[2.0, 0.0, 3.0]], [[1.0, 0.5, -2.0]], size=(15, 20), backend=backend)
    color = torch.tensor([1.0, 0.5, -2.0])
    torch.testing.assert_close(image[7, 10], color)
    for row, column in ((7, 12), (7, 8), (10, 10), (4, 10)):
        torch.testing.assert_close(image[row, column], color * math.exp(-0.5), rtol=2e-6, atol=0)


def test_a_slanted_gaussian(backend):
    """Sigma = L L^T: the exponent is |L^-1 d|^2 / 2."""
    image = draw([[8.5, 8.5]], [[2.0, 1.5, 1.0]], [[1.0]], size=(17, 17), backend=backend)
    for dx, dy in ((2, 1), (-2, -1), (1, 2), (3, 2)):
        u = dx / 2.0
        v = (dy - 1.5 * u) / 1.0
        expected = math.exp(-0.5 * (u * u + v * v))
        assert image[8 + dy, 8 + dx, 0].item() == pytest.approx(expected if expected >= 1 / 255 else 0, rel=1e-5)


def test_a_sum_of_two_opacity_and_background(backend):
    back = torch.tensor([0.25, -0.5])
    image = draw([[2.5, 2.5], [3.5, 2.5]], [[1.0, 0.0, 1.0]] * 2, [[1.0, 2.0], [4.0, -1.0]], [0.5, 1.5],
                 size=(5, 6), background=back, backend=backend)  # fmt: skip
    e = math.exp(-0.5)
    torch.testing.assert_close(image[2, 2], back + torch.tensor([0.5 + 6 * e, 1.0 - 1.5 * e]))
    torch.testing.assert_close(image[2, 3], back + torch.tensor([0.5 * e + 6, e - 1.5]))


@pytest.mark.parametrize("opacity", [1.0, 0.3, 20.0])
def test_the_support_ends_where_the_weight_falls_below_one_255th(backend, opacity):
    sigma = 3.0
    image = draw([[0.5, 0.5]], [[sigma, 0.0, sigma]], [[1.0]], [opacity], size=(1, 40), backend=backend)[0, :, 0]
    reach = sigma * math.sqrt(2 * math.log(255 * opacity))
    for x in range(40):
        expected = opacity * math.exp(-0.5 * (x / sigma) ** 2) if x <= reach else 0.0
        assert image[x].item() == pytest.approx(expected, rel=1e-5, abs=0)
    assert image[math.floor(reach)] > 0
    assert not image[math.floor(reach) + 1 :].any()


def test_pixel_centres(backend):
    for centre in (0.0, 0.5):
        image = draw([[3 + centre, 2 + centre]], [[1.0, 0.0, 1.0]], [[1.0]], size=(5, 7), pixel_center=centre,
                     backend=backend)[..., 0]  # fmt: skip
        assert image[2, 3].item() == pytest.approx(1, rel=1e-6)
        assert image.argmax().item() == 2 * 7 + 3


def test_a_ragged_batch_is_each_image_alone(backend, generator):
    count, bounds = 23, [0, 5, 5, 23]
    means, shapes = torch.rand(count, 2, generator=generator) * 30, torch.rand(count, 3, generator=generator) * 3 + 0.5
    colors, back = torch.randn(count, 3, generator=generator), torch.randn(3, 3, generator=generator)
    images = draw(
        means, shapes, colors, size=(21, 34), background=back, batch_offsets=torch.tensor(bounds), backend=backend
    )
    for b in range(3):
        part = slice(bounds[b], bounds[b + 1])
        alone = draw(means[part], shapes[part], colors[part], size=(21, 34), background=back[b], backend=backend)
        torch.testing.assert_close(images[b], alone, rtol=1e-6, atol=1e-6)
    assert torch.equal(images[1], back[1].expand(21, 34, 3))


def test_more_than_256_gaussians_in_one_place(backend):
    """Renderers with a fixed list for each tile lose the rest."""
    image = draw([[4.5, 4.5]] * 1000, [[1.0, 0.0, 1.0]] * 1000, [[1.0]] * 1000, size=(9, 9), backend=backend)
    assert image[4, 4, 0].item() == pytest.approx(1000, rel=1e-6)


def test_a_long_thin_gaussian_reaches_as_far_as_its_longer_axis(backend):
    """Not as far as the square around its first axis."""
    for shape in ([0.5, 0.0, 40.0], [40.0, 0.0, 0.5]):
        image = draw([[100.5, 100.5]], [shape], [[1.0]], size=(201, 201), backend=backend)[..., 0]
        line = image[:, 100] if shape[2] > 1 else image[100]
        torch.testing.assert_close(line[[20, 180]], torch.full((2,), math.exp(-2.0)), rtol=1e-5, atol=0)


def test_nothing_to_draw_and_one_pixel(backend):
    back = torch.tensor([0.5, 2.0])
    image = draw(torch.zeros(0, 2), torch.zeros(0, 3), torch.zeros(0, 2), size=(3, 4), background=back, backend=backend)
    assert torch.equal(image, back.expand(3, 4, 2))
    one = draw([[0.5, 0.5]], [[1.0, 0.0, 1.0]], [[3.0]], size=(1, 1), backend=backend)
    assert one.tolist() == [[[pytest.approx(3, rel=1e-6)]]]


def test_what_cannot_be_drawn_shows_nowhere_and_has_no_gradient(backend):
    nan, inf = float("nan"), float("inf")
    rows = [
        ([nan, 4.0], [1.0, 0.0, 1.0], 1.0), ([4.0, inf], [1.0, 0.0, 1.0], 1.0), ([4.0, 4.0], [nan, 0.0, 1.0], 1.0),
        ([4.0, 4.0], [0.0, 0.0, 1.0], 1.0), ([4.0, 4.0], [1.0, 0.0, 0.0], 1.0), ([4.0, 4.0], [1.0, inf, 1.0], 1.0),
        ([4.0, 4.0], [1.0, 0.0, 1.0], nan), ([4.0, 4.0], [1.0, 0.0, 1.0], -1.0), ([4.0, 4.0], [1.0, 0.0, 1.0], 0.003),
    ]  # fmt: skip
    means, shapes, opacities = (torch.tensor([r[k] for r in rows]).requires_grad_() for k in range(3))
    colors = torch.ones(len(rows), 3, requires_grad=True)
    image = splat_2d(means, shapes, colors, opacities, size=(8, 9), backend=backend)
    image.sum().backward()
    assert not image.any()
    for tensor in (means, shapes, colors, opacities):
        assert not tensor.grad.any()


def test_a_gaussian_larger_than_everything_and_one_smaller_than_a_pixel(backend):
    huge = draw([[5.0, 5.0]], [[1e6, 0.0, 1e6]], [[1.0]], size=(9, 9), backend=backend)
    torch.testing.assert_close(huge, torch.ones(9, 9, 1))
    tiny = draw([[4.5, 4.5], [2.0, 2.0]], [[1e-3, 0.0, 1e-3]] * 2, [[1.0]] * 2, size=(9, 9), backend=backend)
    assert tiny[4, 4, 0].item() == pytest.approx(1, rel=1e-6)
    assert tiny.count_nonzero() == 1  # between four centres it is seen at none of them


def test_the_gradient_predicts_small_changes(generator, backend):
    """Central differences of the reference in float64; supports are fixed by wide margins: sums lie inside them."""
    means = torch.rand(4, 2, generator=generator).double() * 4 + 6
    shapes = torch.tensor([[5.0, 1.0, 6.0]] * 4).double() + torch.rand(4, 3, generator=generator)
    inputs = [
        means,
        shapes,
        torch.randn(4, 3, generator=generator).double(),
        torch.rand(4, generator=generator).double() + 0.5,
    ]
    weight = torch.randn(12, 15, 3, generator=generator).double()

    def loss(*tensors):
        return (splat_2d(*tensors, size=(12, 15), backend="reference").to(weight.dtype) * weight).sum()

    leaves = [t.clone().to(torch.float64 if backend == "reference" else torch.float32).requires_grad_() for t in inputs]
    (splat_2d(*leaves, size=(12, 15), backend=backend) * weight).sum().backward()
    for k, tensor in enumerate(inputs):
        for place in range(tensor.numel()):
            step = torch.zeros(tensor.numel(), dtype=torch.float64)
            step[place] = 1e-5
            step = step.reshape(tensor.shape)
            up, down = ([*inputs[:k], tensor + sign * step, *inputs[k + 1 :]] for sign in (1, -1))
            slope = float(loss(*up) - loss(*down)) / 2e-5
            assert float(leaves[k].grad.flatten()[place]) == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_any_number_of_threads_gives_the_same_bits(generator, backend):
    means = torch.rand(150, 2, generator=generator) * 90
    shapes, colors = torch.rand(150, 3, generator=generator) * 4 + 0.4, torch.randn(150, 3, generator=generator)
    results, threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 3) if backend == "cpu" else (1, 1):
            torch.set_num_threads(n)
            leaves = [t.clone().requires_grad_() for t in (means, shapes, colors)]
            image = splat_2d(*leaves, size=(70, 90), backend=backend)
            image.square().sum().backward()
            results.append([image.detach(), *(t.grad for t in leaves)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("change", "text"),
    [({"means": torch.zeros(3, 2)}, "of one N"), ({"cholesky": torch.zeros(2, 4)}, "of one N"),
     ({"colors": torch.zeros(2, 0)}, "1 to 512 channels"), ({"opacities": torch.ones(3)}, "opacities"),
     ({"mode": "max"}, "mode"), ({"depths": torch.ones(2)}, "depths"), ({"size": (0, 3)}, "at least one pixel"),
     ({"background": torch.zeros(4)}, "background"), ({"batch_offsets": torch.tensor([0.0, 2.0])}, "batch_offsets")],
)  # fmt: skip
def test_what_is_refused(backend, change, text):
    arguments = {"means": torch.zeros(2, 2), "cholesky": torch.ones(2, 3), "colors": torch.ones(2, 3), "size": (4, 4)}
    with pytest.raises(ValueError, match=text) as error:
        splat_2d(**{**arguments, **change}, backend=backend)
    assert str(error.value).startswith("splat_2d: ")


def test_both_forms_are_the_same_gaussian(backend):
    means, colors = torch.tensor([[6.0, 5.0]]), torch.ones(1, 1)
    l11, l21, l22 = 2.0, 0.7, 1.5
    sigma = torch.tensor([[l11 * l11, l11 * l21], [l11 * l21, l21 * l21 + l22 * l22]]).inverse()
    conic = torch.stack([sigma[0, 0], sigma[0, 1], sigma[1, 1]])[None]
    images = [
        splat_sum(means, shape, colors, None, None, None, 11, 12, 0.5, form, backend=backend)
        for shape, form in ((torch.tensor([[l11, l21, l22]]), "cholesky"), (conic, "conic"))
    ]
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-5)
