"""TimeTuning: the forwarder follows what moves, and what it brings is what the network learns."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vidkernels.methods.clustering.timetuning import TimeTuning
from vidkernels.models import VideoViTConfig

SIDE, PATCH, FRAMES, RADIUS, KINDS = 32, 4, 4, 8, 4
STEPS = 200


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors
    yield
    torch.set_num_threads(before)


def scenes(count, generator, speed, light=0.0, grain=0.05):
    """Clips of four striped squares that move, in light that changes with each frame; the kind at each patch's middle.

    Returns uint8 [N, T, H, W, 3] and int64 [N, T, h * w], 0 where there is no square.
    """
    colours = torch.tensor([[0.75, 0.4, 0.4], [0.4, 0.4, 0.75], [0.7, 0.7, 0.35], [0.35, 0.65, 0.35]])
    x, y = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="xy")
    clips = (0.5 + 0.05 * torch.randn(count, 1, 1, 1, 3, generator=generator)).repeat(1, FRAMES, SIDE, SIDE, 1)
    kinds = torch.zeros(count, FRAMES, SIDE, SIDE, dtype=torch.int64)
    for clip, label in zip(clips, kinds):
        for kind in torch.randperm(KINDS, generator=generator).tolist():
            angle = 6.28 * torch.rand((), generator=generator)
            start = RADIUS + torch.rand(2, generator=generator) * (SIDE - 2 * RADIUS)
            step = speed * torch.stack([angle.cos(), angle.sin()])
            end = start + step * (FRAMES - 1)
            step = torch.where((end < RADIUS) | (end > SIDE - RADIUS), -step, step)
            for t in range(FRAMES):
                u, v = x - start[0] - step[0] * t, y - start[1] - step[1] * t
                inside = (u.abs() < RADIUS) & (v.abs() < RADIUS)
                across, along = (1.2, 0.3) if kind % 2 else (0.3, 1.2)
                clip[t][inside] = (colours[kind] + 0.12 * torch.sin(across * u + along * v)[..., None])[inside]
                label[t][inside] = kind + 1
    clips *= 1 + light * (2 * torch.rand(count, FRAMES, 1, 1, 3, generator=generator) - 1)
    clips += grain * torch.randn(clips.shape, generator=generator)
    middle = slice(PATCH // 2, None, PATCH)
    return (clips * 255).clamp(0, 255).to(torch.uint8), kinds[:, :, middle, middle].flatten(2)


def colours_of(clips):
    """[N, T, h * w, 3]: mean colour of each patch, from grey."""
    side = SIDE // PATCH
    return clips.view(*clips.shape[:2], side, PATCH, side, PATCH, 3).float().mean((3, 5)).flatten(2, 3) / 255 - 0.5


def test_the_forwarder_carries_labels_with_what_moves(generator):
    grid = (SIDE // PATCH, SIDE // PATCH)
    right = {}
    for speed in (4.0, 0.0):
        clips, kinds = scenes(20, generator, speed)
        first = F.one_hot(kinds[:, 0], KINDS + 1).float()
        for how in ("affinity", "identity"):
            model = TimeTuning(replace(TimeTuning.Config.tiny(), forwarder=how, radius=4.0, affinity=0.03))
            last = model.forward_labels(colours_of(clips), first, grid)
            assert torch.allclose(last.sum(2), torch.ones(last.shape[:2]), atol=1e-4)
            right[how, speed] = float((last.argmax(2) == kinds[:, -1]).float().mean())
    assert right["identity", 0.0] == 1.0
    assert right["affinity", 0.0] > 0.85
    assert right["affinity", 4.0] > right["identity", 4.0] + 0.1


def test_only_the_last_blocks_learn(generator):
    torch.manual_seed(0)
    model = TimeTuning(replace(TimeTuning.Config.tiny(), tuned=1))
    clips, _ = scenes(2, generator, 2.0)
    model.training_step(clips)["loss"].backward()
    learning = {name.split(".")[0] + name.partition("blocks")[2][:2] for name, p in model.named_parameters()
                if p.grad is not None}  # fmt: skip
    assert learning == {"encoder.1", "encoder", "projection", "head"}


def test_foreground_limits_the_loss(generator):
    torch.manual_seed(0)
    model = TimeTuning(TimeTuning.Config.tiny())
    clips, kinds = scenes(2, generator, 2.0)
    whole = model.training_step(clips)["loss"]
    assert torch.equal(whole, model.training_step(clips, foreground=kinds[:, -1] >= 0)["loss"])
    assert not torch.equal(whole, model.training_step(clips, foreground=kinds[:, -1] > 0)["loss"])


def test_segmentation_score_of_known_features(generator):
    model = TimeTuning(TimeTuning.Config.tiny())
    clips, kinds = scenes(6, generator, 4.0)
    model.features = lambda clip: F.one_hot(kinds, KINDS + 1).float()
    assert float(model.segmentation_score(clips, kinds, KINDS + 1, generator)) == 1.0
    model.features = lambda clip: torch.randn(*kinds.shape, 4, generator=generator)
    assert float(model.segmentation_score(clips, kinds, KINDS + 1, generator)) < 0.3


def starting_net(config, clips, generator):
    """The image transformer, trained to give back the pixels of frames of which a tenth is grey."""
    torch.manual_seed(0)
    model, pixels = TimeTuning(replace(config, tuned=None)), torch.nn.Linear(config.encoder.width, PATCH * PATCH * 3)
    optimizer = torch.optim.AdamW([*model.embed.parameters(), *model.encoder.parameters(), *pixels.parameters()], 2e-3)
    side = SIDE // PATCH
    for _ in range(150):
        frames = clips[torch.randint(len(clips), (16,), generator=generator)][:, :1]
        target = frames.view(16, side, PATCH, side, PATCH, 3).transpose(2, 3).reshape(16, side * side, -1)
        grey = torch.rand(16, 1, side, 1, side, 1, 1, generator=generator) < 0.1
        grey = grey.expand(-1, -1, -1, PATCH, -1, PATCH, -1).reshape(16, 1, SIDE, SIDE, 1)
        seen = torch.where(grey, torch.tensor(127, dtype=torch.uint8), frames)
        loss = (pixels(model.features(seen)[:, 0]) - (target / 127.5 - 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value for name, value in model.state_dict().items() if name.startswith(("embed", "encoder"))}


def gains(*speeds):
    """How far the score of held-out clips rises, by forwarder and speed."""
    config = replace(TimeTuning.Config.tiny(), encoder=VideoViTConfig(width=64, depth=4, heads=2), tuned=2,
                     prototypes=8, epsilon=0.02, positions=False, mean=(0.5,) * 3, std=(0.25,) * 3)  # fmt: skip
    gain = {}
    for speed in speeds:
        generator = torch.Generator().manual_seed(0)
        clips, _ = scenes(160, generator, speed, light=0.3, grain=0.1)
        held_out, kinds = scenes(40, generator, speed, light=0.3, grain=0.1)
        start = starting_net(config, clips, generator)

        def score(model, held_out=held_out, kinds=kinds):
            draws = [torch.Generator().manual_seed(seed) for seed in range(5)]
            return sum(float(model.segmentation_score(held_out, kinds, KINDS + 1, d)) for d in draws) / len(draws)

        for how in ("affinity", "identity"):
            torch.manual_seed(1)
            model = TimeTuning(replace(config, forwarder=how))
            model.load_state_dict(start, strict=False)
            before, draws = score(model), torch.Generator().manual_seed(2)
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=STEPS)
            for _ in range(STEPS):
                pick = torch.randint(len(clips), (8,), generator=draws)
                loss = model.training_step(clips[pick])["loss"]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            gain[how, speed] = score(model) - before
            print(how, speed, before, gain[how, speed])
    return gain


@pytest.mark.slow
def test_tuning_makes_better_clusters_of_scenes_in_changing_light():
    gain = gains(0.0)
    assert gain["affinity", 0.0] >= 0.05
    assert gain["identity", 0.0] >= 0.05  # nothing moves: leaving labels in their place is as right


@pytest.mark.slow
@pytest.mark.xfail(reason="measured: no gain at this size when things move (0.000; 0.303 when they stand)", strict=True)
def test_labels_that_follow_motion_make_better_clusters():
    gain = gains(4.0)
    assert gain["affinity", 4.0] >= 0.05
    assert gain["identity", 4.0] < gain["affinity", 4.0] - 0.03
