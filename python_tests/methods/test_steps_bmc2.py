"""STEPs: repeats of a step become positives, and key steps come out that k-means on the features does not find."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vidkernels.functional.clustering.matching import linear_assignment
from vidkernels.methods.tokens.steps_bmc2 import STEPs, sample_key_steps

Config = STEPs.Config
STEPS, FEATURES = 6, 32


def procedures(count, generator, noise=0.25, place=1.5):
    """Steps in any order, each twice: labels [count, T] and two cues [count, T, F].

    A frame shows its step, its video (`place`: where it was filmed, the same for all its frames) and noise.
    """
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    kinds = [F.normalize(draw(STEPS, FEATURES), dim=1) * 3 for _ in range(2)]
    length = 12
    labels = []
    for _ in range(count):
        order = torch.cat([torch.randperm(STEPS, generator=generator) for _ in range(2)])
        lengths = torch.full((2 * STEPS,), length)
        shift = torch.randint(-3, 4, (STEPS,), generator=generator)
        lengths[:STEPS] += shift
        lengths[STEPS:] -= shift
        labels.append(order.repeat_interleave(lengths))
    labels = torch.stack(labels)
    cues = [k[labels] + place * draw(count, 1, FEATURES) + noise * draw(*labels.shape, FEATURES) for k in kinds]
    return labels, cues


def repeats(labels, window):
    """Pairs of frames farther apart in time than the window: all [.., T, T], and those of one step."""
    at = torch.arange(labels.shape[1])
    far = ((at[:, None] - at).abs() > window).expand(len(labels), -1, -1)
    return far, far & (labels[:, :, None] == labels[:, None])


def f1(labels, index):
    """Mean over steps of the frames' F1, clusters matched with steps one to one."""
    table = torch.zeros(STEPS, STEPS).index_put((labels.flatten(), index.flatten()), torch.ones(1), accumulate=True)
    score = 2 * table / (table.sum(1, keepdim=True) + table.sum(0)).clamp(min=1)
    row, column = linear_assignment(score, maximize=True)
    return float(score[row, column].mean())


def score(labels, embeddings):
    """F1 averaged over four starts of k-means."""
    runs = [sample_key_steps(embeddings, STEPS, torch.Generator().manual_seed(s))[0] for s in range(4)]
    return sum(f1(labels, torch.stack(r)) for r in runs) / 4


def learn(cues, seed=0, steps=200, bootstrap=True):
    torch.manual_seed(seed)
    model = STEPs(replace(Config.tiny(), cues=(FEATURES,) * len(cues)))
    positive = model.positives(cues[0], bootstrap=bootstrap)  # once
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        pick = torch.randint(len(positive), (4,), generator=generator)
        loss = model.training_step(None, cues=[c[pick] for c in cues], positive=positive[pick])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return model.eval()(cues)


def test_bootstrapping_finds_the_repeats_of_a_step():
    labels, cues = procedures(12, torch.Generator().manual_seed(0))
    model = STEPs(replace(Config.tiny(), cues=(FEATURES,)))
    far, same = repeats(labels, model.config.window)
    found = model.positives(cues[0]) & far
    precision, recall = ((found & same).sum() / n.sum() for n in (found, same))
    print(precision, recall)
    assert precision > 0.9
    assert recall > 0.7
    assert not (model.positives(cues[0], bootstrap=False) & far).any()
    # Features of which the step is gone: no better than chance.
    mute = model.positives(torch.randn(cues[0].shape, generator=torch.Generator().manual_seed(1))) & far
    assert (mute & same).sum() / mute.sum() < 0.3


def test_contrast_is_the_written_out_sum():
    model = STEPs(replace(Config.tiny(), margin=1.5))
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, 5, 3, generator=generator) * 0.5 for _ in range(2))
    positive = torch.rand(1, 5, 5, generator=generator) < 0.5
    total = 0.0
    for i in range(5):
        for j in range(5):
            d, w = float((a[0, i] - b[0, j]).norm()), 1 + ((i - j) / 5) ** 2
            total += d / w if positive[0, i, j] else w * max(0.0, 1.5 - d)
    assert float(model.contrast(a, b, positive)) == pytest.approx(total / 25, rel=1e-5)


def test_key_frames_are_the_nearest_of_their_runs():
    z = torch.tensor([0.0, 0.3, 0.1, 10.0, 10.1, 10.2, 0.2, 0.0])[:, None]
    clusters, frames = sample_key_steps([z], 2, torch.Generator().manual_seed(0))
    assert clusters[0].unique_consecutive().tolist() in ([0, 1, 0], [1, 0, 1])
    assert frames[0].tolist() == [2, 4, 6]  # centres 0.12 and 10.1
    model = STEPs(Config.tiny())
    videos = [[torch.randn(n, 48), torch.randn(n, 48)] for n in (20, 30)]
    index, frames = model.key_steps(videos, torch.Generator().manual_seed(0))
    assert [len(i) for i in index] == [20, 30]
    assert [len(f) for f in frames] == [len(i.unique_consecutive()) for i in index]


def test_bad_inputs_are_named():
    model = STEPs(Config.tiny())
    with pytest.raises(ValueError, match=r"\(48, 48\) channels"):
        model([torch.zeros(1, 4, 48)])
    with pytest.raises(ValueError, match="T >= 2"):
        model.training_step(torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8))


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_key_steps_beat_kmeans_on_features(one_thread):
    generator = torch.Generator().manual_seed(0)
    labels, (rgb, second) = procedures(24, generator)
    useless = torch.randn(rgb.shape, generator=generator)
    f = {
        "raw": score(labels, rgb),
        "raw, both cues": score(labels, torch.cat([rgb, second], 2)),
        # Where a video is no more than an offset, subtracting its mean works, too (0.93 here): printed, not beaten.
        "raw, centred": score(labels, rgb - rgb.mean(1, keepdim=True)),
        "one cue": score(labels, learn([rgb])),
        "window only": score(labels, learn([rgb], bootstrap=False)),
        "two cues": score(labels, learn([rgb, second])),
        "noise cue": score(labels, learn([rgb, useless])),
        "untrained": score(labels, learn([rgb], steps=0)),
    }
    print(f)
    assert f["one cue"] >= f["raw"] + 0.1
    assert f["two cues"] >= f["raw, both cues"] + 0.1
    assert f["one cue"] > f["window only"]
    assert f["two cues"] > f["one cue"]
    assert f["noise cue"] > f["one cue"] - 0.02
