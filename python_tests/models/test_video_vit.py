import math

import pytest
import torch

from vidkernels.models import (
    MaskedVideoDecoder,
    VideoViTConfig,
    VideoViTEncoder,
    grid_positions,
    sequence_positions,
)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# ViT-S/16 and ViT-B/16 without their head have 21,665,664 and 85,798,656 parameters (timm, DeiT). Taken off:
# class token, 197 positions, 16 x 16 x 3 patch embedding.
@pytest.mark.parametrize(
    ("config", "published"), [(VideoViTConfig.small(), 21_665_664), (VideoViTConfig.base(), 85_798_656)]
)
def test_encoder_has_the_published_parameter_count(config, published):
    width = config.width
    outside = width + 197 * width + (16 * 16 * 3 * width + width)
    assert parameters(VideoViTEncoder(config)) == published - outside


def test_tokens_are_treated_as_a_set():
    torch.manual_seed(0)
    encoder = VideoViTEncoder(VideoViTConfig.tiny()).double()
    tokens, order = torch.randn(2, 13, 64, dtype=torch.float64), torch.randperm(13)
    torch.testing.assert_close(encoder(tokens)[:, order], encoder(tokens[:, order]))


def test_block_equals_attention_written_out():
    torch.manual_seed(0)
    encoder = VideoViTEncoder(VideoViTConfig(width=24, depth=1, heads=3)).double()
    block, x = encoder.blocks[0], torch.randn(2, 7, 24, dtype=torch.float64)

    def norm(layer, value):
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight + layer.bias

    def linear(layer, value):
        return value @ layer.weight.T + layer.bias

    q, k, v = (part.reshape(2, 7, 3, 8) for part in linear(block.qkv, norm(block.norm1, x)).chunk(3, -1))
    weight = torch.einsum("bihd,bjhd->bhij", q, k).div(math.sqrt(8)).softmax(-1)
    expected = x + linear(block.proj, torch.einsum("bhij,bjhd->bihd", weight, v).reshape(2, 7, 24))
    hidden = linear(block.up, norm(block.norm2, expected))
    expected = expected + linear(block.down, hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))
    torch.testing.assert_close(encoder(x), norm(encoder.norm, expected))


def test_decoder_output_follows_the_masked_index():
    torch.manual_seed(0)
    decoder = MaskedVideoDecoder(VideoViTConfig.tiny(), encoder_width=32, outputs=12).double()
    table = grid_positions((2, 3, 5), 64).double()
    order = torch.randperm(30)
    visible, masked = order[None, :8].int(), order[None, 8:].int()
    tokens = torch.randn(1, 8, 32, dtype=torch.float64)
    out = decoder(tokens, visible, masked, table)
    assert out.shape == (1, 22, 12)
    shuffle, seen = torch.randperm(22), torch.randperm(8)
    again = decoder(tokens[:, seen], visible[:, seen], masked[:, shuffle], table)
    torch.testing.assert_close(again, out[:, shuffle])
    # The rows differ only through their positions, so equal rows would mean the positions are lost.
    assert out[0].std(dim=0).min() > 1e-4


def test_sequence_positions_closed_form():
    table = sequence_positions(50, 8)
    for n, channel in [(0, 0), (1, 0), (7, 2), (7, 3), (49, 6), (49, 7)]:
        angle = n / 10000 ** (2 * (channel // 2) / 8)
        expected = math.cos(angle) if channel % 2 else math.sin(angle)
        assert table[n, channel].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 7, 5), (3, 5, 7), (8, 14, 14)])
@pytest.mark.parametrize("width", [2, 48, 64, 70])
def test_grid_positions_any_grid_and_even_width(grid, width):
    table = grid_positions(grid, width)
    assert table.shape == (math.prod(grid), width)
    assert table.abs().max() <= 1
    # Each frequency pair contributes sin^2 + cos^2 = 1.
    torch.testing.assert_close(table.square().sum(1), torch.full((len(table),), width / 2))
    if width >= 48:
        assert len(torch.unique(table, dim=0)) == len(table)


def test_grid_positions_order_is_time_height_width():
    table = grid_positions((2, 3, 5), 60).view(2, 3, 5, 60)
    assert not torch.equal(table[:, 0, 0, 20:], table[:, 2, 4, 20:])
    assert torch.equal(table[0, :, :, :20], table[0, :1, :1, :20].expand(3, 5, 20))
    assert torch.equal(table[:, 0, :, 20:40], table[:1, 0, :1, 20:40].expand(2, 5, 20))
    assert torch.equal(table[:, :, 0, 40:], table[:1, :1, 0, 40:].expand(2, 3, 20))


def test_wrong_sizes_are_refused_with_a_hint():
    with pytest.raises(ValueError, match=r"divisible by `heads`[\s\S]*HINT"):
        VideoViTConfig(width=100, heads=3)
    with pytest.raises(ValueError, match=r"even `width`[\s\S]*HINT: use 34"):
        grid_positions((1, 2, 3), 33)


@pytest.mark.parametrize("length", [160, 600])  # written out, fused
def test_bfloat16_attention_is_as_close_to_float64_as_torch_gets(length):
    torch.manual_seed(0)
    block = VideoViTEncoder(VideoViTConfig.tiny()).blocks[0]
    x = torch.randn(2, length, 64)

    def attend(tokens, precision):
        tokens = tokens.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out, _ = block.double().attention(tokens.double()) if precision == "fp64" else block.attention(tokens)
        out.double().square().sum().backward()
        return out.detach().double(), tokens.grad.double()

    low = attend(x, "bf16")
    exact = attend(x, "fp64")
    for value, expected in zip(low, exact):
        assert (value - expected).norm() / expected.norm() < 2e-2
