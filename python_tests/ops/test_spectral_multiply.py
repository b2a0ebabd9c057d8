"""spectral_multiply: values by hand, torch's complex arithmetic, shifts and waves in closed form, masks, refusals."""

import math

import pytest
import torch

from vidkernels.functional.nerv.spectral import fourier_layer, spectral_multiply
from vidkernels.nn.nerv.spectral import FourierLayer
from vidkernels.ops.spectral_multiply.op import spectral_multiply as op


@pytest.fixture(params=["reference", "cpu", "simt"])
def backend(request):
    reason = op.why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    return request.param


def unit(rows, columns, channels):
    """The unit matrix at every frequency."""
    weight = torch.zeros(rows, columns, channels, channels, 2)
    weight[..., 0] = torch.eye(channels)
    return weight


def test_by_hand(backend):
    spectrum = torch.zeros(1, 2, 5, 4, dtype=torch.complex64)
    spectrum[0, :, 1, 2] = torch.tensor([1 + 2j, -3j])
    spectrum[0, :, 4, 1] = torch.tensor([2.0, 1 - 1j])
    spectrum[0, :, 2, 2] = 100  # of neither block
    weight = torch.zeros(3, 3, 2, 1, 2)
    weight[1, 2] = torch.tensor([[[2.0, 1.0]], [[0.0, 4.0]]])
    weight[2, 1] = torch.tensor([[[0.0, -1.0]], [[3.0, 0.0]]])
    out = spectral_multiply(spectrum, weight, (9, 6), backend=backend)
    expected = torch.zeros(1, 1, 9, 6, dtype=torch.complex64)
    expected[0, 0, 1, 2] = 12 + 5j  # (1 + 2i)(2 + i) - 3i * 4i
    expected[0, 0, 8, 1] = 3 - 5j  # -2i + 3 (1 - i)
    assert torch.equal(out, expected)


def test_equals_complex_arithmetic_and_its_gradients(backend, generator):
    pictures = torch.randn(3, 4, 12, 10, generator=generator, requires_grad=True)
    weight = torch.randn(7, 4, 4, 6, 2, generator=generator, requires_grad=True)
    up = torch.randn(3, 6, 16, 20, generator=generator)
    theirs = [t.detach().double().requires_grad_() for t in (pictures, weight)]
    x, w = torch.fft.rfft2(theirs[0]), torch.view_as_complex(theirs[1])
    full = x.new_zeros(3, 6, 16, 11)
    full[:, :, :4, :4] = torch.einsum("bixy,xyio->boxy", x[:, :, :4, :4], w[:4])
    full[:, :, -3:, :4] = torch.einsum("bixy,xyio->boxy", x[:, :, -3:, :4], w[4:])
    expected = torch.fft.irfft2(full, s=(16, 20))
    expected.backward(up.double())
    out = torch.fft.irfft2(spectral_multiply(torch.fft.rfft2(pictures), weight, (16, 11), backend=backend), s=(16, 20))
    out.backward(up)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    for mine, other in zip((pictures, weight), theirs):
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-4, atol=1e-5)


