"""ELVA: a still clip is one frame to it, exactly; merging never leaks across words and is undone token by token."""

from dataclasses import replace

import pytest
import torch

from vidkernels.functional import unmerge_tokens
from vidkernels.methods.tokens.elva import Elva

Config = Elva.Config
TEXT = torch.tensor([[0, 3, 5, 7], [0, 4, 4, 9]])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Elva(Config.tiny()).eval()


def test_a_still_clip_merges_to_one_frame_and_reads_the_same(model, generator):
    frame = torch.randint(0, 256, (2, 1, 24, 16, 3), generator=generator, dtype=torch.uint8)
    clip = frame.expand(-1, 4, -1, -1, -1).contiguous()
    with torch.no_grad():
        patches, words, plan, size = model(clip, TEXT)
        all_patches, all_words, _, _ = model(clip, TEXT, merging=False)
    assert patches.shape[1] == 6  # of 24
    assert (size == 4).all()
    assert (words - all_words).abs().max() < 1e-5
    assert (unmerge_tokens(patches, plan) - all_patches).abs().max() < 1e-5
    # Weighing merged tokens like single ones reads something else: the words are outvoted less.
    plain = [layer.attend for layer in model.layers]
    for layer, attend in zip(model.layers, plain, strict=True):
        layer.attend = lambda x, size, mask, attend=attend: attend(x, torch.ones_like(size), mask)
    with torch.no_grad():
        assert (model(clip, TEXT)[1] - all_words).abs().max() > 1e-3


def test_every_patch_keeps_its_place(model, generator):
    clip = torch.randint(0, 256, (2, 4, 24, 16, 3), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        patches, _, plan, size = model(clip, TEXT)
    assert plan.source.view(2, 4, 6).eq(torch.arange(6)).all()
    assert size.sum(1).tolist() == [24, 24]
    assert unmerge_tokens(patches, plan).shape[1] == 24


def test_words_see_what_came_before_them_only(model, generator):
    clip = torch.randint(0, 256, (2, 4, 16, 16, 3), generator=generator, dtype=torch.uint8)
    other = TEXT.clone()
    other[:, 2] += 1
    with torch.no_grad():
        a, b = model(clip, TEXT), model(clip, other)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1][:, :2], b[1][:, :2])
    assert not torch.equal(a[1][:, 2:], b[1][:, 2:])


def test_alike_tokens_follow(generator):
    torch.manual_seed(0)
    model = Elva(replace(Config.tiny(), halve=(0,), alike=(1, 0.5)))
    clip = torch.randint(0, 256, (1, 4, 16, 16, 3), generator=generator, dtype=torch.uint8)
    patches, _, plan, size = model(clip, TEXT[:1])
    assert patches.shape[1] == plan.count == 4
    assert size.sum() == 16


def test_losses_fall(generator):
    torch.manual_seed(0)
    model = Elva(replace(Config.tiny(), teacher_width=32))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    clip = torch.randint(0, 256, (4, 4, 16, 16, 3), generator=generator, dtype=torch.uint8)
    text = torch.randint(1, 16, (4, 5), generator=generator)
    teacher = torch.randn(4, 16, 32, generator=generator)
    steps = []
    for _ in range(15):
        step = model.training_step(clip, text=text, teacher=teacher)
        optimizer.zero_grad()
        step["loss"].backward()
        optimizer.step()
        steps.append(step)
    assert steps[-1]["caption"] < 0.5 * steps[0]["caption"]
    assert steps[-1]["guidance"] < 0.9 * steps[0]["guidance"]


def test_clips_that_do_not_halve_are_refused(model):
    with pytest.raises(ValueError, match="multiple of 4 frames"):
        model(torch.zeros(2, 6, 16, 16, 3, dtype=torch.uint8), TEXT)
