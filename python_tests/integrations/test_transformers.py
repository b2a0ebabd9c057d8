"""VideoMAE, ViViT and TimeSformer with merged tokens against ToMe written as loops."""

import sys

import pytest
import torch

transformers = pytest.importorskip("transformers")

from vidkernels.integrations.transformers import apply_token_merging  # noqa: E402

SIZES = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32,
    "num_frames": 4, "num_labels": 5,
}  # fmt: skip
CONFIGS = {
    "VideoMAE": (transformers.VideoMAEForVideoClassification, transformers.VideoMAEConfig, {"patch_size": 8}),
    "VideoMAE mean": (
        transformers.VideoMAEModel,
        transformers.VideoMAEConfig,
        {"patch_size": 8, "use_mean_pooling": False},
    ),
    "ViViT": (transformers.VivitForVideoClassification, transformers.VivitConfig, {"tubelet_size": [2, 8, 8]}),
    "TimeSformer joint": (
        transformers.TimesformerForVideoClassification,
        transformers.TimesformerConfig,
        {"patch_size": 8, "attention_type": "joint_space_time"},
    ),
    "TimeSformer": (transformers.TimesformerForVideoClassification, transformers.TimesformerConfig, {"patch_size": 8}),
}


def build(kind):
    cls, config, changes = CONFIGS[kind]
    torch.manual_seed(0)
    model = cls(config(**SIZES | changes))
    for parameter in model.parameters():  # the usual start makes all tokens nearly alike
        parameter.data.normal_(0, 0.2)
    return model.double().eval()


def clips(batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 4, 3, 32, 32, dtype=torch.float64, generator=generator)


def split(x, heads):
    return x.view(len(x), heads, -1).transpose(0, 1)


def attend_videomae(block, x, heads_attention):
    y, own = block.layernorm_before(x), block.attention.attention
    query, key, value = (split(layer(y), 2) for layer in (own.query, own.key, own.value))
    y = heads_attention(query, key, value).transpose(0, 1).flatten(1)
    return x + block.attention.output.dense(y), key


def feed_videomae(block, x):
    return block.output.dense(block.intermediate(block.layernorm_after(x))) + x


def attend_vivit(block, x, heads_attention):
    y, own = block.layernorm_before(x), block.attention
    query, key, value = (split(layer(y), 2) for layer in (own.q_proj, own.k_proj, own.v_proj))
    return x + own.o_proj(heads_attention(query, key, value).transpose(0, 1).flatten(1)), key


def feed_vivit(block, x):
    return x + block.mlp(block.layernorm_after(x))


def attend_timesformer(block, x, heads_attention):
    query, key, value = block.attention.attention.qkv(block.layernorm_before(x)).chunk(3, 1)
    query, key, value = split(query, 2), split(key, 2), split(value, 2)
    return x + block.attention.output.dense(heads_attention(query, key, value).transpose(0, 1).flatten(1)), key


def feed_timesformer(block, x):
    return x + block.output.dense(block.intermediate(block.layernorm_after(x)))


def backbone(model):
    return next(m for m in model.modules() if isinstance(m, MODELS))


MODELS = (transformers.VideoMAEModel, transformers.VivitModel, transformers.TimesformerModel)


@pytest.fixture
def by_hand(tome):
    def run(model, pixels, pairs, **options):
        inner = backbone(model)
        if isinstance(inner, transformers.VideoMAEModel):
            arguments = (inner.embeddings(pixels, None), inner.encoder.layer, pairs, 0, attend_videomae, feed_videomae)
        elif isinstance(inner, transformers.VivitModel):
            arguments = (inner.embeddings(pixels), inner.layers, pairs, 1, attend_vivit, feed_vivit)
        else:
            x, blocks = inner.embeddings(pixels), inner.encoder.layer
            if inner.config.attention_type == "divided_space_time":
                return divided(tome, x, blocks, pairs, **options)
            arguments = (x, blocks, pairs, 1, attend_timesformer, feed_timesformer)
        return tome.transformer(*arguments, **options)

    return run