def test_a_phase_is_a_shift(backend, generator):
    """Every frequency times exp(-2 pi i k d / n) moves the picture by d, wrapping round."""
    height, width, down, right = 9, 7, 2, 3
    picture = torch.randn(1, 1, height, width, generator=generator)
    rows = torch.tensor([*range(5), *range(-4, 0)])
    phase = -2 * math.pi * (rows[:, None] * down / height + torch.arange(4) * right / width)
    weight = torch.stack([phase.cos(), phase.sin()], -1).view(9, 4, 1, 1, 2)
    moved = fourier_layer(picture, weight, backend=backend)
    torch.testing.assert_close(moved, picture.roll((down, right), (2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_unit_matrices_enlarge_waves_through_their_pixels(backend, scale):
    def waves(factor):
        y, x = (torch.arange(n * factor) / (n * factor) * 2 * math.pi for n in (8, 10))
        return 1 + 0.5 * torch.cos(2 * y[:, None] - x) + 0.25 * torch.sin(y[:, None] + 3 * x)

    out = fourier_layer(waves(1).expand(2, 3, 8, 10), unit(5, 4, 3), scale, backend=backend)
    torch.testing.assert_close(out, waves(scale).expand(2, 3, -1, -1), rtol=1e-5, atol=1e-5)


def test_frequencies_that_are_not_kept_go(backend):
    x = torch.arange(16) / 16 * 2 * math.pi
    picture = (torch.cos(x) + torch.cos(5 * x)).expand(1, 1, 4, 16)
    out = fourier_layer(picture, unit(1, 3, 1), backend=backend)
    torch.testing.assert_close(out, torch.cos(x).expand(1, 1, 4, 16), rtol=1e-5, atol=1e-5)


def test_masked_numbers_are_zeros_and_learn_nothing(backend, generator):
    spectrum = torch.fft.rfft2(torch.randn(2, 3, 6, 8, generator=generator))
    weight = torch.randn(4, 3, 3, 5, 2, generator=generator)
    mask = torch.rand(weight.shape, generator=generator) < 0.3
    plain, masked = (weight * mask).requires_grad_(), weight.clone().requires_grad_()
    expected = spectral_multiply(spectrum, plain, backend=backend)
    out = spectral_multiply(spectrum, masked, mask=mask, backend=backend)
    assert torch.equal(out, expected)
    for result in (out, expected):
        torch.view_as_real(result).square().sum().backward()
    assert torch.equal(masked.grad, plain.grad * mask)


def test_a_known_filter_is_learned(generator):
    """The layer can be any cyclic convolution of kept frequencies."""
    truth = FourierLayer(2, 3, (5, 4), 2, generator=generator)
    layer = FourierLayer(2, 3, (5, 4), 2, generator=generator)
    pictures = torch.randn(32, 2, 8, 8, generator=generator)
    target = truth(pictures).detach()
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    losses = []
    for _ in range(120):
        loss = (layer(pictures) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_transformed_in_float(dtype, generator):
    x, weight = torch.randn(2, 3, 6, 6, generator=generator).to(dtype), unit(3, 3, 3)
    out = fourier_layer(x, weight, 2)
    assert out.dtype is dtype
    assert torch.equal(out, fourier_layer(x.float(), weight, 2).to(dtype))


def test_autocast_keeps_the_spectrum_in_float(generator):
    x, weight = torch.randn(1, 3, 6, 6, generator=generator), unit(3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fourier_layer(x, weight), fourier_layer(x, weight))
        assert fourier_layer(x, weight).dtype is torch.float32


def test_what_does_not_fit_is_refused():
    spectrum, weight = torch.fft.rfft2(torch.zeros(1, 2, 4, 6)), torch.zeros(3, 3, 2, 5, 2)
    with pytest.raises(ValueError, match="complex `spectrum`"):
        spectral_multiply(spectrum.real, weight)
    with pytest.raises(ValueError, match="channels of `spectrum`"):
        spectral_multiply(spectrum, weight[:, :, :1])
    with pytest.raises(ValueError, match=r"dtype torch\.float32"):
        spectral_multiply(spectrum, weight.double())
    for size in ((2, 4), (8, 2)):
        with pytest.raises(ValueError, match="no more rows and columns"):
            spectral_multiply(spectrum, weight, size)
    with pytest.raises(ValueError, match="bool `mask`"):
        spectral_multiply(spectrum, weight, mask=torch.ones(3, 3))
    with pytest.raises(ValueError, match="`scale` of 1"):
        fourier_layer(torch.zeros(1, 2, 4, 6), weight, 0)
    with pytest.raises(ValueError, match="floating `x`"):
        fourier_layer(torch.zeros(1, 2, 4, 6, dtype=torch.uint8), weight)
    with pytest.raises(ValueError, match="`modes`"):
        FourierLayer(2, 2, (0, 3))
