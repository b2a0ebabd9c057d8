"""Masks as a user meets them: ragged batches, conversions, modules, compilation, refusals."""

import math

import pytest
import torch

import vidkernels as vk
from vidkernels.functional import TokenMask

F = vk.functional
SEED = torch.tensor([0x0123456789ABCDEF])


@pytest.mark.parametrize("make", [F.tube_mask, F.random_mask, F.running_cell_mask])
def test_ragged(make):
    grid, tokens = (2, 5, 7), 70
    each = torch.tensor([0.1, 0.5, 0.9, 0.0], dtype=torch.float64)
    mask = make(4, grid, each, seed=SEED)
    expected = [make(1, grid, r, seed=SEED).masked_index.shape[1] for r in each.tolist()]
    assert mask.masked_count.tolist() == expected
    assert mask.visible_count.tolist() == [tokens - c for c in expected]
    whole = mask.to_bool()
    assert whole.shape == (4, tokens)
    for b, count in enumerate(expected):
        assert mask.masked_index[b, :count].tolist() == whole[b].nonzero()[:, 0].tolist()
        assert bool((mask.masked_index[b, count:] == -1).all())
        assert bool((mask.visible_index[b, tokens - count :] == -1).all())
    flat, offsets = mask.flat()
    for b in range(4):
        assert flat[offsets[b] : offsets[b + 1]].tolist() == (~whole[b]).nonzero()[:, 0].tolist()
    flat, offsets = mask.flat("masked")
    assert offsets.diff().tolist() == expected


def test_range_of_ratios():
    mask = F.random_mask(4000, (1, 3, 4), (0.25, 0.75), generator=torch.Generator().manual_seed(0))
    share = mask.masked_count.bincount().double() / 4000
    assert share[:3].sum() == 0
    assert len(share) == 10
    assert bool((share[3:] - 1 / 7).abs().max() < 0.03)


def test_flat_of_equal_counts():
    flat, offsets = F.tube_mask(3, (2, 2, 2), 0.5).flat()
    assert flat.shape == (12,)
    assert offsets.tolist() == [0, 4, 8, 12]


@pytest.mark.parametrize("make", [F.tube_mask, F.random_mask, F.block_mask])
def test_from_bool_is_the_inverse(make):
    mask = make(3, (2, 5, 4), seed=SEED)
    again = TokenMask.from_bool(mask.to_bool(), mask.grid)
    assert torch.equal(again.visible_index, mask.visible_index)
    assert torch.equal(again.masked_index, mask.masked_index)
    assert again.masked_count is None


def test_from_bool_of_unequal_counts():
    whole = torch.rand(5, 31, generator=torch.Generator().manual_seed(1)) < torch.linspace(0, 1, 5)[:, None]
    mask = TokenMask.from_bool(whole)
    assert torch.equal(mask.to_bool(), whole)
    assert torch.equal(mask.masked_count, whole.sum(1).int())


def test_score_mask_per_group():
    scores = torch.tensor([[1.0, 2.0, 3.0, 9.0, 8.0, 7.0]])
    assert F.score_mask(scores, 0.34, groups=2).masked_index.tolist() == [[2, 3]]
    assert F.score_mask(scores, count=1, groups=2, largest=False).masked_index.tolist() == [[0, 5]]
    mask = F.score_mask(scores, count=2, grid=(1, 2, 3))
    assert mask.grid == (1, 2, 3)
    assert mask.masked_index.tolist() == [[3, 4]]
    assert F.score_mask(scores.long(), count=1).masked_index.tolist() == [[3]]


# ---- use


def test_compiles_in_one_graph():
    def step(x):
        mask = F.tube_mask(x.shape[0], (2, 4, 4), 0.75)
        return F.gather_tokens(x, mask.visible_index), mask

    torch._dynamo.reset()
    x = torch.randn(3, 32, 5)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    kept, mask = compiled(x)
    assert isinstance(mask, TokenMask)
    assert mask.grid == (2, 4, 4)
    assert torch.equal(kept, F.gather_tokens(x, mask.visible_index))
    assert not torch.equal(mask.visible_index, compiled(x)[1].visible_index)


def test_modules():
    clip = torch.zeros(2, 3, 16, 32, 32)
    for module, masked in [
        (vk.nn.TubeMasking((8, 2, 2), 0.5), 16),
        (vk.nn.RandomMasking((8, 2, 2)), 29),
        (vk.nn.RunningCellMasking((8, 2, 2)), 16),
        (vk.nn.BlockMasking((8, 2, 2), 1, 0.25, ratio=0.25), 8),
    ]:
        assert module(clip).masked_index.shape == (2, masked)
        a, b = (module(2, torch.Generator().manual_seed(1)).masked_index for _ in range(2))
        assert torch.equal(a, b)
        assert "ratio=" in repr(module)
        assert not module.state_dict()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.tube_mask(2, ratio=1.0), r"tube_mask: expected `ratio` in \[0, 1\)"),
        (lambda: F.random_mask(2, ratio=-0.1), r"random_mask: expected `ratio` in \[0, 1\)"),
        (lambda: F.random_mask(2, ratio=math.nan), r"expected `ratio` in \[0, 1\)"),
        (lambda: F.random_mask(2, ratio=1 - 1e-9), "nothing is left visible: 1568 of 1568"),
        (lambda: F.tube_mask(2, (8, 0, 14)), r"three positive sizes"),
        (lambda: F.tube_mask(2, (8, 14)), r"three positive sizes"),
        (lambda: F.tube_mask(-1), "`batch` >= 0"),
        (lambda: F.tube_mask(2, ratio=(0.9, 0.1)), "low <= high"),
        (lambda: F.tube_mask(2, ratio=torch.zeros(3)), r"a tensor \[B\]"),
        (lambda: F.tube_mask(2, seed=torch.zeros(1)), "dtype int64"),
        (lambda: F.block_mask(2, blocks=0), "blocks in 1..128"),
        (lambda: F.block_mask(2, scale=0.0), r"scale in \(0, 1\]"),
        (lambda: F.score_mask(torch.zeros(2, 7), 0.5, groups=2), "multiple of `groups`"),
        (lambda: F.score_mask(torch.zeros(2, 7)), "either `ratio` or `count`"),
        (lambda: F.score_mask(torch.zeros(2, 7), count=7), r"`count` in \[0, 7\)"),
        (lambda: F.score_mask(torch.zeros(7), 0.5), r"shape \[B, N\]"),
        (lambda: F.score_mask(torch.zeros(2, 6), 0.5, grid=(2, 2, 2)), "`grid`"),
        (lambda: TokenMask.from_bool(torch.zeros(2, 3)), "bool mask"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
