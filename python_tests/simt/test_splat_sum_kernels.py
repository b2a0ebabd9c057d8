"""splat_sum's GPU kernels in the emulator, where its named cases do not lead."""

import math

import pytest
import torch

from vidkernels import _native
from vidkernels.ops.splat_sum.cases import scene
from vidkernels.ops.splat_sum.op import backward_scratch_bytes, scratch_bytes, splat_sum, splat_sum_backward
from vidkernels.testing import assert_close, to_float64


def emulator(name):
    module = _native.module(f"_{name}")
    if module is None or not hasattr(module, "splat_sum_cuda"):
        pytest.skip(f"vidkernels/_{name} is not built with splat_sum (make build)")
    return module


@pytest.fixture(autouse=True)
def built():
    emulator("simt")


def inputs(count, height, width, *, channels=3, cover=0.7, offsets=None):
    """(grad_image, arguments of splat_sum) in float32."""
    g = torch.Generator().manual_seed(0)
    means, shapes, colors = (t.float() for t in scene(g, count, height, width, channels, cover))
    opacities, background = torch.rand(count, generator=g) * 0.9 + 0.1, torch.rand(1, channels, generator=g)
    images = 1 if offsets is None else len(offsets) - 1
    grad = torch.randn(images, height, width, channels, generator=g)
    offsets = None if offsets is None else torch.tensor(offsets)
    return grad, (means, shapes, colors, opacities, background, offsets, height, width, 0.5, "cholesky")


def check(grad, args, backend="simt"):
    """Image and gradients against the float64 reference, at the tolerances of the op's cases."""
    assert_close(splat_sum(*args, backend=backend), splat_sum.spec.reference(*to_float64(args)), 1e-5, "image")
    both = (grad, *args)
    actual = splat_sum_backward(*both, backend=backend)
    expected = splat_sum_backward.spec.reference(*to_float64(both))
    for name, a, e in zip(("means", "shapes", "colors", "opacities", "background"), actual, expected, strict=True):
        assert_close(a, e, 1e-4, f"d/d {name}")


def test_thin_and_tilted_gaussians_lose_no_pixel():
    count, height, width = 60, 130, 170
    g = torch.Generator().manual_seed(5)
    grad, args = inputs(count, height, width)
    angle = torch.rand(count, generator=g) * math.pi
    long, short = 20 + 30 * torch.rand(count, generator=g), 0.3 + torch.rand(count, generator=g)
    xx = (angle.cos() * long) ** 2 + (angle.sin() * short) ** 2
    l21 = angle.cos() * angle.sin() * (long**2 - short**2) / xx.sqrt()
    shapes = torch.stack([xx.sqrt(), l21, long * short / xx.sqrt()], 1)
    check(grad, (args[0], shapes, *args[2:]))


def test_tiles_grow_with_the_image():
    height, width = 3, 40_000
    assert -(-width // 128) > 256
    assert scratch_bytes(300, 1, height, width) == -(-width // 256) * 2 * 32
    check(*inputs(300, height, width, cover=1.5))


def test_many_channels_and_ragged_images():
    check(*inputs(90, 37, 41, channels=15, offsets=[0, 0, 33, 34, 90, 90]))


@pytest.mark.parametrize("offsets", [[0, 5, 3, 99], [-7, 4, 20, 11], [30, 30, 30, 30]])
def test_offsets_are_not_trusted(offsets):
    """Nonsense on a GPU cannot be refused without waiting for it: it must do no harm."""
    emulator("simt_trace")
    grad, args = inputs(20, 9, 40, offsets=[0, 8, 9, 20])
    args = (*args[:5], torch.tensor(offsets), *args[6:])
    assert splat_sum(*args, backend="simt_trace").isfinite().all()
    for d in splat_sum_backward(grad, *args, backend="simt_trace"):
        assert d.isfinite().all()


def test_scratch_that_is_too_small_is_refused():
    module = emulator("simt")
    grad, args = inputs(300, 70, 70)
    image = torch.empty(1, 70, 70, 3)
    small = torch.empty(scratch_bytes(300, 1, 70, 70) - 1, dtype=torch.uint8)
    with pytest.raises(ValueError, match="`scratch` is too small"):
        module.splat_sum_cuda(*args[:6], image, small, 0.5, False)
    out = [torch.empty_like(t) for t in args[:5]]
    small = torch.empty(backward_scratch_bytes(1, 3) - 1, dtype=torch.uint8)
    with pytest.raises(ValueError, match="`scratch` is too small"):
        module.splat_sum_backward_cuda(grad, *args[:6], *out, small, 0.5, False)
