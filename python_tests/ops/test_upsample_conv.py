"""upsample_conv: values by hand and by torch, so that the reference itself is pinned; properties; refusals."""

import math

import pytest
import torch
from torch.nn import functional as F

from vidkernels.functional.nerv.upsample_conv import upsample_conv
from vidkernels.nn.nerv.block import NeRVBlock
from vidkernels.ops.upsample_conv import reference
from vidkernels.ops.upsample_conv.op import upsample_conv_backward

BACKENDS = ("reference", "cpu")


def need(backend):
    from vidkernels.ops.upsample_conv.op import upsample_conv as op

    reason = op.why_not(backend)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shuffle_by_hand(backend):
    need(backend)
    x = torch.tensor([[[[1.0, 2.0]]]])
    weight = torch.arange(1.0, 9.0).view(8, 1, 1, 1)  # two channels, each with its four places
    out = upsample_conv(x, weight, None, 2, "none", backend=backend)
    assert out[0, 0].tolist() == [[1, 2, 2, 4], [3, 4, 6, 8]]
    assert out[0, 1].tolist() == [[5, 6, 10, 12], [7, 8, 14, 16]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_border_is_zero(backend):
    need(backend)
    out = upsample_conv(torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 3), None, 1, "none", backend=backend)
    assert out[0, 0].tolist() == [[4, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("activation", "function", "slope"),
    [
        ("gelu", lambda z: z * 0.5 * math.erfc(-z / math.sqrt(2)), None),
        ("sine", math.sin, math.cos),
        ("relu", lambda z: max(z, 0.0), lambda z: float(z > 0)),
        ("none", lambda z: z, lambda z: 1.0),
    ],
)
def test_activations_by_the_math_library(activation, function, slope, backend):
    need(backend)
    z = torch.cat([torch.linspace(-12, 12, 961), torch.tensor([0.0, -0.0, 1e-8, -1e-8, 30, -30, 88, -88])])
    leaf = z.view(1, 1, 1, -1).clone().requires_grad_()
    out = upsample_conv(leaf, torch.ones(1, 1, 1, 1), None, 1, activation, backend=backend)
    expected = torch.tensor([function(v) for v in z.double().tolist()], dtype=torch.float64)
    torch.testing.assert_close(out.flatten().double(), expected, rtol=2e-6, atol=2e-6)
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    if slope is None:
        slope = lambda z: 0.5 * math.erfc(-z / math.sqrt(2)) + z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)  # noqa: E731
    expected = torch.tensor([slope(v) for v in z.double().tolist()], dtype=torch.float64)
    torch.testing.assert_close(grad.flatten().double(), expected, rtol=2e-6, atol=2e-6)


