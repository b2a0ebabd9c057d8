"""The GPU kernels of splat_alpha and splat_topk beyond their cases: crowded tiles, Gaussians larger than the image,
early ends, sums that do not depend on the order of blocks, and what they read and write."""

import math

import pytest
import torch

from vidkernels import _native
from vidkernels.ops.splat_alpha import cases
from vidkernels.ops.splat_alpha.op import _depth_order, splat_alpha, splat_alpha_backward
from vidkernels.ops.splat_topk.op import splat_topk, splat_topk_backward


def emulator(name):
    module = _native.module(name)
    if module is None or not hasattr(module, "splat_alpha_cuda"):
        pytest.skip(f"vidkernels/{name} is not built with these kernels (make build)")
    module.simt_configure(seed=0, threads=1)
    return module


@pytest.fixture(params=["simt", "simt_trace"])
def backend(request):
    emulator(f"_{request.param}")
    return request.param


def scene(count, height, width, channels=3, cover=0.7, low=0.05, high=0.95, seed=0):
    g = torch.Generator().manual_seed(seed)
    means, cholesky, colors = (t.float() for t in cases.scene(g, count, height, width, channels, cover))
    opacities = torch.rand(count, generator=g) * (high - low) + low
    opacities = cases.settle(means, cholesky, opacities, height, width, "cholesky", 0.5)
    return means, cholesky, colors, opacities, torch.rand(count, generator=g)


def wide(tensors):
    return [t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in tensors]


def assert_near(got, expected, rtol):
    for g, e in zip(got, expected, strict=True):
        if not e.is_floating_point():
            assert torch.equal(g, e)
        elif e.numel():
            assert (g - e).abs().max() <= rtol * e.abs().max()


def check_alpha(backend, args, absgrad=True):
    """Forward and backward against the reference in float64; returns what the kernels gave."""
    forward = splat_alpha(*args, backend=backend)
    expected = splat_alpha(*wide(args), backend="reference")
    assert_near(forward, expected, 1e-5)
    g = torch.Generator().manual_seed(1)
    grads = [torch.randn(t.shape, generator=g) for t in forward[:2]]
    means, shapes, colors, opacities, _, background, offsets, _, _, center, form, _ = args
    image, alpha, order = expected
    given = (*grads, image.float(), alpha.float(), order, means, shapes, colors, opacities, background, offsets, center,
             form, absgrad)  # fmt: skip
    gradients = splat_alpha_backward(*given, backend=backend)
    assert_near(gradients, splat_alpha_backward(*wide(given), backend="reference"), 1e-4)
    return forward, gradients


def check_topk(backend, args):
    forward = splat_topk(*args, backend=backend)
    assert_near(forward, splat_topk(*wide(args), backend="reference"), 1e-5)
    grad = torch.randn(forward[0].shape, generator=torch.Generator().manual_seed(1))
    given = (grad, forward[1], *args[:5], *args[8:])
    gradients = splat_topk_backward(*given, backend=backend)
    assert_near(gradients, splat_topk_backward(*wide(given), backend="reference"), 1e-4)
    return forward, gradients


# ---- many


def test_more_gaussians_in_a_tile_than_threads(backend):
    means, shapes, colors, opacities, depths = scene(900, 24, 40, cover=3.0, low=0.005, high=0.03)
    check_alpha(backend, (means, shapes, colors, opacities, depths, None, None, 24, 40, 0.5, "cholesky", None))
    check_topk(backend, (means, shapes, colors, opacities, None, 24, 40, 10, 0.5, "cholesky"))


def test_more_words_of_bits_than_a_step_looks_through():
    """5000 Gaussians are 157 words of a tile; a step takes 128."""
    emulator("_simt")
    means, shapes, colors, opacities, depths = scene(5000, 40, 50, cover=0.7)
    check_alpha("simt", (means, shapes, colors, opacities, depths, None, None, 40, 50, 0.5, "cholesky", None))


@pytest.mark.parametrize("channels", [2, 8, 40, 512])
def test_any_number_of_channels(channels):
    emulator("_simt")
    means, shapes, colors, opacities, depths = scene(40, 35, 37, channels=channels)
    background = torch.rand(channels, generator=torch.Generator().manual_seed(3))
    check_alpha("simt", (means, shapes, colors, opacities, depths, background, None, 35, 37, 0.5, "cholesky", None))
    check_topk("simt", (means, shapes, colors, opacities, None, 35, 37, 5, 0.5, "cholesky"))


