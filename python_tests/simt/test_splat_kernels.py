"""What the splatting kernels promise beyond the cases of their ops: any number of Gaussians in a tile, of any size,
the same bits in any order of blocks, and how much memory they touch."""

import pytest
import torch

from vidkernels import _native
from vidkernels.ops.splat_alpha.op import splat_alpha
from vidkernels.ops.splat_sum import cases
from vidkernels.ops.splat_sum.op import splat_sum, splat_sum_backward


def emulator(name):
    if _native.module(name) is None:
        pytest.skip(f"vidkernels/{name} is not built (make build)")
    return _native.module(name)


def scene(count, height, width, cover=0.7, channels=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    means, cholesky, colors = (t.float() for t in cases.scene(g, count, height, width, channels, cover))
    return means, cholesky, colors, torch.rand(count, generator=g) * 0.9 + 0.1, g


def check(got, args, kind):
    """Against the reference in float64; a pixel may fall on the other side of the support's edge, 1/255 of a colour."""
    double = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
    expected = kind(*double, backend="reference")
    expected = expected if isinstance(expected, torch.Tensor) else expected[0]
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("count", [257, 5000])
def test_more_gaussians_in_a_tile_than_threads(count):
    """5000 also go beyond the 4096 that a block looks through at a time."""
    emulator("_simt")
    means, cholesky, colors, opacities, g = scene(count, 16, 16, cover=6.0)
    colors, depths = colors / count * 50, torch.rand(count, generator=g)
    args = (means, cholesky, colors, opacities, None, None, 16, 16, 0.5, "cholesky")
    check(splat_sum(*args, backend="simt"), args, splat_sum)
    args = (means, cholesky, colors, opacities * 0.01 + 0.01, depths, None, None, 16, 16, 0.5, "cholesky", None)
    check(splat_alpha(*args, backend="simt")[0], args, splat_alpha)


def test_gaussians_larger_than_the_image():
    """Their means lie inside and far outside; the image has several tiles."""
    emulator("_simt")
    means = torch.tensor([[90.0, 70], [-400, 50], [500, 900], [60, -300]])
    cholesky = torch.tensor([[800.0, 100, 700], [300, 50, 400], [400, -90, 600], [20, 2, 500]])
    args = (means, cholesky, torch.rand(4, 3), torch.full((4,), 0.8), None, None, 140, 180, 0.5, "cholesky")
    image = splat_sum(*args, backend="simt")
    assert (image > 0).all()
    check(image, args, splat_sum)
    grad = torch.randn(1, 140, 180, 3)
    got = splat_sum_backward(grad, *args, backend="simt")
    expected = splat_sum_backward(grad.double(), *(a.double() for a in args[:4]), *args[4:], backend="reference")
    for a, b in zip(got[:4], expected[:4], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-4 * float(b.abs().max()))


def test_same_bits_in_any_order_of_blocks():
    simt = emulator("_simt")
    means, cholesky, colors, opacities, g = scene(300, 70, 150, cover=2.0)
    depths, grad = torch.rand(300, generator=g), torch.randn(1, 70, 150, 3, generator=g)
    back, results = torch.rand(1, 3, generator=g), []
    try:
        for seed in (0, 3, 11):
            simt.simt_configure(seed=seed)
            args = (means, cholesky, colors, opacities, back, None, 70, 150, 0.5, "cholesky")
            leaves = [t.clone().requires_grad_() for t in (means, cholesky, colors, opacities)]
            image, alpha, _ = splat_alpha(*leaves, depths, back, None, *args[6:], None, backend="simt")
            (image * grad).sum().backward()
            results.append([splat_sum(*args, backend="simt"), *splat_sum_backward(grad, *args, backend="simt"),
                            image, alpha, *(leaf.grad for leaf in leaves)])  # fmt: skip
    finally:
        simt.simt_configure(seed=0)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def traffic(trace, call):
    trace.simt_reset_counters()
    call()
    return sum(c["load_unique_bytes"] + c["store_unique_bytes"] for c in trace.simt_counters())


@pytest.mark.parametrize("backward", [False, True])
def test_traffic_is_near_the_least_possible(backward):
    """As many Gaussians per pixel as real_10k has. A launch that rereads what it has in cache does not count twice."""
    trace = emulator("_simt_trace")
    count, height, width = 250, 128, 192
    means, cholesky, colors, _, g = scene(count, height, width)
    args = (means, cholesky, colors, None, None, None, height, width, 0.5, "cholesky")
    parameters, image = 4 * count * 8, 4 * height * width * 3
    if backward:
        grad = torch.randn(1, height, width, 3, generator=g)
        touched = traffic(trace, lambda: splat_sum_backward(grad, *args, backend="simt_trace"))
        least = 2 * parameters + image
    else:
        touched = traffic(trace, lambda: splat_sum(*args, backend="simt_trace"))
        least = parameters + image
    assert least <= touched <= 1.2 * least