def test_sine_of_large_arguments():
    need("cpu")
    z = torch.linspace(-3000, 3000, 4001).view(1, 1, 1, -1)
    out = upsample_conv(z, torch.ones(1, 1, 1, 1), None, 1, "sine", backend="cpu")
    torch.testing.assert_close(out.double(), z.double().sin(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("activation", ["gelu", "sine", "relu", "none"])
def test_reference_gradients_are_those_of_autograd(activation):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 4, 5, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, 3, 3, 3, generator=g, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, generator=g, dtype=torch.float64, requires_grad=True)
    z = F.pixel_shuffle(F.conv2d(x, weight, bias, padding=1), 2)
    out = {"gelu": F.gelu, "sine": torch.sin, "relu": F.relu, "none": torch.clone}[activation](z)
    grad = torch.randn(out.shape, generator=g, dtype=torch.float64)
    expected = torch.autograd.grad(out, (x, weight, bias), grad)
    actual = reference.upsample_conv_backward(grad, x, weight, bias, None, 2, activation, True)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


def test_a_bad_pixel_stays_where_it_is():
    """Not-a-number reaches the 3 x 3 pixels that see it, not what lies beside them in memory."""
    need("cpu")
    for dtype in (torch.float32, torch.bfloat16):
        for channels in (1, 3, 20, 48):
            x = torch.zeros(1, channels, 9, 37, dtype=dtype)
            x[0, 0, 4, 36] = torch.nan
            out = upsample_conv(x, torch.ones(12, channels, 3, 3, dtype=dtype), None, 2, "gelu", backend="cpu")
            bad = torch.zeros(9, 37, dtype=torch.bool)
            bad[3:6, 35:] = True
            assert torch.equal(out[0, 0].isnan(), bad.repeat_interleave(2, 0).repeat_interleave(2, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [2, 7, 12, 16, 23, 32, 48, 64])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_sizes_against_float64(channels, scale, dtype):
    need("cpu")
    g = torch.Generator().manual_seed(channels * 10 + scale)
    x = torch.randn(2, channels, 7, 45, generator=g).to(dtype)
    weight = (torch.randn(11 * scale**2, channels, 3, 3, generator=g) / (3 * channels**0.5)).to(dtype)
    bias = torch.randn(11 * scale**2, generator=g).to(dtype)
    args = x, weight, bias, scale, "gelu"
    expected = reference.upsample_conv(*(a.double() if isinstance(a, torch.Tensor) else a for a in args))
    tolerance = 4e-3 if dtype is torch.bfloat16 else 2e-6
    for variant in (x, x.contiguous(memory_format=torch.channels_last)):
        out = upsample_conv(variant, *args[1:], backend="cpu")
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert (out - expected).abs().max() <= tolerance * expected.abs().max()
    grad = torch.randn(out.shape, generator=g).to(dtype)
    got = upsample_conv_backward(grad, x, weight, bias, None, scale, "gelu", True, backend="cpu")
    wide = [a.double() for a in (grad, x, weight, bias)]
    for a, e in zip(got, reference.upsample_conv_backward(*wide, None, scale, "gelu", True), strict=True):
        assert (a - e).norm() <= 2 * tolerance * e.norm()


def test_block_copies_a_convolution_and_trains():
    g = torch.Generator().manual_seed(0)
    block = NeRVBlock(6, 4, 2)
    theirs = torch.nn.Conv2d(6, 16, 3, padding=1)
    block.conv.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 6, 5, 7, generator=g)
    torch.testing.assert_close(block(x), F.gelu(F.pixel_shuffle(theirs(x), 2)), rtol=1e-5, atol=1e-5)
    block(x).square().mean().backward()
    F.gelu(F.pixel_shuffle(theirs(x), 2)).square().mean().backward()
    torch.testing.assert_close(block.conv.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(block.conv.bias.grad, theirs.bias.grad, rtol=1e-4, atol=1e-6)


def test_many_channels_are_torchs():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 72, 4, 5, generator=g, requires_grad=True)
    weight = torch.randn(8, 72, 3, 3, generator=g, requires_grad=True)
    out = upsample_conv(x, weight, None, 2)
    expected = F.gelu(F.pixel_shuffle(F.conv2d(x, weight, padding=1), 2))
    assert torch.equal(out, expected)
    grads = torch.autograd.grad(out.sum(), (x, weight))
    for a, e in zip(grads, torch.autograd.grad(expected.sum(), (x, weight))):
        torch.testing.assert_close(a, e)


def test_autocast_of_float32_parameters():
    block = NeRVBlock(8, 4, 2)
    x = torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        out = block(x)
    assert out.dtype is torch.bfloat16
    out.float().sum().backward()
    assert block.conv.weight.grad.dtype is torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, "expected `x`"),
        ({"weight": torch.zeros(8, 4, 3, 3)}, "channels of `x`"),
        ({"weight": torch.zeros(8, 3, 2, 3)}, "odd kernel"),
        ({"weight": torch.zeros(6, 3, 3, 3)}, "C \\* scale\\^2 filters"),
        ({"bias": torch.zeros(7)}, "one number per filter"),
        ({"activation": "tanh"}, "`activation`"),
        ({"weight": torch.zeros(8, 3, 3, 3, dtype=torch.float64)}, "one dtype"),
    ],
)
def test_refusals(change, message):
    args = {
        "x": torch.zeros(1, 3, 4, 5),
        "weight": torch.zeros(8, 3, 3, 3),
        "bias": torch.zeros(8),
        "scale": 2,
        "activation": "gelu",
    }
    with pytest.raises(ValueError, match=message):
        upsample_conv(**{**args, **change})
