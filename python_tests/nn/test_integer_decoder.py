"""Integer decoders against the float decoders that they stand for, and against themselves on every road."""

import io

import pytest
import torch
from torch import nn

from vidkernels import _backend
from vidkernels.models.nerv.fit import FitConfig, fit_video
from vidkernels.models.nerv.hnerv import HNeRV
from vidkernels.models.nerv.latent_nerv import LatentNeRV
from vidkernels.models.nerv.nerv import NeRV
from vidkernels.nn.nerv.block import NeRVBlock
from vidkernels.nn.nerv.integer import IntegerDecoder, IntegerLayer, quantize_decoder


def made(seed=0):
    return torch.Generator().manual_seed(seed)


def psnr(a, b):
    return float(10 * torch.log10(255**2 / (a.double() - b.double()).square().mean()))


def video(frames, height, width):
    t, y, x, c = torch.meshgrid(*(torch.linspace(0, 1, n) for n in (frames, height, width, 3)), indexing="ij")
    wave = 0.5 + 0.35 * torch.sin(9 * x + 5 * t + 4 * c) * torch.cos(7 * y - 3 * t)
    return ((wave + 0.1 * ((x - 0.2 - 0.4 * t).abs() < 0.1)).clamp(0, 1) * 255).round().to(torch.uint8)


def bytes_of(pictures):
    return (pictures.detach() * 255).round().clamp(0, 255).permute(0, 2, 3, 1)


@pytest.fixture(scope="module")
def fitted():
    """(frames, the float decoder's frames, integer decoder, its latents) of a small HNeRV that has learned a clip."""
    frames, g = video(5, 31, 60), made()
    model = HNeRV.from_size(
        12_000, 31, 60, frames=5, strides=(4, 2, 2), embedding=8, kernels=(1, 3), encoder_width=8, generator=g
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers this small
    fit_video(model, frames, FitConfig(80, learning_rate=6e-3), generator=g)
    torch.set_num_threads(threads)
    with torch.no_grad():
        latents = model.encode(frames)
        pictures = bytes_of(model.decode(latents))
    decoder = quantize_decoder([model.stem, *model.blocks], model.head, latents, size=model.size)
    return frames, pictures, decoder, decoder.encode(latents)


def test_cost_of_the_integers(fitted):
    frames, pictures, decoder, latents = fitted
    drawn = decoder(latents)
    assert drawn.shape == frames.shape
    assert drawn.dtype is torch.uint8
    assert psnr(pictures, frames) > 22  # it has learned something
    assert psnr(drawn, frames) > psnr(pictures, frames) - 0.03
    assert psnr(drawn, pictures) > 46


def test_the_same_bits_on_every_road(fitted, one_and_two_threads):
    _, _, decoder, latents = fitted
    one, two = one_and_two_threads(lambda: decoder(latents))
    assert torch.equal(one, two)
    single = torch.cat([decoder(x[None]) for x in latents])
    assert torch.equal(one, single)
    with _backend.backend("reference"):
        assert torch.equal(decoder(latents), one)


def test_a_stored_decoder_draws_the_same(fitted):
    _, _, decoder, latents = fitted
    file = io.BytesIO()
    torch.save(decoder.state_dict(), file)
    file.seek(0)
    back = IntegerDecoder.from_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(back(latents), decoder(latents))
    assert torch.equal(back.encode(torch.ones(1, 8, 2, 4)), decoder.encode(torch.ones(1, 8, 2, 4)))
    other = IntegerDecoder(
        [IntegerLayer(*(torch.zeros_like(b) for b in layer.buffers())) for layer in decoder.layers], step=1.0
    )
    other.load_state_dict(decoder.state_dict())
    assert torch.equal(other(latents), decoder(latents))


def test_decoders_of_latent_nerv_and_nerv():
    model = LatentNeRV(6, (44, 70), latent=8, channels=(16, 8), strides=(5, 2, 2), generator=made(1))
    latents = 3 * torch.randn(model.latents.shape, generator=made(2))
    d = model.decoder
    decoder = quantize_decoder(d.blocks, d.head, latents, head_scale=d.head_scale, picture="half", size=model.size)
    assert psnr(decoder(decoder.encode(latents)), bytes_of(model.decode(latents))) > 45

    model = NeRV(9, (45, 70), width=8, lowest=8, hidden=16, generator=made(3))
    with torch.no_grad():
        x = model.stem(model.time(torch.arange(9) / 9)).view(-1, 8, *model.grid)
        pictures = bytes_of(model(torch.arange(9)))
    decoder = quantize_decoder(model.blocks, model.head, x, size=model.size)
    assert psnr(decoder(decoder.encode(x)), pictures) > 45


@pytest.mark.parametrize("activation", ["sine", "relu", "none"])
def test_every_activation(activation):
    g = made(5)
    block, head = NeRVBlock(6, 8, 2, activation=activation), nn.Conv2d(8, 3, 3, padding=1, bias=False)
    with torch.no_grad():
        for conv in (block.conv, head):
            conv.weight.copy_(torch.randn(conv.weight.shape, generator=g) / 7)
        block.conv.weight[5] = 0  # a filter that is nothing but a bias
        block.conv.bias.copy_(torch.randn(block.conv.bias.shape, generator=g))
    x = torch.randn(3, 6, 9, 11, generator=g)
    decoder = quantize_decoder([block], head, x)
    pictures = bytes_of(0.5 * torch.tanh(head(block(x))) + 0.5)
    assert pictures.std() > 15
    assert (decoder(decoder.encode(x)) - pictures).abs().mean() < 2


def test_refusals():
    block, head = NeRVBlock(4, 6, 2), nn.Conv2d(6, 3, 3, padding=1)
    x = torch.randn(2, 4, 3, 4, generator=made())
    with pytest.raises(ValueError, match="finite"):
        quantize_decoder([block], head, x / 0)
    with pytest.raises(ValueError, match="finite"):
        quantize_decoder([block], head, x[:0])
    with pytest.raises(ValueError, match="`picture`"):
        quantize_decoder([block], head, x, picture="sigmoid")
    with pytest.raises(ValueError, match="keep the size"):
        quantize_decoder([block], nn.Conv2d(6, 3, 3), x)
    with pytest.raises(ValueError, match="keep the size"):
        quantize_decoder([block], nn.Conv2d(6, 3, 3, padding=1, groups=3), x)
    with pytest.raises(ValueError, match="at least one layer"):
        IntegerDecoder([], step=1.0)
    with pytest.raises(ValueError, match="channels of `x`"):
        quantize_decoder([block], head, x)(torch.zeros(1, 2, 2, 5, dtype=torch.uint8))
