import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vidkernels import methods

VideoMAE = methods.get("videomae")
Config = VideoMAE.Config


def moving_texture(frames=8, size=32, seed=0):
    """[1, T, H, W, 3] uint8: smooth waves that drift, so neighbours in space and time tell about a hole."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    time = torch.arange(frames).view(-1, 1, 1, 1)
    phase = torch.rand(3, generator=generator) * 6.28
    wave = (x[..., None] * 0.35 + y[..., None] * 0.2 + 0.5 * time + phase).sin()
    wave = wave + (x[..., None] * 0.15 - y[..., None] * 0.3 - 0.3 * time - phase).cos()
    return (127.5 + 60 * wave).round().to(torch.uint8).unsqueeze(0)


def test_published_token_counts():
    model = VideoMAE(Config(encoder=Config.tiny().encoder, decoder=Config.tiny().decoder))
    clip = torch.zeros(3, 16, 224, 224, 3, dtype=torch.uint8)
    mask = model.mask(clip, torch.Generator().manual_seed(0))
    assert mask.visible_index.shape == (3, 160)
    assert mask.masked_index.shape == (3, 1408)


def test_masked_tube_is_never_visible_in_another_frame():
    model = VideoMAE(Config.tiny())
    clip = torch.zeros(4, 10, 40, 56, 3, dtype=torch.uint8)
    hidden = model.mask(clip, torch.Generator().manual_seed(1)).to_bool().view(4, 5, 5 * 7)
    assert torch.equal(hidden, hidden[:, :1].expand_as(hidden))
    assert not torch.equal(hidden[0, 0], hidden[1, 0])


def test_masked_pixels_do_not_reach_the_prediction():
    torch.manual_seed(0)
    model = VideoMAE(Config.tiny())
    clip = moving_texture()
    mask = model.mask(clip, torch.Generator().manual_seed(2))
    hidden = mask.to_bool().view(1, 4, 4, 4).repeat_interleave(2, 1)
    hidden = hidden.repeat_interleave(8, 2).repeat_interleave(8, 3)
    noise = torch.randint(0, 256, clip.shape, dtype=torch.uint8)
    other = torch.where(hidden[..., None], noise, clip)
    with torch.no_grad():
        assert torch.equal(model.predict(clip, mask), model.predict(other, mask))
        seen = torch.where(hidden[..., None], clip, noise)
        assert not torch.equal(model.predict(clip, mask), model.predict(seen, mask))


@pytest.mark.parametrize("shape", [(1, 2, 16, 16), (2, 6, 24, 40), (1, 10, 56, 8 * 5)])
@pytest.mark.parametrize("positions", ["sequence", "grid"])
def test_any_frame_count_and_odd_grid_in_one_model(shape, positions):
    model = VideoMAE(replace(Config.tiny(), positions=positions))
    clip = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8)
    result = model.reconstruct(clip, torch.Generator().manual_seed(0))
    assert result["reconstruction"].shape == clip.shape
    grid = model.grid(clip)
    assert int(result["mask"].sum()) == shape[0] * grid[0] * int(0.9 * grid[1] * grid[2])
    untouched = ~result["mask"].view(shape[0], *grid)
    untouched = untouched.repeat_interleave(2, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
    for name in ("masked", "reconstruction"):
        assert torch.equal(result[name][untouched], clip[untouched])


def test_perfect_prediction_reconstructs_the_clip(monkeypatch):
    model, clip = VideoMAE(Config.tiny()), moving_texture()

    def oracle(_, mask):
        tubes = clip.view(1, 4, 2, 4, 8, 4, 8, 3).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(64, 128, 3)
        tubes = tubes[mask.masked_index[0].long()].float() / 255
        std, mean = torch.std_mean(tubes, dim=1, keepdim=True)
        return ((tubes - mean) / (std + 1e-6)).reshape(1, -1, 384)

    monkeypatch.setattr(model, "predict", oracle)
    result = model.reconstruct(clip, torch.Generator().manual_seed(5))
    assert torch.equal(result["reconstruction"], clip)
    assert not torch.equal(result["masked"], clip)


def test_training_beats_the_mean_patch_and_the_untrained_model():
    torch.manual_seed(0)
    model, clip = VideoMAE(Config.tiny()), moving_texture()

    def held_out():
        # Masks that training never drew.
        with torch.no_grad():
            draws = [model.training_step(clip, torch.Generator().manual_seed(900 + i)) for i in range(8)]
        return torch.stack([draw["loss"] for draw in draws]).mean().item()

    before = held_out()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(200):
        loss = model.training_step(clip, generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    # Predicting a tube's own mean leaves its whole (unbiased, normalised) variance: 127 / 128.
    assert held_out() < 0.7 * min(before, 127 / 128)


def test_loss_equals_the_paper_written_out():
    torch.manual_seed(0)
    model, clip = VideoMAE(Config.tiny()), moving_texture()
    with torch.no_grad():
        mask = model.mask(clip, torch.Generator().manual_seed(4))
        prediction = model.predict(clip, mask).view(-1, 128, 3)
        total = 0.0
        for row, index in enumerate(mask.masked_index[0].tolist()):
            t, y, x = index // 16 * 2, index % 16 // 4 * 8, index % 4 * 8
            tube = clip[0, t : t + 2, y : y + 8, x : x + 8].reshape(128, 3).double() / 255
            target = (tube - tube.mean(0)) / (tube.var(0, unbiased=True).sqrt() + 1e-6)
            total += (prediction[row] - target).square().mean().item()
        loss = model.training_step(clip, torch.Generator().manual_seed(4))["loss"].item()
    assert loss == pytest.approx(total / mask.masked_index.shape[1], rel=1e-5)


@pytest.fixture
def reference_model(monkeypatch):
    """A VideoMAE of the transformers package, width 48, with random weights."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        # A torchvision built for another torch fails on import; transformers can do without it.
        monkeypatch.setitem(sys.modules, "torchvision", None)
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        image_size=48,
        patch_size=16,
        num_frames=4,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        decoder_hidden_size=24,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=96,
        layer_norm_eps=1e-6,
        use_mean_pooling=False,
        qkv_bias=True,
    )
    torch.manual_seed(0)
    model = transformers.VideoMAEForPreTraining(config)
    for name, value in model.named_parameters():
        if name.endswith(("bias", "mask_token")) or "layernorm" in name:
            torch.nn.init.normal_(value, std=0.2)
    return model