def divided(tome, x, blocks, pairs, proportional=True):
    """TimeSformer's divided attention, one place and one frame at a time; places merge for the whole clip."""
    frames, merged, groups, full = 4, [], [], []
    for clip in x:
        first, rest = clip[:1], clip[1:].view(-1, frames, clip.shape[1])  # [P, T, D]
        members = [[n] for n in range(len(rest))]
        for block, r in zip(blocks, pairs):
            along = []
            for place in rest:
                query, key, value = (
                    split(p, 2)
                    for p in block.temporal_attention.attention.qkv(block.temporal_layernorm(place)).chunk(3, 1)
                )
                y = tome.attention(query, key, value, [[0]] * frames).transpose(0, 1).flatten(1)
                along.append(place + block.temporal_dense(block.temporal_attention.output.dense(y)))
            rest = torch.stack(along)
            across, keys = [], []
            for t in range(frames):
                frame, key = attend_timesformer(
                    block,
                    torch.cat([first, rest[:, t]]),
                    lambda *qkv, m=members: tome.attention(*qkv, [[0], *m], proportional),
                )
                across.append(frame)
                keys.append(key.mean(0)[1:])
            first = torch.stack([frame[:1] for frame in across]).mean(0)
            rest = torch.stack([frame[1:] for frame in across], 1)
            if r:
                flat, members = tome.merge(rest.flatten(1), members, torch.cat(keys, 1), r, 0)
                rest = flat.view(len(flat), frames, -1)
            both = feed_timesformer(block, torch.cat([first, rest.flatten(0, 1)]))
            first, rest = both[:1], both[1:].view_as(rest)
        back = [None] * sum(len(m) for m in members)
        for row, group in zip(rest, members):
            for n in group:
                back[n] = row
        merged.append(torch.cat([first, rest.flatten(0, 1)]))
        groups.append(members)
        full.append(torch.cat([first, torch.stack(back).flatten(0, 1)]))
    return torch.stack(merged), groups, torch.stack(full)


def encode(model, pixels):
    """Tokens after the last block, normalised if the model does."""
    return backbone(model)(pixels).last_hidden_state


def normalised(model, x):
    norm = backbone(model).layernorm
    return x if norm is None else norm(x)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("proportional", [True, False])
def test_equals_the_algorithm_by_hand(kind, proportional, by_hand, tome):
    model, pixels = build(kind), clips()
    with torch.no_grad():
        merged, groups, full = by_hand(model, pixels, [4, 5, 2], proportional=proportional)
        with apply_token_merging(model, [4, 5, 2], proportional=proportional) as patch:
            torch.testing.assert_close(encode(model, pixels), normalised(model, full))
            tome.assert_tells_the_groups(patch.source(), patch.size(), groups)
        with apply_token_merging(model, [4, 5, 2], proportional=proportional, unmerge=False):
            torch.testing.assert_close(encode(model, pixels), normalised(model, merged))


def test_mean_pooling_weighs_by_size(by_hand):
    model, pixels = build("VideoMAE"), clips()
    assert model.config.use_mean_pooling
    merged, groups, _ = by_hand(model, pixels, [8, 6, 4])
    size = torch.tensor([[float(len(m)) for m in g] for g in groups], dtype=torch.float64)
    pooled = (merged * size[:, :, None]).sum(1) / size.sum(1, keepdim=True)
    apply_token_merging(model, [8, 6, 4])
    torch.testing.assert_close(model(pixels).logits, model.classifier(model.fc_norm(pooled)))


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_pairs_is_the_model_and_so_is_removal(kind):
    model, pixels = build(kind), clips()
    expected, kinds = model(pixels)[0], [type(m) for m in model.modules()]
    patch = apply_token_merging(model, 0)
    # TimeSformer writes its attention out, so that the fused one differs in the last bits.
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if kind.startswith("TimeSformer") else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(model(pixels)[0], expected, **tolerance)
    patch.remove()
    apply_token_merging(model, 5).remove()
    assert [type(m) for m in model.modules()] == kinds
    assert torch.equal(model(pixels)[0], expected)


