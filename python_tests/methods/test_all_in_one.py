"""All in One: rolling tokens carry what happens in one frame to the others, and nothing else does."""

from dataclasses import replace

import pytest
import torch

from vidkernels.methods.tokens.all_in_one import AllInOne
from vidkernels.models import VideoViTConfig

Config = AllInOne.Config


def heard(model, frame, frames=7):
    """Which frames' features change with one frame's patches, without any text between them."""
    g = torch.Generator().manual_seed(3)
    words, patches = torch.zeros(1, 0, 64), torch.randn(1, frames, 8, 64, generator=g)
    other = patches.clone()
    other[:, frame] += 1
    with torch.no_grad():
        a, b = (model.mixed(words, p)[1] for p in (patches, other))
    return {t for t in range(frames) if not torch.equal(a[:, t], b[:, t])}


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_information_goes_as_many_frames_far_as_there_are_layers(depth):
    torch.manual_seed(0)
    config = replace(Config.tiny(), encoder=VideoViTConfig(64, depth, 2))
    assert heard(AllInOne(config), 2) == {2 + k for k in range(depth + 1)}
    assert heard(AllInOne(config), 6) == {(6 + k) % 7 for k in range(depth + 1)}
    assert heard(AllInOne(replace(config, roll=0.0)), 2) == {2}


def in_order(batch, generator):
    """Red, green and blue frames, turning one way or the other from any start: each frame alone says nothing."""
    label = torch.randint(2, (batch,), generator=generator)
    start = torch.randint(3, (batch,), generator=generator)
    colour = (start[:, None] + (2 * label - 1)[:, None] * torch.arange(3)) % 3
    frames = 30 + 190 * torch.nn.functional.one_hot(colour, 3).float()
    clip = frames[:, :, None, None] + 10 * torch.randn(batch, 3, 16, 16, 3, generator=generator)
    return clip.clamp(0, 255).to(torch.uint8), label


def accuracy(roll, steps=45):
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    model = AllInOne(replace(Config.tiny(), roll=roll))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    question = torch.tensor([[5, 6]])
    for _ in range(steps):
        clip, label = in_order(32, g)
        answer = model.matching(model(clip, question.expand(32, -1))[0][:, 0])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(answer, label).backward()
        optimizer.step()
    clip, label = in_order(256, g)
    with torch.no_grad():
        return (model.matching(model(clip, question.expand(256, -1))[0][:, 0]).argmax(1) == label).float().mean().item()


@pytest.mark.slow
def test_frame_order_is_known_by_rolling_alone():
    assert accuracy(0.25) > 0.8
    assert 0.35 < accuracy(0.0) < 0.65


@pytest.mark.slow
def test_losses_fall(generator):
    torch.manual_seed(0)
    model = AllInOne(Config.tiny())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(40):
        clip, _ = in_order(16, generator)
        step = model.training_step(clip, generator)
        optimizer.zero_grad()
        step["loss"].backward()
        optimizer.step()
        losses.append(step["mlm"].item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_text_that_does_not_fit_is_refused():
    model = AllInOne(Config.tiny())
    with pytest.raises(ValueError, match="HINT: cut the text"):
        model(torch.zeros(1, 2, 16, 16, 3, dtype=torch.uint8), torch.zeros(1, 8, dtype=torch.int64))
