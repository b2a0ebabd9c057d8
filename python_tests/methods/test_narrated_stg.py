"""Narrated grounding: transport chooses frames that show the event even if one word fits every frame."""

import torch
from torch.nn import functional as F

from vidkernels.methods.clustering.narrated_stg import NarratedGrounding, frame_scores


def windows(generator, batch=64, frames=32, words=6, width=48):
    """A quarter of the frames show the event. Words 1.. are about it; word 0 fits every frame, the others' best."""
    event, generic = (F.normalize(torch.randn(batch, 1, width, generator=generator), dim=-1) for _ in range(2))
    shows = torch.rand(batch, frames, generator=generator).argsort(1) < frames // 4
    noise = lambda *size: torch.randn(*size, width, generator=generator) / width**0.5  # noqa: E731
    picture = torch.where(shows[..., None], event + 0.5 * generic, 1.2 * generic) + 0.9 * noise(batch, frames)
    sentence = torch.cat([generic + 0.2 * noise(batch, 1), event + 0.9 * noise(batch, words - 1)], 1)
    return F.normalize(picture, dim=-1), F.normalize(sentence, dim=-1), shows


def hit_rate(score, shows, count):
    return shows.gather(1, score.topk(count, dim=1).indices).float().mean().item()


def test_chosen_frames_show_the_event(generator):
    frames, words, shows = windows(generator)
    base = shows.float().mean().item()
    assert base == 0.25
    by_transport = hit_rate(frame_scores(frames, words), shows, 8)
    by_best_word = hit_rate(torch.einsum("btd,bwd->btw", frames, words).amax(2), shows, 8)
    assert by_transport >= 2 * base
    assert by_best_word < base


def test_scores_do_not_depend_on_the_order_of_words(generator):
    frames, words, _ = windows(generator, batch=3)
    score = frame_scores(frames, words)
    assert torch.allclose(score, frame_scores(frames, words.flip(1)), atol=1e-5)
    order = torch.randperm(frames.shape[1], generator=generator)
    assert torch.allclose(score[:, order], frame_scores(frames[:, order], words), atol=1e-5)


def test_a_step_learns_from_both_branches(generator):
    torch.manual_seed(0)
    model = NarratedGrounding(NarratedGrounding.Config.tiny())
    clip = torch.randint(0, 256, (4, 4, 16, 16, 3), generator=generator, dtype=torch.uint8)
    words = torch.arange(12).view(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        step = model.training_step(clip, words=words)
        optimizer.zero_grad()
        step["loss"].backward()
        optimizer.step()
        losses.append((step["global"].item(), step["local"].item()))
    assert losses[-1][0] < 0.7 * losses[0][0]
    assert losses[-1][1] < 0.7 * losses[0][1]
    assert model.chosen(model.regions(clip), model.word(words)).shape == (4, 2)