@pytest.mark.parametrize("kind", ["VideoMAE", "ViViT", "TimeSformer"])
def test_compiles_without_graph_breaks(kind):
    model, pixels = build(kind), clips()
    apply_token_merging(model, 4)
    with torch.no_grad():
        expected = model(pixels)[0]
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(pixels)[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["VideoMAE", "ViViT", "TimeSformer"])
def test_compiles_with_inductor_and_trains(kind):
    model, pixels = build(kind), clips()
    apply_token_merging(model, 4)
    weight = next(backbone(model).embeddings.patch_embeddings.parameters())
    expected = torch.autograd.grad(model(pixels)[0].sin().sum(), weight)[0]
    found = torch.autograd.grad(torch.compile(model, fullgraph=True)(pixels)[0].sin().sum(), weight)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["VideoMAE", "ViViT", "TimeSformer"])
def test_gradients_equal_those_by_hand(kind, by_hand):
    model, pixels = build(kind), clips()
    parameters = [p for n, p in backbone(model).named_parameters() if "layer." in n or "layers." in n]
    assert parameters
    full = by_hand(model, pixels, [4, 5, 2])[2]
    expected = torch.autograd.grad(full.sin().sum(), parameters)
    apply_token_merging(model, [4, 5, 2])
    hidden = []
    blocks = getattr(backbone(model), "layers", None) or backbone(model).encoder.layer
    blocks[-1].register_forward_hook(lambda m, args, out: hidden.append(out[0] if isinstance(out, tuple) else out))
    model(pixels)
    for a, b in zip(torch.autograd.grad(hidden[0].sin().sum(), parameters), expected):
        torch.testing.assert_close(a, b)


def test_gradient_checkpointing_gives_the_same_gradients():
    model, pixels = build("VideoMAE"), clips()
    apply_token_merging(model, 4)
    weight = model.videomae.embeddings.patch_embeddings.projection.weight
    expected = torch.autograd.grad(model(pixels)[0].sin().sum(), weight)[0]
    model.train()  # checkpoints only then; there is no dropout here
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(torch.autograd.grad(model(pixels)[0].sin().sum(), weight)[0], expected)


@pytest.mark.parametrize(
    ("kind", "pairing"), [("VideoMAE", "temporal"), ("ViViT", "joint"), ("TimeSformer", "spatial")]
)
def test_pairings_on_the_grid(kind, pairing):
    model, pixels = build(kind), clips()
    patch = apply_token_merging(model, [6, 0, 0], pairing=pairing)
    model(pixels)
    grid = (1, 4, 4) if kind == "TimeSformer" else (2, 4, 4)
    source = patch.source()[:, 1 if kind == "ViViT" else 0 :].view(2, *grid)
    for row in source:
        for place in row.unique():
            t, y, x = (row == place).nonzero().unbind(1)
            if pairing == "temporal":
                assert len(y.unique()) == len(x.unique()) == 1
            else:
                assert max(y.max() - y.min(), x.max() - x.min(), t.max() - t.min()) <= 2


def test_refusals(monkeypatch):
    with pytest.raises(TypeError, match="expected one VideoMAE, ViViT or TimeSformer in the model, found 0"):
        apply_token_merging(torch.nn.Linear(2, 2), 1)
    model = build("VideoMAE")
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="set_attn_implementation"):
        apply_token_merging(model, 1)
    model.set_attn_implementation("sdpa")
    apply_token_merging(model, 1)
    with pytest.raises(ValueError, match="merges tokens already"):
        apply_token_merging(model, 1)
    model = build("TimeSformer")
    apply_token_merging(model, 1)
    with pytest.raises(ValueError, match="no weights to return"):
        model(clips(), output_attentions=True)
    with pytest.raises(ValueError, match='"alternate" only'):
        apply_token_merging(build("TimeSformer joint"), 1, pairing="joint")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'vidkernels\[transformers\]'"):
        apply_token_merging(model, 1)
