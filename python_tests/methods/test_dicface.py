"""DicFace: codes mixed by Dirichlet weights flicker less than the likeliest code, at no loss of quality."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import Dirichlet, kl_divergence
from torch.nn import functional as F

from vidkernels.methods.clustering.dicface import DicFace
from vidkernels.models.conv_frames import as_frames

SIDE, FRAMES, NOISE = 32, 6, 50.0
CLEAN_STEPS, STEPS = 500, 250


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors
    yield
    torch.set_num_threads(before)


def films(count, generator):
    """Clips of three discs that move together, by at most one pixel a frame, before one colour; and how they move."""
    x, y = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="xy")
    clips = torch.zeros(count, FRAMES, SIDE, SIDE, 3)
    motion = torch.randint(-1, 2, (count, 2), generator=generator)
    for clip, (dx, dy) in zip(clips, motion.tolist()):
        clip[:] = 0.1 + 0.8 * torch.rand(3, generator=generator)
        for _ in range(3):
            radius = 4 + 4 * torch.rand((), generator=generator)
            colour = 0.1 + 0.8 * torch.rand(3, generator=generator)
            px, py = torch.rand(2, generator=generator) * SIDE
            for t in range(FRAMES):
                away = ((x - px - dx * t) ** 2 + (y - py - dy * t) ** 2).sqrt()
                cover = (radius - away + 0.5).clamp(0, 1)[..., None]
                clip[t] = cover * colour + (1 - cover) * clip[t]
    return (clips * 255).round().to(torch.uint8), motion


def with_noise(clip, generator):
    return (clip + NOISE * torch.randn(clip.shape, generator=generator)).round().clamp(0, 255).to(torch.uint8)


def flicker(clips, motion):
    """Mean difference of a frame from the one before, moved to where it belongs; the border that comes in apart."""
    total = 0.0
    for clip, (dx, dy) in zip(clips.float(), motion.tolist()):
        moved = clip[:-1].roll((dy, dx), (1, 2))
        total += float((clip[1:] - moved)[:, 2:-2, 2:-2].abs().mean())
    return total / len(clips)


def psnr(a, b):
    return float(-10 * torch.log10(((a.float() - b.float()) / 255).square().mean()))


def test_the_weights_are_a_dirichlet_draw(generator):
    torch.manual_seed(0)
    model = DicFace(DicFace.Config.tiny())
    clip, _ = films(1, generator)
    logits = model.logits(clip)
    assert logits.shape == (1, FRAMES, 8, 8, 32)
    for training in (True, False):
        model.train(training)
        frames, weights, kl = model.mix(logits, generator)
        assert frames.shape == (FRAMES, 3, SIDE, SIDE)
        assert bool((weights >= 0).all())
        assert torch.allclose(weights.sum(4), torch.ones(weights.shape[:4]), atol=1e-5)
        alpha = F.softplus(logits.double()) + 1e-2
        known = kl_divergence(Dirichlet(alpha), Dirichlet(torch.full_like(alpha, 1.1)))
        assert torch.allclose(kl.double(), known, rtol=1e-4, atol=1e-4)
    at_prior = torch.full((1, 1, 1, 1, 32), 1.1 - 1e-2).expm1().log()  # softplus gives alpha = 1.1
    assert float(model.mix(at_prior)[2].abs().max().detach()) < 1e-4
    assert torch.equal(model.mix(logits)[0], model.mix(logits)[0])  # at test nothing is drawn
    hard = model.mix(logits, hard=True)[1]
    assert torch.equal(hard.argmax(4), logits.argmax(4))
    assert bool((hard.sum(4) == 1).all())


def test_the_transformer_looks_over_space_and_along_time(generator):
    torch.manual_seed(0)
    model = DicFace(DicFace.Config.tiny()).eval()
    clip, _ = films(1, generator)
    before = model.logits(clip)
    for t in (0, FRAMES - 1):
        changed = clip.clone()
        changed[0, t, :4, :4] = 255 - changed[0, t, :4, :4]
        moved = (model.logits(changed) - before).abs().amax(4)[0]
        assert float(moved.detach()[t, -1, -1]) > 0  # far away in the frame
        assert float(moved.detach()[FRAMES - 1 - t, 0, 0]) > 0  # far away in time


@pytest.mark.slow
def test_mixtures_flicker_less_than_the_likeliest_codes():
    generator = torch.Generator().manual_seed(0)
    (train, _), (held_out, motion) = films(120, generator), films(24, generator)
    assert flicker(held_out, motion) < 0.01
    degraded = with_noise(held_out, generator)
    config = replace(DicFace.Config.tiny(), codes=64, dim=16, width=32)
    torch.manual_seed(1)
    generator.manual_seed(1)
    prior = DicFace(config)
    optimizer = torch.optim.Adam(prior.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=CLEAN_STEPS)
    for _ in range(CLEAN_STEPS):
        pick = torch.randint(len(train), (4,), generator=generator)
        loss = prior.clean_step(train[pick][:, ::3], generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    prior.freeze_codes()
    with torch.no_grad():
        prior.quantizer.eval()
        codes = prior.quantizer(prior.encoder(as_frames(train))).index.unflatten(0, train.shape[:2])
    scores = {"degraded": (psnr(degraded, held_out), flicker(degraded, motion))}
    for name in ("mixture", "likeliest"):
        torch.manual_seed(2)
        model, draws = DicFace(config), torch.Generator().manual_seed(2)
        model.load_state_dict(prior.state_dict())
        model.quantizer.eval()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
        for _ in range(STEPS):
            pick = torch.randint(len(train), (4,), generator=draws)
            clean, noisy = train[pick], with_noise(train[pick], draws)
            if name == "mixture":
                loss = model.training_step(noisy, draws, clean=clean)["loss"]
            else:  # CodeFormer's way: the codes of the clean frames are the classes; the decoder is tuned along, too
                logits = model.logits(noisy)
                frames = model.mix(logits.detach(), hard=True)[0]
                loss = F.cross_entropy(logits.flatten(0, 3), codes[pick].flatten())
                loss = loss + (frames - as_frames(clean)).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        restored = model.eval().restore(degraded, hard=name == "likeliest")
        scores[name] = (psnr(restored, held_out), flicker(restored, motion))
    print(scores)
    assert scores["likeliest"][0] > scores["degraded"][0]  # the comparison restores as well
    assert scores["mixture"][0] >= scores["likeliest"][0]
    assert scores["mixture"][1] <= 0.7 * scores["likeliest"][1]