@pytest.mark.parametrize("top", [1, 4, 5, 12, 13, 32])
def test_every_size_of_list(top):
    emulator("_simt")
    means, shapes, colors, opacities, _ = scene(90, 21, 26, cover=4.0)
    _, index = check_topk("simt", (means, shapes, colors, opacities, None, 21, 26, top, 0.5, "cholesky"))[0]
    assert (index[..., -1] >= 0).any()


# ---- large


def test_gaussians_larger_than_the_image(backend):
    """Each touches all tiles and windows; so their sums come from many blocks."""
    height, width = 150, 290
    means = torch.tensor([[140.0, 70.0], [-300.0, 500.0], [600.0, 20.0], [100.0, 75.0]])
    shapes = torch.tensor([[800.0, 100.0, 500.0], [900.0, -200.0, 700.0], [700.0, 300.0, 400.0], [5.0, 1.0, 4.0]])
    colors = torch.tensor([[0.1, 0.9, 0.3], [0.8, 0.2, 0.5], [0.4, 0.6, 0.7], [1.0, 0.0, 0.2]])
    opacities = torch.tensor([0.41, 0.37, 0.52, 0.83])
    opacities = cases.settle(means, shapes, opacities, height, width, "cholesky", 0.5)
    depths = torch.tensor([3.0, 2.0, 1.0, 2.5])
    background = torch.tensor([0.2, 0.1, 0.7])
    check_alpha(backend, (means, shapes, colors, opacities, depths, background, None, height, width, 0.5, "cholesky",
                          None))  # fmt: skip
    check_topk(backend, (means, shapes, colors, opacities, None, height, width, 2, 0.5, "cholesky"))


# ---- early ends


def opaque_wall(count=600, height=32, width=32):
    """Three layers that finish every pixel, in front of `count` others."""
    means, shapes, colors, opacities, depths = scene(count, height, width, cover=1.0)
    front = torch.tensor([[16.0, 16.0]]).expand(6, 2)
    means = torch.cat([means, front])
    shapes = torch.cat([shapes, torch.tensor([[900.0, 0.0, 900.0]]).expand(6, 3)])
    colors = torch.cat([colors, torch.rand(6, 3, generator=torch.Generator().manual_seed(5))])
    opacities = torch.cat([opacities, torch.full((6,), 0.9)])
    return means, shapes, colors, opacities, torch.cat([depths, torch.linspace(-2, -1, 6)])


def test_finished_pixels_end_the_walk():
    """What lies behind costs no records: the walk stops after its first 256, and takes nothing from the others."""
    trace = emulator("_simt_trace")
    means, shapes, colors, opacities, depths = opaque_wall()
    args = (None, None, 32, 32, 0.5, "cholesky", None)
    forward, gradients = check_alpha("simt_trace", (means, shapes, colors, opacities, depths, *args))
    assert forward[1].min() > 0.999
    assert all((g[:600] == 0).all() for g in gradients[:4])

    def colors_read(z):
        trace.simt_reset_counters()
        splat_alpha(means, shapes, colors, opacities, z, *args, backend="simt_trace")
        kernel = next(k for k in trace.simt_counters() if "splat_alpha_kernel" in k["kernel"])
        return kernel["buffers"]["colors"]["load_bytes"]

    behind, all_of_them = colors_read(depths), colors_read(-depths)
    assert behind <= 256 * 3 * 4
    assert all_of_them > 2 * behind


# ---- order


def test_depth_order_is_stable_and_ragged():
    inf, nan = math.inf, math.nan
    depths = torch.tensor([2.0, nan, 0.0, -0.0, inf, -nan, -inf, 2.0, 1.0, 1.0, nan, 0.5])
    depths[5] = torch.tensor(-1, dtype=torch.int32).view(torch.float32)  # a NaN with its sign set
    assert _depth_order(depths, None).tolist() == [6, 2, 3, 11, 8, 9, 0, 7, 4, 1, 5, 10]
    edges = torch.tensor([0, 4, 4, 9, 12])
    assert _depth_order(depths, edges).tolist() == [2, 3, 0, 1, 6, 8, 7, 4, 5, 11, 9, 10]
    assert _depth_order(depths[:0], torch.tensor([0, 0, 0])).tolist() == []


