"""PSNR, SSIM and MS-SSIM of clips: closed forms, and scikit-image and torchmetrics as oracles."""

import math

import numpy as np
import pytest
import torch

from vidkernels.metrics import frame_psnr, ms_ssim, psnr, ssim


def clip(generator, *size):
    return torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator)


def noisy(source, generator, strength=20):
    noise = torch.randn(source.shape, generator=generator) * strength
    return (source.float() + noise).round().clamp(0, 255).to(torch.uint8)


def smooth(generator, t, h, w):
    """Frames with structure at every scale, unlike noise."""
    coarse = torch.rand(t, 3, h // 16 + 2, w // 16 + 2, generator=generator)
    big = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bicubic")
    return (big.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("error", [1, 2, 17, 255])
def test_psnr_of_a_constant_error(error):
    source = torch.zeros(3, 5, 7, 3, dtype=torch.uint8)
    expected = 20 * math.log10(255 / error)
    for pool in ("frames", "pixels"):
        assert psnr(source + error, source, pool=pool) == pytest.approx(expected, abs=1e-12)
        assert psnr(source, source + error, pool=pool) == pytest.approx(expected, abs=1e-12)


def test_one_wrong_pixel_counts_as_one_in_all():
    source = torch.full((1, 8, 4, 3), 100, dtype=torch.uint8)
    decoded = source.clone()
    decoded[0, 3, 2, 1] = 110
    assert psnr(decoded, source) == pytest.approx(10 * math.log10(255**2 * 96 / 100), abs=1e-12)


def test_psnr_pools_decibels_or_errors():
    source = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    decoded = source.clone()
    decoded[0] += 1
    decoded[1] += 3
    assert frame_psnr(decoded, source).tolist() == pytest.approx([20 * math.log10(255), 20 * math.log10(85)])
    assert psnr(decoded, source) == pytest.approx(10 * math.log10(255 * 85))
    assert psnr(decoded, source, pool="pixels") == pytest.approx(10 * math.log10(255**2 / 5))


def test_equal_frames_are_inf_and_only_one_pool_is(generator):
    source = clip(generator, 2, 16, 16)
    decoded = torch.stack([source[0], noisy(source[1], generator)])
    assert psnr(source, source) == psnr(source, source, pool="pixels") == math.inf
    assert psnr(decoded, source) == math.inf
    half = frame_psnr(decoded, source)[1].item() + 10 * math.log10(2)
    assert psnr(decoded, source, pool="pixels") == pytest.approx(half)


def test_psnr_agrees_with_skimage(generator):
    from skimage.metrics import peak_signal_noise_ratio

    source = clip(generator, 4, 33, 21)
    decoded = noisy(source, generator)
    expected = [peak_signal_noise_ratio(s.numpy(), d.numpy(), data_range=255) for s, d in zip(source, decoded)]
    assert frame_psnr(decoded, source).tolist() == pytest.approx(expected, abs=1e-10)
    assert psnr(decoded.double() / 255, source.double() / 255) == pytest.approx(np.mean(expected), abs=1e-10)


@pytest.mark.parametrize("size", [(11, 11), (13, 40), (64, 47)])
def test_ssim_agrees_with_skimage(generator, size):
    from skimage.metrics import structural_similarity

    source = smooth(generator, 3, *size)
    decoded = noisy(source, generator)
    expected = np.mean(
        [
            structural_similarity(
                s.double().numpy(), d.double().numpy(), data_range=255, channel_axis=-1, gaussian_weights=True,
                sigma=1.5, use_sample_covariance=False,
            )
            for s, d in zip(source, decoded)
        ]
    )  # fmt: skip
    assert ssim(decoded, source) == pytest.approx(expected, abs=2e-6)
    assert ssim(decoded.double() / 255, source.double() / 255) == pytest.approx(expected, abs=1e-9)


def structure_by_scipy(x, y):
    """Means of SSIM and of its contrast-structure factor, in float64, by scipy's Gaussian filter."""
    from scipy.ndimage import gaussian_filter

    def blur(plane):
        return gaussian_filter(plane, 1.5, truncate=3.5, axes=(0, 1))[5:-5, 5:-5]

    mx, my = blur(x), blur(y)
    c1, c2 = 2.55**2, 7.65**2
    cs = (2 * (blur(x * y) - mx * my) + c2) / (blur(x * x) - mx * mx + blur(y * y) - my * my + c2)
    return ((2 * mx * my + c1) / (mx * mx + my * my + c1) * cs).mean(), cs.mean()


def test_ms_ssim_agrees_with_scipy(generator):
    source = smooth(generator, 2, 180, 203)
    decoded = noisy(source, generator, 8)
    expected = 0.0
    for x, y in zip(decoded.double().numpy(), source.double().numpy()):
        product = 1.0
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            product *= structure_by_scipy(x, y)[scale < 4] ** weight
            h, w = x.shape[0] // 2, x.shape[1] // 2
            x, y = (z[: 2 * h, : 2 * w].reshape(h, 2, w, 2, 3).mean((1, 3)) for z in (x, y))
        expected += product / 2
    assert ms_ssim(decoded, source) == pytest.approx(expected, abs=2e-6)
    assert ms_ssim(decoded.double() / 255, source.double() / 255) == pytest.approx(expected, abs=1e-9)


def test_ssim_agrees_with_torchmetrics(generator):
    """Inside the frame; torchmetrics adds windows over the mirrored edge, which are cut off here."""
    try:
        import torchmetrics.functional.image as image
    except Exception as error:  # it imports torchvision, which fails in its own ways
        pytest.skip(f"torchmetrics: {error}")
    source = smooth(generator, 2, 180, 200)
    decoded = noisy(source, generator, 8)
    pair = [x.permute(0, 3, 1, 2).double() for x in (decoded, source)]
    _, windows = image.structural_similarity_index_measure(*pair, data_range=255.0, return_full_image=True)
    assert ssim(decoded, source) == pytest.approx(windows[..., 5:-5, 5:-5].mean().item(), abs=2e-6)


def test_ssim_of_two_flat_frames_is_the_luminance_term():
    dark, light = torch.full((1, 176, 176, 3), 50, dtype=torch.uint8), torch.full((1, 176, 176, 3), 100).byte()
    c1 = (0.01 * 255) ** 2
    luminance = (2 * 50 * 100 + c1) / (50**2 + 100**2 + c1)
    assert ssim(dark, light) == pytest.approx(luminance, abs=1e-5)
    assert ms_ssim(dark, light) == pytest.approx(luminance**0.1333, abs=1e-5)


def test_equal_clips_have_similarity_one(generator):
    source = clip(generator, 2, 176, 180)
    assert ssim(source, source) == pytest.approx(1, abs=1e-6)
    assert ms_ssim(source, source) == pytest.approx(1, abs=1e-6)
    assert ms_ssim(source, 255 - source) == 0.0  # negative correlation at some scale


@pytest.mark.parametrize("metric", [psnr, frame_psnr, ssim, ms_ssim])
def test_bad_clips_are_refused(metric):
    a = torch.zeros(1, 200, 200, 3, dtype=torch.uint8)
    for words, pair in [
        ("one shape", (a, a[:, 1:])),
        ("one shape and dtype", (a, a.float())),
        ("uint8 .* or floating", (a.int(), a.int())),
        ("not empty", (a[:0], a[:0])),
        (r"\[T, H, W, C\]", (a[0, 0], a[0, 0])),
    ]:
        with pytest.raises(ValueError, match=words):
            metric(*pair)
    with pytest.raises(TypeError, match="to be a torch"):
        metric(a.numpy(), a)


def test_frames_too_small_for_the_window_are_refused():
    a = torch.zeros(1, 10, 300, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(a, a)
    b = torch.zeros(1, 175, 300, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="176 x 176"):
        ms_ssim(b, b)
    with pytest.raises(ValueError, match="pool"):
        psnr(a, a, pool="mean")
