"""Networks that hold one video: published sizes, odd pictures, missing pixels, and that they learn."""

import math

import pytest
import torch

from vidkernels.data import SceneEngine
from vidkernels.models.nerv import ConvNeXtEncoder, FitConfig, HNeRV, NeRV, decode_video, fit_video, picture_loss
from vidkernels.models.nerv.hnerv import hnerv_kernels, hnerv_widths


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def moving_scene(frames=8, height=45, width=70):
    return SceneEngine(frames, (height, width))(generator(3))["video"]


def psnr(a, b):
    return -10 * math.log10(((a.float() - b.float()) / 255).square().mean())


def decoder_parameters(widths, kernels, strides, embedding):
    """Counted by hand: the first convolution, the blocks, the head, each with its bias."""
    total = (embedding + 1) * widths[0]
    for a, b, k, s in zip(widths, widths[1:], kernels, strides, strict=False):
        total += (a * k * k + 1) * b * s * s
    return total + (widths[-1] * 9 + 1) * 3


def test_the_published_configuration_counts_the_published_parameters():
    with torch.device("meta"):
        model = HNeRV.from_size(1_500_000, 640, 1280, 132)
    widths = hnerv_widths(68, 5, 1.2, 12)
    assert widths == (68, 57, 48, 40, 33, 28)
    assert hnerv_kernels(5, (1, 5)) == (1, 3, 5, 5, 5)
    assert [b.conv.out_channels for b in model.blocks] == [
        c * s * s for c, s in zip(widths[1:], (5, 4, 4, 2, 2), strict=True)
    ]
    counted = decoder_parameters(widths, (1, 3, 5, 5, 5), (5, 4, 4, 2, 2), 16)
    embeddings = 132 * 16 * 2 * 4
    assert model.stored_parameters() == counted + embeddings
    assert abs(model.stored_parameters() / 1.5e6 - 1) < 0.02


def test_nerv_small_counts_its_published_parameters():
    with torch.device("meta"):
        model = NeRV(132, (720, 1280), width=26, strides=(5, 2, 2, 2, 2))
    first = (160 + 1) * 512 + (512 + 1) * 26 * 9 * 16
    blocks = sum(
        (a * 9 + 1) * b * s * s for a, b, s in ((26, 26, 5), (26, 96, 2), (96, 96, 2), (96, 96, 2), (96, 96, 2))
    )
    assert model.stored_parameters() == first + blocks + (96 + 1) * 3
    assert abs(model.stored_parameters() / 3.2e6 - 1) < 0.02  # NeRV-S


@pytest.mark.parametrize("size", [(1, 1), (17, 23), (45, 70), (64, 32)])
@pytest.mark.parametrize("kind", [NeRV, HNeRV])
def test_any_size_and_a_single_frame(kind, size):
    model = kind(1, size, width=8, lowest=8)
    video = torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8)
    assert decode_video(model, video).shape == video.shape


@pytest.mark.parametrize("kind", [NeRV, HNeRV])
def test_a_budget_finds_the_width(kind):
    options = {"lowest": 8, "hidden": 32} if kind is NeRV else {}
    model = kind.from_size(60_000, 45, 70, 8, **options)
    assert 0.7 * 60_000 < model.stored_parameters() < 1.05 * 60_000
    with pytest.raises(ValueError, match="parameters"):
        kind.from_size(500, 45, 70, 800)


def test_the_same_generator_gives_the_same_network():
    models = [HNeRV(4, (32, 32), width=8, generator=generator(1)) for _ in range(2)]
    for a, b in zip(*(m.state_dict().values() for m in models), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("loss", ["l2", "l1_ssim"])
@pytest.mark.parametrize("kind", [NeRV, HNeRV])
def test_every_parameter_learns_and_the_picture_gets_better(kind, loss):
    video = moving_scene()
    model = kind(len(video), tuple(video.shape[1:3]), width=16, lowest=12, generator=generator())
    before = psnr(decode_video(model, video), video)
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = fit_video(model, video, FitConfig(120, learning_rate=3e-3, loss=loss), generator=generator(1))
    assert len(losses) == 120
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    assert psnr(decode_video(model, video), video) > before + 3
    assert not [name for name, p in model.named_parameters() if torch.equal(p, kept[name])]


def test_a_fit_is_the_same_twice():
    video = moving_scene(4)
    runs = []
    for _ in range(2):
        model = HNeRV(4, tuple(video.shape[1:3]), width=8, generator=generator())
        runs.append(fit_video(model, video, FitConfig(6), generator=generator(2)))
    assert runs[0] == runs[1]


def test_missing_pixels_are_neither_shown_nor_counted():
    video = moving_scene(4)
    mask = torch.zeros(video.shape[:3], dtype=torch.bool)
    mask[:, 10:30, 20:50] = True
    other = video.masked_fill(mask.unsqueeze(-1), 255)
    runs = []
    for clip in (video, other):
        model = HNeRV(4, tuple(video.shape[1:3]), width=8, generator=generator())
        runs.append(fit_video(model, clip, FitConfig(6), mask=mask, generator=generator(2)))
    assert runs[0] == runs[1]
    picture = torch.rand(2, 3, *video.shape[1:3])
    assert picture_loss(picture, video[:2], mask[:2]) != picture_loss(picture, video[:2])


def test_interpolation_meets_the_frames_and_lies_between_them():
    model = HNeRV(3, (32, 48), width=8, generator=generator())
    frames = torch.rand(3, 3, 32, 48, generator=generator(4))
    embeddings = model.encode(frames)
    middle = model.interpolate(embeddings, torch.tensor([0.0, 1.0, 0.5]))
    torch.testing.assert_close(middle[:2], model.decode(embeddings[:2]))
    torch.testing.assert_close(middle[2:], model.decode((embeddings[:1] + embeddings[1:2]) / 2))


def test_bytes_and_floats_are_the_same_frames():
    model = HNeRV(2, (20, 30), width=8, generator=generator())
    frames = torch.randint(0, 256, (2, 20, 30, 3), dtype=torch.uint8, generator=generator(5))
    torch.testing.assert_close(model(frames), model(frames.permute(0, 3, 1, 2).float() / 255))


def test_the_encoder_shrinks_by_its_strides():
    assert ConvNeXtEncoder((5, 4, 2, 2), embedding=3)(torch.rand(1, 3, 160, 80)).shape == (1, 3, 2, 1)


@pytest.mark.parametrize(
    "build",
    [
        lambda: HNeRV(0, (32, 32)),
        lambda: HNeRV(1, (0, 32)),
        lambda: HNeRV(1, (32, 32), strides=(2, 0)),
        lambda: HNeRV(1, (32, 32), kernels=(2, 4)),
        lambda: HNeRV(1, (32, 32), width=8).encode(torch.rand(1, 3, 16, 16)),
        lambda: fit_video(NeRV(2, (16, 16)), torch.zeros(3, 16, 16, 3, dtype=torch.uint8), FitConfig(1)),
        lambda: picture_loss(torch.rand(1, 3, 4, 4), torch.zeros(1, 4, 4, 3, dtype=torch.uint8), loss="l3"),
    ],
)
def test_bad_input_is_refused(build):
    with pytest.raises(ValueError, match=r"HINT|expected"):
        build()


def test_a_loss_that_is_no_number_stops_with_the_last_good_weights():
    video = moving_scene(2)
    model = NeRV(2, tuple(video.shape[1:3]), width=8, lowest=8)
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(FloatingPointError, match="step 1"):
        fit_video(model, video, FitConfig(3))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), kept[name], equal_nan=True, rtol=0, atol=0)
