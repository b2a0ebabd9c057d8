"""timm's vision transformers with merged tokens against ToMe written as loops."""

import copy
import sys

import pytest
import torch

timm = pytest.importorskip("timm")
from timm.models import vision_transformer as vit  # noqa: E402

from vidkernels.integrations.timm import apply_token_merging  # noqa: E402

LENGTH = 16  # tokens of a 32 x 32 picture


def build(cls=vit.VisionTransformer, **changes):
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
    model = cls(**options | changes).double()
    for parameter in model.parameters():  # timm starts with tiny weights, and all tokens nearly alike
        parameter.data.normal_(0, 0.2)
    return model.eval()


def pictures(batch=2):
    return torch.randn(batch, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def attend(block, x, heads_attention):
    post = isinstance(block, vit.ResPostBlock)
    y = x if post else block.norm1(x)
    query, key, value = block.attn.qkv(y).view(len(x), 3, block.attn.num_heads, -1).permute(1, 2, 0, 3)
    query, key = block.attn.q_norm(query), block.attn.k_norm(key)
    y = block.attn.proj(heads_attention(query, key, value).transpose(0, 1).flatten(1))
    y = block.norm1(y) if post else block.ls1(y)
    return x + y, key


def feed(block, x):
    if isinstance(block, vit.ResPostBlock):
        return x + block.norm2(block.mlp(x))
    return x + block.ls2(block.mlp(block.norm2(x)))


@pytest.fixture
def by_hand(tome):
    def run(model, images, pairs, **options):
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        return tome.transformer(x, model.blocks, pairs, model.num_prefix_tokens, attend, feed, **options)

    return run


KINDS = {
    "class token": {},
    "registers": {"reg_tokens": 3},
    "no prefix": {"class_token": False, "global_pool": "avg"},
    "layer scale and key norm": {"init_values": 0.5, "qk_norm": True},
    "post norm": {"block_fn": vit.ResPostBlock},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("proportional", [True, False])
def test_equals_the_algorithm_by_hand(kind, proportional, by_hand, tome):
    model, images = build(**KINDS[kind]), pictures()
    merged, groups, full = by_hand(model, images, [4, 4, 3], proportional=proportional)
    with apply_token_merging(model, [4, 4, 3], proportional=proportional) as patch:
        torch.testing.assert_close(model.forward_features(images), model.norm(full))
        tome.assert_tells_the_groups(patch.source(), patch.size(), groups)
    with apply_token_merging(model, [4, 4, 3], proportional=proportional, unmerge=False):
        torch.testing.assert_close(model.forward_features(images), model.norm(merged))


def test_distillation_token(by_hand):
    from timm.models.deit import VisionTransformerDistilled

    model, images = build(VisionTransformerDistilled), pictures()
    assert model.num_prefix_tokens == 2
    merged, _, full = by_hand(model, images, [5, 0, 5])
    with apply_token_merging(model, [5, 0, 5]) as patch:
        torch.testing.assert_close(model.forward_features(images), model.norm(full))
        assert patch.size().shape[1] == merged.shape[1] == LENGTH + 2 - 10
        assert patch.size()[:, :2].eq(1).all()


def test_mean_pooling_weighs_by_size(by_hand):
    model, images = build(class_token=False, global_pool="avg"), pictures()
    merged, groups, _ = by_hand(model, images, [6, 4, 2])
    apply_token_merging(model, [6, 4, 2])
    size = torch.tensor([[float(len(m)) for m in g] for g in groups], dtype=torch.float64)
    pooled = (model.norm(merged) * size[:, :, None]).sum(1) / LENGTH
    torch.testing.assert_close(model(images), model.head(model.fc_norm(pooled)))


@pytest.mark.parametrize("kind", KINDS)
def test_no_pairs_is_the_model_bit_for_bit_and_so_is_removal(kind):
    model, images = build(**KINDS[kind]), pictures()
    expected, keys, kinds = model(images), set(model.state_dict()), [type(m) for m in model.modules()]
    patch = apply_token_merging(model, 0)
    assert torch.equal(model(images), expected)
    assert patch.size() is None
    assert patch.source() is None
    patch.remove()
    patch = apply_token_merging(model, 4)
    assert set(model.state_dict()) == keys
    assert not torch.equal(model(images), expected)
    patch.remove()
    patch.remove()
    assert [type(m) for m in model.modules()] == kinds
    assert torch.equal(model(images), expected)
    assert not any(hasattr(m, "_vk_merging") for m in model.modules())


def test_side_by_side_blocks_merge_after_the_block():
    model, images = build(block_fn=vit.ParallelScalingBlock), pictures()
    expected = model(images)
    with apply_token_merging(model, 0):
        assert torch.equal(model(images), expected)
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    inside = model.blocks[0](x)  # before the first merge nothing has changed
    seen = []
    patch = apply_token_merging(model, [4, 0, 0], unmerge=False, track_source=True)
    model.blocks[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(images)
    source = patch.source()
    for b in range(2):
        for place in range(LENGTH + 1 - 4):
            group = (source[b] == place).nonzero().flatten()
            torch.testing.assert_close(seen[0][b, place], inside[b, group].mean(0))


@pytest.mark.parametrize("unmerge", [True, False])
def test_compiles_without_graph_breaks(unmerge):
    model, images = build().float(), pictures().float()
    apply_token_merging(model, 3, unmerge=unmerge)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(images), expected)


@pytest.mark.slow
def test_compiles_with_inductor_and_trains():
    model, images = build().float(), pictures().float()
    patch = apply_token_merging(model, 3)
    expected = torch.autograd.grad(model(images).square().sum(), model.patch_embed.proj.weight)[0]
    compiled = torch.compile(model, fullgraph=True)
    out = compiled(images)
    torch.testing.assert_close(patch.size().sum(1), torch.full((2,), LENGTH + 1.0))
    found = torch.autograd.grad(out.square().sum(), model.patch_embed.proj.weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_equal_those_by_hand(by_hand):
    model, images = build(), pictures()
    parameters = list(model.blocks.parameters())
    _, _, full = by_hand(model, images, [4, 4, 3])
    expected = torch.autograd.grad(model.norm(full).sin().sum(), parameters)
    apply_token_merging(model, [4, 4, 3])
    found = torch.autograd.grad(model.forward_features(images).sin().sum(), parameters)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)


def test_gradient_checkpointing_gives_the_same_gradients():
    model, images = build(), pictures()
    apply_token_merging(model, 4)
    expected = torch.autograd.grad(model(images).sin().sum(), model.patch_embed.proj.weight)[0]
    model.set_grad_checkpointing()
    found = torch.autograd.grad(model(images).sin().sum(), model.patch_embed.proj.weight)[0]
    torch.testing.assert_close(found, expected)


def test_copies_do_not_share_their_state():
    model, images = build(), pictures()
    patch = apply_token_merging(model, 4)
    twin = copy.deepcopy(model)
    expected = model(images)
    before = patch.source()
    torch.testing.assert_close(twin(images), expected)
    twin(pictures(3))
    assert patch.source() is before


def test_share_and_schedules():
    model, images = build(depth=4), pictures()
    for schedule, first in (("constant", 3), ("decreasing", 5)):
        with apply_token_merging(model, 0.375, schedule=schedule) as patch:
            model(images)
            assert patch.size().shape[1] == 1 + 6
            assert patch.size(1).shape[1] == LENGTH + 1 - first


def test_spatial_pairing_merges_neighbours():
    model, images = build(), pictures()
    with apply_token_merging(model, [8, 0, 0], pairing="spatial") as patch:
        model(images)
        for row in patch.source()[:, 1:].view(2, 4, 4):
            for place in row.unique():
                y, x = (row == place).nonzero().unbind(1)
                assert len(y) <= 5
                assert (y - y.float().mean().round()).abs().max() <= 1
                assert (x - x.float().mean().round()).abs().max() <= 1


def test_refusals(monkeypatch):
    model = build()
    with pytest.raises(TypeError, match="one timm VisionTransformer, found 0"):
        apply_token_merging(torch.nn.Linear(2, 2), 1)
    patch = apply_token_merging(model, 1)
    with pytest.raises(ValueError, match="merges tokens already"):
        apply_token_merging(model, 1)
    with pytest.raises(ValueError, match="without mask"):
        model.blocks[0](torch.zeros(1, 17, 24, dtype=torch.float64), attn_mask=torch.zeros(17, 17).double())
    patch.remove()
    for block in model.blocks:
        block.attn.fused_attn = False
    apply_token_merging(model, 1)
    with pytest.raises(RuntimeError, match="without calling torch's scaled_dot_product_attention"):
        model(pictures())
    monkeypatch.setitem(sys.modules, "timm.models", None)
    with pytest.raises(ImportError, match=r"pip install 'vidkernels\[timm\]'"):
        apply_token_merging(model, 1)
