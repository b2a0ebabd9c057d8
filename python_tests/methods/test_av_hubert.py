"""AV-HuBERT: clusters come closer to the hidden units round by round, and one network reads lips without sound."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vidkernels.methods.clustering.av_hubert import AVHuBERT, _spans

UNITS, FRAMES, SIDE, CHANNELS = 8, 24, 16, 8
ROUNDS, ROUND_STEPS, STEPS = 3, 150, 350


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors
    yield
    torch.set_num_threads(before)


def speech(count, generator, *, voice, hiss, contrast, grain, shift):
    """Clips of a mouth, its sound and the hidden unit of each frame, which stays for 3 to 5 frames.

    A unit is a shape of the mouth and a sound. `voice`: how far speakers' sounds lie apart; `hiss`, `grain`: noise of
    sound and pictures; `contrast` of the mouth, `shift` of it from clip to clip.
    """

    def normal(*size):
        return torch.randn(size, generator=generator)

    unit = torch.zeros(count, FRAMES, dtype=torch.int64)
    for row in unit:
        t = 0
        while t < FRAMES:
            stay = int(torch.randint(3, 6, (), generator=generator))
            row[t : t + stay] = torch.randint(UNITS, (), generator=generator)
            t += stay
    sounds = torch.randn(UNITS, CHANNELS, generator=torch.Generator().manual_seed(99))
    sound = sounds[unit] + hiss * normal(count, FRAMES, CHANNELS) + voice * normal(count, 1, CHANNELS)
    line = torch.linspace(-1, 1, SIDE)
    x, y = line, line[:, None]
    dx, dy = shift * (2 * torch.rand(2, count, 1, 1, 1, generator=generator) - 1)
    height = (0.2 + 0.2 * (unit % 4))[..., None, None]
    width = torch.where(unit >= 4, 0.8, 0.4)[..., None, None]
    mouth = ((x - dx) / width) ** 2 + ((y - dy) / height) ** 2 < 1
    clip = 0.6 - contrast * mouth.float() + 0.1 * normal(count, 1, 1, 1)
    clip = clip[..., None] + grain * normal(count, FRAMES, SIDE, SIDE, 3)
    return (clip * 255).clamp(0, 255).to(torch.uint8), sound, unit


def mutual_information(a, b):
    """Normalised by the mean of the entropies."""
    joint = torch.zeros(int(a.max()) + 1, int(b.max()) + 1, dtype=torch.float64)
    joint.index_put_((a.flatten(), b.flatten()), torch.ones(1, dtype=torch.float64), accumulate=True)
    joint /= joint.sum()
    of_a, of_b, both = (torch.special.entr(p).sum() for p in (joint.sum(1), joint.sum(0), joint))
    return float(2 * (of_a + of_b - both) / (of_a + of_b))


def probe(features, units):
    """Least squares from features to units; a function that gives the accuracy on others."""
    mean, std = features.mean((0, 1)), features.std((0, 1)) + 1e-6

    def rows(x):
        x = ((x - mean) / std).flatten(0, 1)
        return torch.cat([x, torch.ones(len(x), 1)], 1).double()

    a, target = rows(features), F.one_hot(units.flatten(), UNITS).double()
    weight = torch.linalg.solve(a.T @ a + 1e-3 * len(a) * torch.eye(a.shape[1], dtype=a.dtype), a.T @ target)
    return lambda x, y: float(((rows(x) @ weight).argmax(1) == y.flatten()).double().mean())


def train(model, clip, sound, labels, steps, generator):
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        pick = torch.randint(len(clip), (16,), generator=generator)
        loss = model.training_step(clip[pick], generator, audio=sound[pick], labels=labels[pick])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def test_spans_have_their_length_and_share(generator):
    hidden = _spans(torch.rand(500, 200, generator=generator), 0.6, 5)
    assert abs(float(hidden.float().mean()) - 0.6) < 0.02
    inner = hidden.long().diff(dim=1)
    for row in inner[:50]:
        begins, ends = (row == 1).nonzero().flatten().tolist(), (row == -1).nonzero().flatten().tolist()
        assert all(min((e - b for e in ends if e > b), default=5) >= 5 for b in begins)


def test_the_loss_is_that_of_hidden_frames_and_streams_drop_whole(generator):
    torch.manual_seed(0)
    clip, sound, unit = speech(4, generator, voice=0.0, hiss=0.1, contrast=0.4, grain=0.0, shift=0.0)
    config = AVHuBERT.Config.tiny()

    def loss(seed=1, audio=sound, pictures=clip, **changes):
        model = AVHuBERT(replace(config, **changes))
        model.load_state_dict(weights)
        step = model.training_step(pictures, torch.Generator().manual_seed(seed), audio=audio, labels=unit)
        return step["loss"].detach()

    weights = AVHuBERT(config).state_dict()
    assert loss() == loss()
    assert loss() != loss(seed=2)
    assert loss(hide_video=0.0, hide_audio=0.0) == 0  # nothing hidden, nothing counts
    assert loss(hide_video=0.0, hide_audio=0.0, unmasked=1.0) > 0
    # Sound that is always dropped may be anything, and so may pictures.
    assert loss(drop=1.0, drop_audio=1.0) == loss(drop=1.0, drop_audio=1.0, audio=sound + 1)
    assert loss(drop=1.0, drop_audio=0.0) == loss(drop=1.0, drop_audio=0.0, pictures=255 - clip)
    assert loss(drop=0.0) != loss(drop=0.0, audio=sound + 1)
    assert loss(drop=0.0) != loss(drop=0.0, pictures=255 - clip)


@pytest.mark.slow
def test_clusters_come_closer_to_the_hidden_units():
    generator = torch.Generator().manual_seed(0)
    clip, sound, unit = speech(160, generator, voice=0.4, hiss=0.9, contrast=0.25, grain=0.25, shift=0.0)
    features, found = sound, []
    for turn in range(ROUNDS):
        torch.manual_seed(turn)
        model, draws = AVHuBERT(replace(AVHuBERT.Config.tiny(), layer=1)), torch.Generator().manual_seed(turn)
        labels = model.clusters(features, draws)
        found.append(mutual_information(labels, unit))
        if turn < ROUNDS - 1:
            train(model, clip, sound, labels, ROUND_STEPS, draws)
            with torch.no_grad():
                features = model.features(clip, sound)
    print(found)
    assert found[0] < found[1] < found[2]


@pytest.mark.slow
def test_dropping_streams_lets_one_probe_read_lips_alone():
    generator = torch.Generator().manual_seed(0)
    looks = {"voice": 0.2, "hiss": 0.3, "contrast": 0.3, "grain": 0.15, "shift": 0.15}
    (clip, sound, unit), (new, new_sound, new_unit) = (speech(n, generator, **looks) for n in (160, 60))
    kept = {}
    for drop in (0.5, 0.0):
        torch.manual_seed(0)
        # Little of the sound is hidden: nothing but dropping it forces the network to look.
        config = replace(AVHuBERT.Config.tiny(), drop=drop, hide_audio=0.05, span_audio=2, unmasked=1.0)
        model, draws = AVHuBERT(config), torch.Generator().manual_seed(0)
        train(model, clip, sound, model.clusters(sound, draws), STEPS, draws)
        with torch.no_grad():
            accuracy = probe(model.features(clip, sound), unit)
            both, lips = (
                accuracy(model.features(new, new_sound), new_unit),
                accuracy(model.features(new, None), new_unit),
            )
        kept[drop] = lips / both
        print(drop, both, lips)
        assert both > 0.9
    assert kept[0.5] > 0.85
    assert kept[0.0] < 0.6
