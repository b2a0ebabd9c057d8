"""LatentNeRV and FlowNeRV: shapes, what they may depend on, and that they learn."""

import pytest
import torch

from vidkernels.models.nerv.flow_nerv import FlowDecoder, FlowNeRV, neighbours
from vidkernels.models.nerv.latent_nerv import LatentDecoder, LatentNeRV, latent_strides, latent_widths


def made(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(80, 160), (81, 90), (45, 61), (16, 16), (5, 7), (1, 1)])
def test_pictures_of_any_size(size):
    model = LatentNeRV(3, size, latent=8, channels=(8,) * (len(latent_strides(size)) - 1), generator=made())
    out = model(torch.tensor([2, 0]))
    assert out.shape == (2, 3, *size)
    assert torch.equal(out[1], model.decode(model.latents[:1])[0])


def test_the_usual_sizes():
    """160x320 gets latents of 2x4, as the recipe says; widths are multiples of 8."""
    model = LatentNeRV(5, (160, 320), latent=32)
    assert model.latents.shape == (5, 32, 2, 4)
    assert all(width % 8 == 0 for first in (8, 40, 72) for width in latent_widths(first, 4))
    counted = 9 * (32 * 32 * 25 + 32 * 24 * 16 + 24 * 16 * 4 + 16 * 12) + 32 * 25 + 24 * 16 + 16 * 4 + 12
    assert sum(p.numel() for p in model.decoder.parameters()) == counted


def test_against_torch_layer_by_layer():
    decoder = LatentDecoder(8, (16, 8), (5, 2, 2), generator=made(1)).double()
    x = torch.randn(2, 8, 2, 3, generator=made(2), dtype=torch.float64)
    y = x
    for block, scale in zip(decoder.blocks, (5, 2), strict=True):
        y = torch.nn.functional.conv2d(y, block.conv.weight, block.conv.bias, padding=1)
        y = torch.nn.functional.gelu(torch.nn.functional.pixel_shuffle(y, scale))
    y = torch.nn.functional.conv2d(y, decoder.head.weight, decoder.head.bias, padding=1)
    torch.testing.assert_close(decoder(x), torch.nn.functional.pixel_shuffle(y, 2) + 0.5)


def test_the_generator_decides_about_the_first_numbers():
    a, b, c = (
        LatentNeRV(2, (20, 20), latent=8, channels=(8, 8), strides=(5, 2, 2), generator=made(s)) for s in (1, 1, 2)
    )
    for x, y, z in zip(a.parameters(), b.parameters(), c.parameters(), strict=True):
        assert torch.equal(x, y)
        assert not torch.equal(x, z)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="LatentDecoder"):
        LatentDecoder(8, (8, 8), (2, 2))
    with pytest.raises(ValueError, match="LatentDecoder"):
        LatentDecoder(0, (8,), (2, 2))
    with pytest.raises(ValueError, match="LatentNeRV"):
        LatentNeRV(0, (8, 8))
    with pytest.raises(ValueError, match="FlowNeRV"):
        FlowNeRV(5, torch.rand(2, 3, 8, 8), (3, 3))
    with pytest.raises(ValueError, match="FlowNeRV"):
        FlowNeRV(5, torch.rand(2, 3, 8, 8), (3,))


def _descended(model, clip, steps):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    index = torch.arange(len(clip))
    losses = []
    for _ in range(steps):
        loss = (model(index) - clip).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _sliding(frames=5, height=20, width=30):
    """A pattern that moves two pixels a frame."""
    x = torch.arange(width + 2 * frames).float()
    wave = (torch.sin(x / 2.3) + torch.sin(x / 5.1)) / 5 + 0.5
    rows = torch.stack([wave[2 * t : 2 * t + width] for t in range(frames)])
    return rows[:, None, None, :].expand(frames, 3, height, width).contiguous()


def test_both_learn_a_clip():
    clip = _sliding()
    for model in (
        LatentNeRV(5, (20, 30), latent=8, channels=(8,), strides=(5, 2), generator=made()),
        FlowNeRV(5, clip[[0, 4]], (0, 4), latent=8, channels=(8,), strides=(5, 2), generator=made()),
    ):
        losses = _descended(model, clip, 60)
        assert losses[-1] < 0.2 * losses[0]


def test_key_frames_are_found_by_time():
    keys = (0, 4, 9)
    times = torch.tensor([0.0, 0.5, 4.0, 8.9, 9.0])
    before, after = neighbours(times, keys)
    assert before.tolist() == [0, 0, 1, 1, 1]
    assert after.tolist() == [1, 1, 2, 2, 2]
    before, after = neighbours(times, (3,))
    assert before.tolist() == after.tolist() == [0] * 5


def test_flow_moves_the_key_frame_by_pixels():
    """With all weight on the key frame before and a flow of two pixels, the picture is the key frame moved by two."""
    decoder = FlowDecoder(4, (8,), (5, 2), generator=made())
    with torch.no_grad():
        for conv in (decoder.flow, decoder.head):
            conv.weight.zero_()
            conv.bias.zero_()
        decoder.flow.bias[0] = 2.0  # x of the flow into the frame before
        decoder.head.bias[16:20] = 60.0  # its share, in the four pixels of a cell
    key = torch.rand(1, 3, 20, 30, generator=made(3))
    out = decoder(torch.zeros(1, 4, 2, 3), key, torch.zeros_like(key))
    torch.testing.assert_close(out[..., :-2], key[..., 2:], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[..., -1], key[..., -1], atol=1e-5, rtol=0)  # the border is repeated
