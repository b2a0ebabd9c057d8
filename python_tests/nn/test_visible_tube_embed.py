"""VisibleTubeEmbed: construction, and equality with the patch embeddings whose weights it takes over."""

import pytest
import torch

import vidkernels as vk
from vidkernels.testing import assert_close

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(video):
    clip = video.permute(0, 4, 1, 2, 3).float() / 255
    return (clip - torch.tensor(MEAN).view(3, 1, 1, 1)) / torch.tensor(STD).view(3, 1, 1, 1)


def clip(*size):
    return torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def visible(batch, length, count):
    g = torch.Generator().manual_seed(1)
    return torch.rand(batch, length, generator=g).argsort(1)[:, :count].sort(1).values


def picked(tokens, index):
    return torch.stack([tokens[b, index[b]] for b in range(len(index))]).double()


@pytest.fixture(scope="module", autouse=True)
def torchvision_without_its_operators():
    """A torchvision built for CUDA beside a CPU torch fails on import because its operator library does not load.

    The models here use none of its operators, so the two that the import trips over are declared and nothing more.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        yield library
    else:
        yield None


def test_takes_over_a_videomae_embedding():
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=32, patch_size=16, num_frames=4, tubelet_size=2, hidden_size=24, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.VideoMAEModel(config).eval()
    video, index = clip(2, 4, 32, 32), visible(2, 8, 3)
    masked = torch.ones(2, 8, dtype=torch.bool).scatter_(1, index, False)
    pixels = normalised(video).transpose(1, 2)
    with torch.no_grad():
        expected = model.embeddings(pixels, masked)
    embed = vk.nn.VisibleTubeEmbed.from_conv3d(
        model.embeddings.patch_embeddings, grid=(2, 2, 2), mean=MEAN, std=STD,
        position=model.embeddings.position_embeddings,
    )  # fmt: skip
    assert embed.tube == (2, 16, 16)
    assert "position" in dict(embed.named_buffers())
    assert_close(embed(video, index).detach(), expected.double(), 1e-5, "VideoMAE embeddings")


def test_takes_over_a_timm_patch_embedding():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64, num_classes=0).eval()
    images, index = clip(2, 1, 64, 64), visible(2, 16, 5)
    with torch.no_grad():
        tokens = model.patch_embed(normalised(images)[:, :, 0]) + model.pos_embed[:, 1:]
    embed = vk.nn.VisibleTubeEmbed.from_conv3d(
        model.patch_embed, mean=MEAN, std=STD, position=torch.nn.Parameter(model.pos_embed[:, 1:].detach())
    )
    assert embed.tube == (1, 16, 16)
    assert "position" in dict(embed.named_parameters())
    assert_close(embed(images, index).detach(), picked(tokens, index), 1e-5, "timm tokens")
    assert_close(embed(images).detach(), tokens.double(), 1e-5, "all tubes")


def test_takes_over_a_plain_conv3d_and_copies_it():
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(3, 10, (2, 4, 4), (2, 4, 4), bias=False)
    embed = vk.nn.VisibleTubeEmbed.from_conv3d(conv, mean=MEAN, std=STD)
    video, index = clip(2, 4, 8, 12), visible(2, 12, 4)
    expected = conv(normalised(video)).flatten(2).transpose(1, 2).detach()
    assert embed.bias is None
    assert embed.position is None
    assert_close(embed(video, index).detach(), picked(expected, index), 1e-5)
    with torch.no_grad():
        embed.weight.zero_()
    assert bool(conv.weight.any())


def test_float_clips_that_are_already_normalised():
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(3, 10, (2, 4, 4), (2, 4, 4))
    embed = vk.nn.VisibleTubeEmbed.from_conv3d(conv)
    pixels, index = normalised(clip(2, 4, 8, 12)), visible(2, 12, 4)
    expected = conv(pixels).flatten(2).transpose(1, 2).detach()
    assert_close(embed(pixels, index).detach(), picked(expected, index), 1e-5)


def test_training_moves_every_parameter():
    torch.manual_seed(0)
    embed = vk.nn.VisibleTubeEmbed(3, 8, (2, 4, 4), (1, 2, 3), MEAN, STD)
    video, index = clip(2, 2, 8, 12), visible(2, 6, 2)
    embed(video, index).square().sum().backward()
    assert set(dict(embed.named_parameters())) == {"weight", "bias", "position"}
    for parameter in embed.parameters():
        assert float(parameter.grad.abs().sum()) > 0
    never = sorted(set(range(6)) - set(index.flatten().tolist()))
    assert float(embed.position.grad[never].abs().sum()) == 0


def test_sincos_position_is_fixed_and_follows_its_formula():
    embed = vk.nn.VisibleTubeEmbed(3, 6, (1, 2, 2), (1, 2, 2), position="sincos")
    assert not embed.position.requires_grad
    angles = [torch.tensor(3.0 / 10000 ** (2 * i / 6)) for i in range(3)]
    expected = torch.stack([value for a in angles for value in (a.sin(), a.cos())])
    assert_close(embed.position[3], expected.double(), 1e-6)
    with torch.no_grad():
        embed.weight.zero_()
    assert_close(embed(clip(1, 1, 4, 4)).detach()[0], embed.position.double(), 1e-6)


def test_state_dict_round_trip():
    torch.manual_seed(0)
    first, second = (vk.nn.VisibleTubeEmbed(3, 8, (2, 4, 4), (1, 2, 2)) for _ in range(2))
    second.load_state_dict(first.state_dict())
    video = clip(1, 2, 8, 8)
    assert torch.equal(first(video), second(video))
    assert first.to(torch.bfloat16)(video).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vk.nn.VisibleTubeEmbed(position="fourier"), "expected `position`"),
        (lambda: vk.nn.VisibleTubeEmbed(grid=None), "needs `grid`"),
        (lambda: vk.nn.VisibleTubeEmbed.from_conv3d(torch.nn.Conv3d(3, 8, 4, 2)), "stride = kernel"),
        (lambda: vk.nn.VisibleTubeEmbed.from_conv3d(torch.nn.Conv3d(3, 8, 4, 4, padding=1)), "no padding"),
    ],
)
def test_construction_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_refuses_what_is_no_convolution():
    with pytest.raises(TypeError, match="got Linear"):
        vk.nn.VisibleTubeEmbed.from_conv3d(torch.nn.Linear(3, 3))
