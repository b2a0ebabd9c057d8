"""OST: transport tells apart what pooling cannot, and its plans are what they should be."""

import pytest
import torch
from torch.nn import functional as F

from vidkernels.methods.clustering.ost import OST, descriptor_plan, descriptor_score


def unit(*size, generator):
    return F.normalize(torch.randn(*size, generator=generator), dim=-1)


def test_members_not_means_decide(generator):
    """Two classes with the same mean sentence: steps a, b, a, b against four times their mix."""
    a, b = F.normalize(torch.eye(32)[:2], dim=-1)
    mix = F.normalize(a + b, dim=0)
    sentences = torch.stack([torch.stack([a, b, a, b]), mix.expand(4, 32)])
    assert torch.allclose(F.normalize(sentences[0].mean(0), dim=0), mix)
    label = torch.arange(64) % 2
    frames = F.normalize(sentences[label] + 0.1 * torch.randn(64, 4, 32, generator=generator), dim=-1)
    by_transport = descriptor_score(frames, sentences).argmax(1)
    assert (by_transport == label).float().mean() > 0.97
    pooled = F.normalize(frames.mean(1), dim=-1) @ F.normalize(sentences.mean(1), dim=-1).T
    assert (pooled[:, 0] - pooled[:, 1]).abs().max() < 1e-5  # pooling sees no difference at all


def test_plans_are_uniform_and_ignore_order(generator):
    frames, sentences = unit(3, 6, 16, generator=generator), unit(5, 4, 16, generator=generator)
    plan = descriptor_plan(frames, sentences)
    assert plan.shape == (3, 5, 6, 4)
    assert (plan.sum(3) - 1 / 6).abs().max() < 1e-4
    assert (plan.sum(2) - 1 / 4).abs().max() < 1e-4
    score = descriptor_score(frames, sentences)
    other = descriptor_score(frames[:, torch.randperm(6, generator=generator)], sentences[:, [2, 0, 3, 1]])
    assert torch.allclose(score, other, atol=1e-5)
    for b in range(3):
        for c in range(5):
            alone = descriptor_score(frames[b : b + 1], sentences[c : c + 1])
            assert torch.allclose(alone[0, 0], score[b, c], atol=1e-6)


def colours(batch, generator):
    """Class 0: red and blue frames in turn; class 1: purple ones. The mean over time is the same."""
    label = torch.randint(2, (batch,), generator=generator)
    red, blue, purple = torch.tensor([[200.0, 20, 20], [20, 20, 200], [110, 20, 110]])
    frames = torch.stack([torch.stack([red, blue, red, blue]), purple.expand(4, 3)])[label]
    clip = frames[:, :, None, None] + 12 * torch.randn(batch, 4, 16, 16, 3, generator=generator)
    return clip.clamp(0, 255).to(torch.uint8), label


@pytest.mark.slow
def test_it_learns_which_sentence_a_frame_answers(generator):
    torch.manual_seed(0)
    model = OST(OST.Config.tiny())
    steps, mixed = torch.tensor([[1, 1, 1], [2, 2, 2]] * 2), torch.tensor([[1, 2, 3]] * 4)
    model.set_descriptors(torch.stack([steps, mixed]), torch.stack([steps + 4, mixed + 4]))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(25):
        clip, label = colours(16, generator)
        loss = model.training_step(clip, labels=label)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clip, label = colours(64, generator)
    with torch.no_grad():
        assert (model(clip).argmax(1) == label).float().mean() > 0.95


def test_wrong_descriptors_are_refused():
    model = OST(OST.Config.tiny())
    with pytest.raises(ValueError, match="spatial"):
        model.set_descriptors(torch.zeros(2, 4, 5, dtype=torch.int64), torch.zeros(2, 4, 3, dtype=torch.int64))
