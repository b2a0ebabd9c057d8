"""TokenLearner: a few learned tokens find the blob that matters, at a fraction of the attention."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vidkernels.methods.tokens.token_learner import TokenLearnerViT
from vidkernels.models import VideoViTConfig

Config = TokenLearnerViT.Config
SIDE, BLOB = 64, 9


def patterns():
    """Four black and white textures [4, 9, 9]: rows, columns, checks, one half."""
    y, x = torch.meshgrid(torch.arange(BLOB), torch.arange(BLOB), indexing="ij")
    return torch.stack([y // 2 % 2, x // 2 % 2, (x // 2 + y // 2) % 2, (y >= BLOB // 2).long()]).float()


def blobs(batch, generator, frames=2, distractors=6):
    """Clips, labels and corners [B, T, 2] of the red blob, whose texture is the label; blue ones have any texture."""
    draw = lambda *size: torch.randint(0, SIDE - BLOB - 2, size, generator=generator)  # noqa: E731
    clip = 0.5 + 0.1 * torch.randn(batch, frames, SIDE, SIDE, 3, generator=generator)
    label = torch.randint(4, (batch,), generator=generator)
    corner = torch.zeros(batch, frames, 2, dtype=torch.int64)
    texture = patterns()
    for b in range(batch):
        for n in range(distractors + 1):  # the red one last: it is never covered
            red = n == distractors
            kind = label[b] if red else torch.randint(4, (), generator=generator)
            y, x = draw(2).tolist()
            color = torch.tensor([1.0, 0.25, 0.25] if red else [0.25, 0.25, 1.0])
            patch = (0.15 + 0.85 * texture[kind])[..., None] * color
            for t in range(frames):
                clip[b, t, y + t : y + t + BLOB, x + t : x + t + BLOB] = patch
                if red:
                    corner[b, t] = torch.tensor([y + t, x + t])
    return (clip * 255).clamp(0, 255).to(torch.uint8), label, corner


class Everything(nn.Module):
    def forward(self, x):
        return x.flatten(2, 3)


class AtRandom(nn.Module):
    """Eight positions of every frame, drawn anew in each call."""

    def forward(self, x):
        flat = x.flatten(2, 3)
        place = torch.rand(flat.shape[:3]).topk(8, dim=2).indices
        return flat.gather(2, place[..., None].expand(*place.shape, flat.shape[3]))


def hits(model, clip, corner):
    """Share of frames (pairs of them make a tube) in which the peak of a map lies on the red blob."""
    maps = model.maps(clip)  # [B, t, S, h, w]
    peak = maps.flatten(3).argmax(3)
    y, x = peak // maps.shape[4] * 8, peak % maps.shape[4] * 8  # corner of the patch
    top = corner[:, ::2]  # the tube's first frame
    inside = ((y - top[..., :1]).abs() < BLOB) & ((x - top[..., 1:]).abs() < BLOB)
    inside = inside & (y + 8 > top[..., :1]) & (x + 8 > top[..., 1:])
    return float(inside.any(2).float().mean())


@pytest.mark.parametrize("form", ["v1", "v1.1"])
@pytest.mark.parametrize("fuse", [None, 2])
def test_shapes_maps_and_cost(form, fuse):
    torch.manual_seed(0)
    encoder = VideoViTConfig(width=64, depth=3, heads=2)
    model = TokenLearnerViT(replace(Config.tiny(), encoder=encoder, form=form, fuse=fuse))
    clip = torch.randint(0, 256, (2, 6, 64, 48, 3), dtype=torch.uint8)
    assert model(clip).shape == (2, 4)
    assert model.maps(clip).shape == (2, 3, 8, 8, 6)
    assert model.features(clip).shape == (2, 3 * 8 if fuse is None else 3 * 48, 64)
    few, everything = model.attention_cost(clip)
    assert everything / few == (48 / 8) ** 2
    loss = model.training_step(clip, torch.Generator().manual_seed(0), labels=torch.tensor([3, 1]))["loss"]
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_one_hot_maps_hand_exact_tokens_to_the_later_layers():
    """Maps forced onto one place: the same result as keeping those tokens."""
    torch.manual_seed(0)
    model = TokenLearnerViT(Config.tiny())
    clip = torch.randint(0, 256, (1, 4, 16, 24, 3), dtype=torch.uint8)
    chosen = torch.tensor([0, 5, 2, 3, 1, 1, 4, 0])

    class Forced(nn.Module):
        def forward(self, h):
            hot = nn.functional.one_hot(chosen, 6).T.float().view(1, 1, 2, 3, 8)
            return (1000 * hot - 500).expand(*h.shape[:2], 2, 3, 8)

    class Kept(nn.Module):
        def forward(self, x):
            return x.flatten(2, 3)[:, :, chosen]

    model.learner.mlp = Forced()
    forced = model(clip)
    model.learner = Kept()
    assert torch.equal(forced, model(clip))


def test_bad_clips_and_layers_are_named():
    model = TokenLearnerViT(Config.tiny())
    for wrong in (torch.zeros(1, 4, 20, 16, 3, dtype=torch.uint8), torch.zeros(1, 4, 16, 16, 3)):
        with pytest.raises(ValueError, match="multiples of the tube"):
            model(wrong)
    with pytest.raises(ValueError, match="`insert` < `fuse`"):
        replace(Config.tiny(), insert=2)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_eight_tokens_find_the_blob(one_thread):
    # No layer before: attention would tell every position, also a random one, what the blob looks like.
    config = replace(Config.tiny(), insert=0)
    generator = torch.Generator().manual_seed(5)
    data = [blobs(32, generator) for _ in range(90)]
    held_out = blobs(256, generator)
    accuracy, found = {}, 0.0
    for name, pooling in (("learned", None), ("all", Everything()), ("random", AtRandom())):
        torch.manual_seed(1)
        model = TokenLearnerViT(config)
        if pooling is not None:
            model.learner = pooling
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=500)
        for step in range(500):
            clip, label, _ = data[step % len(data)]
            loss = model.training_step(clip, labels=label)["loss"]
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            clip, label, corner = held_out
            accuracy[name] = float((model(clip).argmax(1) == label).float().mean())
            if name == "learned":
                found = hits(model, clip, corner)
                few, everything = model.attention_cost(clip)
    print(accuracy, found)
    assert everything >= 10 * few
    assert found > 0.8
    assert accuracy["learned"] >= accuracy["all"] - 0.02
    assert accuracy["learned"] > accuracy["random"] + 0.1
