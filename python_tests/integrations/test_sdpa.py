"""The generic patch: any block that calls scaled_dot_product_attention."""

import doctest

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vidkernels.integrations.sdpa import apply_token_merging, key_metric, watch_attention


class Block(nn.Module):
    """Somebody's block: two residual branches, tuple output on request, `split` as many write it."""

    def __init__(self, width=12, heads=2, returns_tuple=False):
        super().__init__()
        self.heads, self.returns_tuple = heads, returns_tuple
        self.norm, self.qkv, self.mlp = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def first(self, x):
        batch, length, width = x.shape
        parts = self.qkv(self.norm(x)).split(width, dim=2)
        query, key, value = (p.view(batch, length, self.heads, -1).transpose(1, 2) for p in parts)
        return x + F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, length, width)

    def second(self, x):
        return x + self.mlp(x).relu()

    def forward(self, x):
        x = self.second(self.first(x))
        return (x, "more") if self.returns_tuple else x


class Stack(nn.Module):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(**options) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


def tokens(batch=2, length=15):
    return torch.randn(batch, length, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def attend(block, x, heads_attention):
    query, key, value = (p.view(len(x), 2, -1).transpose(0, 1) for p in block.qkv(block.norm(x)).chunk(3, 1))
    return x + heads_attention(query, key, value).transpose(0, 1).flatten(1), key


HALVES = (Block.first, Block.second)


@pytest.mark.parametrize("returns_tuple", [True, False])
def test_halves_equal_the_algorithm_by_hand(tome, returns_tuple):
    model, x = Stack(returns_tuple=returns_tuple).double(), tokens()
    merged, groups, full = tome.transformer(x, model.blocks, [3, 2, 2], 1, attend, Block.second)
    with apply_token_merging(model.blocks, [3, 2, 2], halves=HALVES, protect=1) as patch:
        torch.testing.assert_close(model(x), full)
        tome.assert_tells_the_groups(patch.source(), patch.size(), groups)
    with apply_token_merging(model.blocks, [3, 2, 2], halves=HALVES, protect=1, unmerge=False):
        torch.testing.assert_close(model(x), merged)


@pytest.mark.parametrize("returns_tuple", [True, False])
def test_any_block_merges_after_itself(tome, returns_tuple):
    model, x = Stack(returns_tuple=returns_tuple).double(), tokens()

    def whole(block, clip, heads_attention):
        clip, key = attend(block, clip, heads_attention)
        return Block.second(block, clip), key

    merged, _, full = tome.transformer(x, model.blocks, [3, 2, 2], 0, whole, lambda block, clip: clip)
    with apply_token_merging(model.blocks, [3, 2, 2]):
        torch.testing.assert_close(model(x), full)
    with apply_token_merging(model.blocks, [3, 2, 2], unmerge=False):
        torch.testing.assert_close(model(x), merged)


@pytest.mark.parametrize("halves", [None, HALVES])
def test_compiles_without_graph_breaks(halves):
    model, x = Stack().double(), tokens()
    apply_token_merging(model.blocks, 2, halves=halves)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


def test_identical_tokens_collapse_without_a_trace():
    """Four equal frames merge into one and attention, biased by the size, cannot tell."""
    model, x = Stack().double(), tokens(length=9).repeat(1, 4, 1)
    expected = model(x)
    with apply_token_merging(model.blocks, [18, 9, 0], pairing="temporal", grid=(4, 1, 9)):
        torch.testing.assert_close(model(x), expected)
    with apply_token_merging(model.blocks, [18, 9, 0], pairing="temporal", grid=(4, 1, 9), proportional=False):
        torch.testing.assert_close(model(x), expected)  # all sizes are equal here, too
    with apply_token_merging(model.blocks, [5, 0, 0], proportional=False):
        assert not torch.allclose(model(x), expected)
    with apply_token_merging(model.blocks, [5, 0, 0]):
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_models_and_autocast(dtype):
    model, x = Stack().to(dtype), tokens().to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.float32), apply_token_merging(model.blocks, 2):
        out = model(x)
    assert out.isfinite().all()
    assert out.shape == x.shape


def test_watch_keeps_the_keys_of_several_attentions():
    query, key, value = torch.randn(3, 1, 2, 4, 8).unbind(0)
    keys = []
    with watch_attention(None, keys):
        plain = F.scaled_dot_product_attention(query, key, value)
        F.scaled_dot_product_attention(query, 2 * key, value, scale=0.3)
    assert torch.equal(plain, F.scaled_dot_product_attention(query, key, value))
    torch.testing.assert_close(key_metric(keys), torch.cat([key.mean(1), 2 * key.mean(1)], 2))


def test_refusals():
    model = Stack()
    with pytest.raises(ValueError, match="at least one block"):
        apply_token_merging([], 1)
    with pytest.raises(ValueError, match="one number >= 0 per block"):
        apply_token_merging(model.blocks, [1, 2])
    assert type(model.blocks[0]) is Block
    apply_token_merging(model.blocks, 1)
    with pytest.raises(ValueError, match="merges tokens already"):
        apply_token_merging(model.blocks, 1)
    linear = nn.Sequential(nn.Linear(12, 12))
    apply_token_merging(linear, 1)
    with pytest.raises(RuntimeError, match="without calling torch's scaled_dot_product_attention"):
        linear(torch.zeros(1, 4, 12))
    with watch_attention(None, []), pytest.raises(ValueError, match="without mask"):
        F.scaled_dot_product_attention(*torch.zeros(3, 1, 1, 4, 2), is_causal=True)


@pytest.mark.parametrize("name", ["sdpa", "timm", "transformers"])
def test_examples_run(name):
    if name != "sdpa":
        pytest.importorskip(name)
    module = __import__(f"vidkernels.integrations.{name}", fromlist=["apply_token_merging"])
    globs = vars(module) | {"torch": torch, "nn": nn, "F": F}
    names = [n for n in module.__all__ if n == "apply_token_merging" or name == "sdpa"]
    for item in names:
        for test in doctest.DocTestFinder(recurse=False).find(getattr(module, item), globs=globs):
            runner = doctest.DocTestRunner()
            runner.run(test)
            assert runner.summarize(verbose=False).failed == 0