@pytest.mark.parametrize("seed", [1, 7, 23])
def test_any_order_of_blocks_gives_the_same_bits(seed):
    simt = emulator("_simt")
    means, shapes, colors, opacities, depths = scene(80, 70, 140, cover=2.5)
    background = torch.tensor([0.2, 0.1, 0.7])
    alpha = (means, shapes, colors, opacities, depths, background, None, 70, 140, 0.5, "cholesky", None)
    topk = (means, shapes, colors, opacities, None, 70, 140, 6, 0.5, "cholesky")

    def everything():
        image, light, order = splat_alpha(*alpha, backend="simt")
        g = torch.Generator().manual_seed(2)
        grads = torch.randn(image.shape, generator=g), torch.randn(light.shape, generator=g)
        down = splat_alpha_backward(*grads, image, light, order, *alpha[:4], background, None, 0.5, "cholesky", True,
                                    backend="simt")  # fmt: skip
        mixed, index = splat_topk(*topk, backend="simt")
        return image, light, mixed, index, *down, *splat_topk_backward(grads[0], index, *topk[:5], *topk[8:],
                                                                        backend="simt")  # fmt: skip

    first = everything()
    try:
        simt.simt_configure(seed=seed, threads=2)
        again = everything()
    finally:
        simt.simt_configure(seed=0, threads=1)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)


# ---- exact sums


def gradients_scaled(factor, spoil=None):
    means, shapes, colors, opacities, depths = scene(30, 40, 45, cover=1.5)
    image, alpha, order = splat_alpha(means, shapes, colors, opacities, depths, None, None, 40, 45, 0.5, "cholesky",
                                      None, backend="simt")  # fmt: skip
    grad = torch.randn(image.shape, generator=torch.Generator().manual_seed(4)) * factor
    if spoil is not None:
        grad[0, 20, 20] = spoil
    return splat_alpha_backward(grad, None, image, alpha, order, means, shapes, colors, opacities, None, None, 0.5,
                                "cholesky", True, backend="simt")  # fmt: skip


@pytest.mark.parametrize("power", [-50, 20, 30])
def test_gradients_scale_with_a_power_of_two_bit_for_bit(power):
    """The exact sums round nothing over the range of sizes that gradients have."""
    emulator("_simt")
    for a, b in zip(gradients_scaled(1.0), gradients_scaled(2.0**power), strict=True):
        assert torch.equal(a * 2.0**power, b)


@pytest.mark.parametrize("spoil", [math.nan, math.inf, 1e30])
def test_terms_that_the_sums_cannot_hold_become_nan(spoil):
    """Of the Gaussians that the pixel reaches, and of no others."""
    emulator("_simt")
    clean, spoilt = gradients_scaled(1.0), gradients_scaled(1.0, spoil)
    lost = spoilt[3].isnan()
    assert lost.any()
    assert not lost.all()
    for a, b in zip(clean[:4], spoilt[:4], strict=True):
        assert b[lost].isnan().all() or a.dim() > 1  # a mean's gradient may have one component left
        assert torch.equal(a[~lost], b[~lost])


# ---- traffic


def test_traffic_of_a_small_scene():
    """The forward pass reads every Gaussian once per window that it may reach and writes each pixel once."""
    trace = emulator("_simt_trace")
    height, width, count = 64, 96, 200
    means, shapes, colors, opacities, depths = scene(count, height, width)
    trace.simt_reset_counters()
    image, alpha, order = splat_alpha(means, shapes, colors, opacities, depths, None, None, height, width, 0.5,
                                      "cholesky", None, backend="simt_trace")  # fmt: skip
    kernels = {k["kernel"].split("::")[-1]: k for k in trace.simt_counters()}
    render = next(k for name, k in kernels.items() if name.startswith("splat_alpha_kernel"))
    assert render["store_bytes"] == 4 * (image.numel() + alpha.numel())
    assert render["store_unique_bytes"] == render["store_bytes"]
    assert render["atomic_requests"] == 0
    windows, tiles, words = 2 * 3, 1, 8
    per_gaussian = 4 * (1 + 2 + 3 + 1 + 3)  # order, mean, shape, weight, colour
    assert render["load_bytes"] <= windows * (count * per_gaussian + tiles * words * 4)
    trace.simt_reset_counters()
    splat_alpha_backward(torch.ones_like(image), None, image, alpha, order, means, shapes, colors, opacities, None,
                         None, 0.5, "cholesky", False, backend="simt_trace")  # fmt: skip
    back = next(k for k in trace.simt_counters() if "splat_alpha_backward_kernel" in k["kernel"])
    assert 0 < back["atomic_bytes"] <= windows * count * 9 * 8  # one 64-bit integer per sum and window
