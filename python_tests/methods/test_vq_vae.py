"""VQ-VAE: the codes are the nearest, the gradient passes them, all are used, and the prior can guess them."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vidkernels.functional.quantize.vq import perplexity
from vidkernels.methods.clustering.vq_vae import VQVAE
from vidkernels.models.conv_frames import as_frames

CODES = 64
TRAIN, HELD_OUT = 48, 18  # frames


def noise_clip(generator):
    return torch.randint(0, 256, (2, 3, 16, 24, 3), dtype=torch.uint8, generator=generator)


def test_codes_are_the_nearest_and_decode_to_what_was_trained(generator):
    torch.manual_seed(0)
    model = VQVAE(VQVAE.Config.tiny())
    clip = noise_clip(generator)
    vectors = model.encoder(as_frames(clip)).permute(0, 2, 3, 1).double()
    distance = (vectors[..., None, :] - model.quantizer.codebook.double()).square().sum(-1)
    index = model.encode(clip)
    assert index.shape == (2, 3, 4, 6)
    chosen = distance.gather(-1, index.flatten(0, 1)[..., None])[..., 0]
    assert torch.allclose(chosen, distance.amin(-1), rtol=1e-5)
    decoded = (model.autoencode(clip)["reconstruction"] * 255).round().clamp(0, 255).permute(0, 2, 3, 1)
    assert torch.equal(model.decode(index).flatten(0, 1), decoded.to(torch.uint8))


def test_the_gradient_passes_the_codes_unchanged(generator):
    torch.manual_seed(0)
    model = VQVAE(VQVAE.Config.tiny())
    frames = as_frames(noise_clip(generator))
    seen = {}
    model.encoder.register_forward_hook(lambda *a: seen.__setitem__("z", a[2]))
    model.decoder.register_forward_pre_hook(lambda *a: seen.__setitem__("q", a[1][0]))
    error = model.autoencode((frames * 255).permute(0, 2, 3, 1).to(torch.uint8)[None])["error"]
    z, q = torch.autograd.grad(error, [seen["z"], seen["q"]])
    assert not torch.equal(seen["z"], seen["q"])
    assert float(q.abs().max()) > 0
    assert torch.equal(z, q)


def test_the_prior_sees_the_past_alone(generator):
    torch.manual_seed(0)
    model = VQVAE(VQVAE.Config.tiny())
    index = torch.randint(32, (1, 2, 3, 4), generator=generator)
    before = model.prior(index).flatten(1, 3)
    for place in (0, 10, 22):
        changed = index.clone()
        changed.view(-1)[place] = (changed.view(-1)[place] + 1) % 32
        moved = (model.prior(changed).flatten(1, 3) - before).abs().amax((0, 2)) > 0
        assert not moved[: place + 1].any()
        assert moved[place + 1]
    assert torch.equal(model.sample((1, 2, 2), torch.Generator().manual_seed(1)),
                       model.sample((1, 2, 2), torch.Generator().manual_seed(1)))  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors
    yield
    torch.set_num_threads(before)


def bunny():
    """Every other frame of the sample clip at 72 x 128."""
    from vidkernels.data import VideoReader, sample_clip

    pytest.importorskip("av")
    try:
        reader = VideoReader(sample_clip())
    except RuntimeError as error:
        pytest.skip(str(error))
    frames = torch.stack([reader[i] for i in range(0, 2 * (TRAIN + HELD_OUT), 2)])
    small = F.interpolate(frames.permute(0, 3, 1, 2).float(), (72, 128), mode="area")
    return small.round().to(torch.uint8).permute(0, 2, 3, 1)


def train_codes(frames, generator, **changes):
    config = replace(VQVAE.Config.tiny(), codes=CODES, dim=16, width=32, downs=3, decay=0.95, prior_width=64, **changes)
    torch.manual_seed(0)
    model = VQVAE(config)
    autoencoder = [p for name, p in model.named_parameters() if not name.startswith("prior")]
    optimizer = torch.optim.Adam(autoencoder, 3e-3)
    for _ in range(150):
        pick = torch.randint(len(frames), (4,), generator=generator)
        out = model.autoencode(frames[pick][:, None], generator)
        optimizer.zero_grad()
        (out["error"] + out["codebook"]).backward()
        optimizer.step()
    return model


@pytest.mark.slow
def test_codes_are_used_and_guessed_on_a_film():
    frames, generator = bunny(), torch.Generator().manual_seed(0)
    train, held_out = frames[:TRAIN], frames[TRAIN:]
    model = train_codes(train, generator, dead_below=1.0)
    index, unseen = model.encode(train[None])[0], model.encode(held_out[None])[0]
    used = float(perplexity(index, CODES))
    idle = train_codes(train, torch.Generator().manual_seed(0), dead_below=0.0)
    unrevived = float(perplexity(idle.encode(train[None]), CODES))
    error = (model.decode(unseen[None])[0].float() - held_out.float()).square().mean()
    constant = (train.float().mean((0, 1, 2)) - held_out.float()).square().mean()

    optimizer = torch.optim.Adam(model.prior.parameters(), 3e-3)
    for _ in range(100):
        start = torch.randint(TRAIN - 1, (4,), generator=generator).tolist()
        bits = model.bits(torch.stack([index[s : s + 2] for s in start])).mean()
        optimizer.zero_grad()
        bits.backward()
        optimizer.step()
    pairs = unseen.unflatten(0, (-1, 2))
    share = torch.bincount(index.flatten(), minlength=CODES).double() + 1
    with torch.no_grad():
        guessed = float(model.bits(pairs).mean())
        order = torch.randperm(pairs[0].numel(), generator=generator)
        shuffled = float(model.bits(pairs.flatten(1)[:, order].view_as(pairs)).mean())
    alone = float(-(share / share.sum()).log2()[unseen].mean())
    print({"perplexity": used, "unrevived": unrevived, "bits": guessed, "by frequency": alone, "shuffled": shuffled,
           "error": float(error), "constant": float(constant)})  # fmt: skip
    assert used > CODES / 2
    assert unrevived < used
    assert error < 0.25 * constant
    assert guessed < math.log2(CODES)
    assert guessed < alone - 1  # it reads the neighbours, not only how often a code occurs
    assert shuffled > guessed + 1
