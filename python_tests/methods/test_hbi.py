"""HBI: three levels, losses that ignore padding, a predictor that learns the game, words that find their frames."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vidkernels.functional.tokens.banzhaf import late_interaction_banzhaf
from vidkernels.methods.tokens.hbi import HBI

COLORS, FILLERS, FRAMES = 10, 13, 6


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors
    yield
    torch.set_num_threads(before)


def captioned(count, generator):
    """Clips of six frames with one coloured square each, three colours in a clip; captions name them among fillers."""
    levels = (0.05, 0.5, 0.95)
    palette = torch.tensor([[r, g, b] for r in levels for g in levels for b in levels])
    palette = palette[torch.randperm(27, generator=torch.Generator().manual_seed(0))[:COLORS]]
    clips = 0.4 + 0.2 * torch.rand(count, FRAMES, 16, 16, 3, generator=generator)
    words, shown = torch.zeros(count, 8, dtype=torch.int64), torch.zeros(count, FRAMES, dtype=torch.int64)
    for b in range(count):
        colors = torch.randperm(COLORS, generator=generator)[:3]
        shown[b] = colors.repeat(2)[torch.randperm(FRAMES, generator=generator)]
        for t in range(FRAMES):
            y, x = torch.randint(0, 9, (2,), generator=generator).tolist()
            clips[b, t, y : y + 8, x : x + 8] = palette[shown[b, t]]
        fillers = 1 + COLORS + torch.randint(0, FILLERS, (3,), generator=generator)
        said = torch.cat([1 + colors, fillers])
        words[b, :6] = said[torch.randperm(6, generator=generator)]
    return (clips * 255).round().to(torch.uint8), words, shown


def grounding(model, clip, words, shown):
    """Share of colour words whose most similar frame shows the colour; by chance a third."""
    text, _ = model.tokens(words)
    best = model.cosines(text, model.frames(clip)).argmax(2)
    right = shown.gather(1, best) == words - 1
    return float(right[(words > 0) & (words <= COLORS)].float().mean())


def test_levels_shrink_and_padding_stays_out(generator):
    torch.manual_seed(0)
    model = HBI(HBI.Config.tiny()).eval()
    clip, words, _ = captioned(3, generator)
    levels = model.hierarchy(clip, words)
    assert [text.shape[1] for text, _, _ in levels] == [8, 4, 2]
    assert [frames.shape[1] for _, _, frames in levels] == [6, 3, 2]
    more = nn.functional.pad(words, (0, 8))
    for level, (text, there, frames) in enumerate(levels[:1]):
        padded_text, padded_there = model.tokens(more)
        a = model.similarity(level, text, there, frames)
        torch.testing.assert_close(a, model.similarity(level, padded_text, padded_there, frames))
        for x, y in zip(model.interaction_losses(level, text, there, frames),
                        model.interaction_losses(level, padded_text, padded_there, frames)):  # fmt: skip
            torch.testing.assert_close(x, y)
    silent = torch.zeros_like(words)
    losses = model.training_step(clip, words=silent)
    assert all(value.isfinite() for value in losses.values())


def test_similarity_is_the_weighted_max_pool(generator):
    torch.manual_seed(0)
    model = HBI(HBI.Config.tiny())
    clip, words, _ = captioned(3, generator)
    text, there, frames = model.hierarchy(clip, words)[0]
    row, column = model.levels[0].weights(text, there, frames)
    out = model.similarity(0, text, there, frames)
    for i in range(3):
        for j in range(3):
            s = torch.cosine_similarity(text[i][there[i]][:, None], frames[j][None], dim=2)
            expected = 0.5 * (row[i][there[i]] @ s.amax(1) + column[j] @ s.amax(0))
            torch.testing.assert_close(out[i, j], expected)


def test_every_loss_can_be_left_out_and_bad_clips_are_named(generator):
    torch.manual_seed(0)
    clip, words, _ = captioned(2, generator)
    full = HBI(HBI.Config.tiny())
    plain = HBI(replace(HBI.Config.tiny(), interaction=0.0, distillation=0.0))
    plain.load_state_dict(full.state_dict())
    a, b = (model.training_step(clip, words=words) for model in (full, plain))
    torch.testing.assert_close(a["contrast"], b["contrast"])
    assert a["loss"] > b["loss"]
    with pytest.raises(ValueError, match="multiples of 8"):
        full.training_step(torch.zeros(2, 4, 12, 16, 3, dtype=torch.uint8), words=words)


@pytest.mark.slow
def test_words_find_their_frames_and_the_game_is_learned(one_thread):
    generator = torch.Generator().manual_seed(0)
    data, held_out = captioned(1000, generator), captioned(200, generator)
    torch.manual_seed(0)
    model = HBI(HBI.Config.tiny())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = grounding(model, *held_out)
    for _ in range(120):
        pick = torch.randint(1000, (32,), generator=generator)
        loss = model.training_step(data[0][pick], words=data[1][pick])["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        after = grounding(model, *held_out)
        text, there, frames = model.hierarchy(*held_out[:2])[0]
        retrieved = model.similarity(0, text[:50], there[:50], frames[:50]).argmax(1) == torch.arange(50)
        row, column = model.levels[0].weights(text, there, frames)
        s = model.cosines(text, frames)
        exact = late_interaction_banzhaf(s, row, column, row_mask=there)
        scale = 2 * there.sum(1) * FRAMES / (there.sum(1) + FRAMES)
        exact = (scale[:, None, None] * exact)[there]
        error = (model.levels[0].predictor(s, there)[there] - exact).square().mean() / exact.var()
        # The pair with the largest interaction is a colour and a frame that shows it.
        peak = late_interaction_banzhaf(s, row, column, row_mask=there).flatten(1).argmax(1)
        word = held_out[1].gather(1, (peak // FRAMES)[:, None])[:, 0]
        planted = held_out[2].gather(1, (peak % FRAMES)[:, None])[:, 0] == word - 1
    figures = (before, after, float(retrieved.float().mean()), float(error), float(planted.float().mean()))
    print([round(value, 3) for value in figures])
    assert before < 0.6
    assert after > 0.9
    assert retrieved.float().mean() > 0.7
    assert error < 0.2
    assert planted.float().mean() > 0.9