def take_over(ours, theirs):
    """Copy the weights of a transformers VideoMAE into ours."""
    weights = theirs.state_dict()

    def block(source, target):
        result = {}
        for part, module in (
            ("proj", "attention.output.dense"),
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
            ("up", "intermediate.dense"),
            ("down", "output.dense"),
        ):
            for kind in ("weight", "bias"):
                result[f"{target}.{part}.{kind}"] = weights[f"{source}.{module}.{kind}"]
        attention = f"{source}.attention.attention"
        rows = [weights[f"{attention}.{which}.weight"] for which in ("query", "key", "value")]
        result[f"{target}.qkv.weight"] = torch.cat(rows)
        query, value = weights[f"{attention}.query.bias"], weights[f"{attention}.value.bias"]
        result[f"{target}.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
        return result

    state = {"decoder.mask_token": weights["mask_token"]}
    for kind in ("weight", "bias"):
        state[f"embed.{kind}"] = weights[f"videomae.embeddings.patch_embeddings.projection.{kind}"]
        state[f"encoder.norm.{kind}"] = weights[f"videomae.layernorm.{kind}"]
        state[f"decoder.norm.{kind}"] = weights[f"decoder.norm.{kind}"]
        state[f"decoder.head.{kind}"] = weights[f"decoder.head.{kind}"]
    state["decoder.embed.weight"] = weights["encoder_to_decoder.weight"]
    for i in range(2):
        state |= block(f"videomae.encoder.layer.{i}", f"encoder.blocks.{i}")
        state |= block(f"decoder.decoder_layers.{i}", f"decoder.blocks.{i}")
    ours.load_state_dict(state)


def test_same_loss_and_predictions_as_the_transformers_implementation(reference_model):
    ours = VideoMAE(
        Config(
            encoder=type(Config.tiny().encoder)(width=48, depth=2, heads=4),
            decoder=type(Config.tiny().encoder)(width=24, depth=2, heads=2),
            mask_ratio=0.6,
        )
    )
    take_over(ours, reference_model)
    clip = torch.randint(0, 256, (2, 4, 48, 48, 3), dtype=torch.uint8)
    mask = ours.mask(clip, torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (ours.config.mean, ours.config.std))
    video = (clip.permute(0, 1, 4, 2, 3).float() / 255 - mean) / std
    theirs = reference_model(pixel_values=video, bool_masked_pos=mask.to_bool())
    order = mask.masked_index.argsort(1)
    mine = ours.predict(clip, mask)
    mine_sorted = mine.gather(1, order.unsqueeze(2).expand_as(mine))
    torch.testing.assert_close(mine_sorted, theirs.logits, rtol=1e-4, atol=1e-5)
    loss = ours.loss(mine, clip, mask.masked_index)
    torch.testing.assert_close(loss, theirs.loss, rtol=1e-5, atol=0)

    loss.backward()
    theirs.loss.backward()
    pairs = [
        (ours.embed.weight, reference_model.videomae.embeddings.patch_embeddings.projection.weight),
        (ours.decoder.head.weight, reference_model.decoder.head.weight),
        (ours.decoder.mask_token, reference_model.mask_token),
    ]
    for mine, other in pairs:
        assert F.cosine_similarity(mine.grad.flatten(), other.grad.flatten(), dim=0) > 0.99999
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_parameter_count_is_the_published_one():
    # transformers' and the authors' VideoMAE-B for pretraining: 94,210,944 parameters. Ours adds the biases
    # of the keys, one per channel and block.
    model = VideoMAE(Config.base())
    assert sum(value.numel() for value in model.parameters()) == 94_210_944 + 12 * 768 + 4 * 384


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (torch.zeros(4, 16, 16, 3, dtype=torch.uint8), "unsqueeze"),
        (torch.zeros(1, 4, 16, 16, 3), "uint8"),
        (torch.zeros(1, 4, 17, 16, 3, dtype=torch.uint8), r"multiples of the tube[\s\S]*\[4, 16, 16\]"),
        (torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8), r"multiples of the tube[\s\S]*\[2, 16, 16\]"),
        (torch.zeros(0, 4, 16, 16, 3, dtype=torch.uint8), "B >= 1"),
    ],
)
def test_wrong_clips_are_refused_with_a_hint(clip, message):
    with pytest.raises(ValueError, match=message):
        VideoMAE(Config.tiny()).training_step(clip)


def test_unknown_positions_are_refused():
    with pytest.raises(ValueError, match=r"`positions` 'sequence' or 'grid'[\s\S]*HINT"):
        replace(Config.tiny(), positions="learned")
