"""TokenMerging: how many pairs where, state, source maps; and the video encoder that uses it."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from vidkernels.models.video_vit import VideoViTConfig, VideoViTEncoder
from vidkernels.nn.tokens.merging import ProportionalAttention, TokenMerging

SPEC = importlib.util.spec_from_file_location(
    "tome_by_hand", Path(__file__).parents[1] / "integrations" / "tome_by_hand.py"
)
tome = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tome)


def counts(merging, length, batch=1):
    x = torch.randn(batch, length, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for layer in range(merging.depth):
        x = merging(x, x, layer)
        found.append(x.shape[1])
    return found


@pytest.mark.parametrize(
    ("arguments", "length", "expected"),
    [
        ((8, 4), 100, [92, 84, 76, 68]),
        ((40, 4), 100, [60, 30, 15, 8]),  # never more than half
        ((0, 3), 10, [10, 10, 10]),
        (([5, 0, 2], 3), 20, [15, 15, 13]),
        ((0.25, 3), 100, [75, 50, 25]),
        ((1 / 3, 4), 10, [8, 6, 5, 4]),
        ((1.0, 2), 9, [9, 9]),
        ((0.1, 4), 100, [77, 54, 32, 16]),  # what a block cannot take, the next ones try
        ((0.5, 1), 9, [5]),
        ((3, 2), 0, [0, 0]),
        ((3, 2), 1, [1, 1]),
    ],
)
def test_constant_schedules(arguments, length, expected):
    assert counts(TokenMerging(*arguments), length) == expected


def test_decreasing_schedules():
    # ToMe's: from 2 r down to 0 in equal steps.
    assert counts(TokenMerging(6, 4, schedule="decreasing"), 100) == [88, 80, 76, 76]
    found = counts(TokenMerging(1 / 3, 12, schedule="decreasing"), 1568)
    steps = [a - b for a, b in zip([1568, *found], found)]
    assert found[-1] == 523
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == pytest.approx(2 * (1568 - 523) / 12, abs=2)
    assert steps[-1] <= 2


def test_protected_tokens_stay_and_do_not_count():
    merging = TokenMerging(0.5, 2, protect=2, track_source=True)
    x = torch.randn(3, 22, 4)
    out = merging(merging(x, x, 0), torch.randn(3, 17, 4), 1)
    assert out.shape == (3, 12, 4)
    assert torch.equal(out[:, :2], x[:, :2])
    assert (merging.source()[:, :2] == torch.tensor([0, 1])).all()
    assert merging.size()[:, :2].eq(1).all()


def test_sizes_and_sources_agree():
    merging = TokenMerging(5, 3, track_source=True)
    x = original = torch.randn(2, 30, 4)
    for layer in range(3):
        x = merging(x, x, layer)
    for b in range(2):
        found = torch.bincount(merging.source()[b].long(), minlength=15)
        assert found.tolist() == merging.size()[b].tolist()
        for place in range(15):
            torch.testing.assert_close(x[b, place], original[b, merging.source()[b] == place].mean(0))
    assert merging.source().dtype is torch.int32
    assert merging.size(0) is None
    assert merging.size(1).shape == (2, 25)
    torch.testing.assert_close(merging.unmerge(x).mean(1), original.mean(1))


def test_a_new_clip_of_another_length_starts_afresh():
    merging = TokenMerging(0.5, 2, track_source=True)
    assert counts(merging, 40) == [30, 20]
    assert counts(merging, 12, batch=3) == [9, 6]
    assert merging.source().shape == (3, 12)


def test_temporal_pairing_holds_until_the_grid_is_gone():
    merging = TokenMerging([6, 3], 2, pairing="temporal", grid=(2, 2, 3), track_source=True)
    x = torch.randn(1, 12, 4)
    x = merging(x, x, 0)
    assert merging.source(1)[0].tolist() == [*range(6), *range(6)]
    assert merging(x, x, 1).shape[1] == 3


def test_refusals():
    for wrong, message in (
        ({"r": -1}, "at least 0"),
        ({"r": 0.0}, "share of the tokens"),
        ({"r": 1.5}, "share of the tokens"),
        ({"r": [1]}, "one number >= 0 per block"),
        ({"r": [1, -1]}, "one number >= 0 per block"),
        ({"r": 1, "schedule": "steep"}, "expected `schedule`"),
        ({"r": 1, "pairing": "joint"}, "needs `grid`"),
    ):
        with pytest.raises(ValueError, match=message):
            TokenMerging(**{"depth": 2} | wrong)
    merging, x = TokenMerging(2, 1), torch.randn(1, 8, 4)
    x = merging(x, x, 0)
    with pytest.raises(ValueError, match="source maps were not kept"):
        merging.unmerge(x)


def test_proportional_attention_layer():
    torch.manual_seed(0)
    layer, x = ProportionalAttention(8, heads=2).double(), torch.randn(1, 4, 8).double()
    size = torch.tensor([[1, 3, 1, 2]])
    twice = x.repeat_interleave(size[0], 1)
    out, metric = layer(x, size, need_metric=True)
    first = size[0].cumsum(0) - size[0]
    torch.testing.assert_close(out, layer(twice)[:, first])
    key = F.linear(x, layer.qkv.weight, layer.qkv.bias)[..., 8:16]
    torch.testing.assert_close(metric, (key[..., :4] + key[..., 4:]) / 2)
    with pytest.raises(ValueError, match="divisible"):
        ProportionalAttention(8, heads=3)


def encoder(depth=3):
    torch.manual_seed(0)
    model = VideoViTEncoder(VideoViTConfig(width=24, depth=depth, heads=2))
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    return model


def attend(block, x, heads_attention):
    parts = block.qkv(block.norm1(x)).chunk(3, 1)
    query, key, value = (p.view(len(x), 2, -1).transpose(0, 1) for p in parts)
    return x + block.proj(heads_attention(query, key, value).transpose(0, 1).flatten(1)), key


def feed(block, x):
    return x + block.down(F.gelu(block.up(block.norm2(x))))


@pytest.mark.parametrize("proportional", [True, False])
def test_the_encoder_equals_the_algorithm_by_hand(proportional):
    model, x = encoder().double(), torch.randn(2, 20, 24, dtype=torch.float64)
    merged, groups, full = tome.transformer(x, model.blocks, [4, 5, 3], 0, attend, feed, proportional)
    model.merging = TokenMerging([4, 5, 3], 3, proportional=proportional, track_source=True)
    out = model(x)
    torch.testing.assert_close(out, model.norm(merged))
    torch.testing.assert_close(model.merging.unmerge(out), model.norm(full))
    tome.assert_tells_the_groups(model.merging.source(), model.merging.size(), groups)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(model.norm(merged).sin().sum(), parameters)
    for a, b in zip(torch.autograd.grad(out.sin().sum(), parameters), expected):
        torch.testing.assert_close(a, b)


def test_the_encoder_without_pairs_is_the_encoder():
    model, x = encoder(), torch.randn(2, 20, 24)
    expected = model(x)
    names = set(model.state_dict())
    model.merging = TokenMerging(0, 3)
    assert torch.equal(model(x), expected)
    assert set(model.state_dict()) == names


def test_the_encoder_in_bfloat16_is_near_float32():
    """Up to 512 tokens attention is written out there, beyond it is fused."""
    for length in (40, 600):
        # Nothing merges before the attention that is compared, so that the choice of pairs is the same.
        model, x = encoder(depth=1), torch.randn(1, length, 24)
        size = torch.randint(1, 9, (1, length)).float()
        half = copy.deepcopy(model).bfloat16()
        with torch.no_grad():
            exact, _ = model.blocks[0].attention(x.bfloat16().float(), size)
            found, _ = half.blocks[0].attention(x.bfloat16(), size)
            unsized, _ = model.blocks[0].attention(x.bfloat16().float())
        error = (found.float() - exact).norm() / exact.norm()
        assert error < 0.02
        assert (unsized - exact).norm() / exact.norm() > 4 * error


def test_the_encoder_compiles_without_graph_breaks():
    model, x = encoder(), torch.randn(2, 20, 24)
    model.merging = TokenMerging(0.4, 3, track_source=True)
    expected = model.merging.unmerge(model(x))
    compiled = torch.compile(lambda t: model.merging.unmerge(model(t)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.slow
def test_the_encoder_compiles_with_inductor_and_trains():
    model, x = encoder(), torch.randn(2, 20, 24)
    model.merging = TokenMerging(0.4, 3)
    expected = torch.autograd.grad(model(x).sin().sum(), list(model.parameters()))
    found = torch.autograd.grad(torch.compile(model, fullgraph=True)(x).sin().sum(), list(model.parameters()))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
