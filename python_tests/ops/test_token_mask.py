"""Masks: the generator's published vectors, exact counts, what each kind promises, the same bits on every backend."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vidkernels as vk
from vidkernels import _native
from vidkernels.functional.masking.masks import _block_sizes
from vidkernels.ops.token_mask.op import score_mask, token_mask
from vidkernels.ops.token_mask.reference import philox4x32

F = vk.functional
NATIVE = [
    pytest.param(
        b, marks=pytest.mark.skipif(token_mask.why_not(b, torch.zeros(1).long(), *[None] * 7) is not None, reason=b)
    )
    for b in ("cpu", "simt")
]
SEED = torch.tensor([0x0123456789ABCDEF])


def seed(n):
    return torch.randint(2**63 - 1, (1,), generator=torch.Generator().manual_seed(n))


def frames(mask, grid):
    return mask.to_bool().view(-1, grid[0], grid[1] * grid[2])


# ---- the generator


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, expected):
    """The known-answer vectors that come with Random123 (philox 4x32, 10 rounds)."""
    words = philox4x32([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert tuple(int(w) for w in words) == expected


def test_a_golden_mask():
    """Written down from a Philox of plain Python integers, so that reference and kernels cannot drift together."""

    def philox(c, k):
        c, k = list(c), list(k)
        for _ in range(10):
            a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        return c

    key = (0x89ABCDEF, 0x01234567)
    for sample in range(3):
        words = [philox((p // 4, 0, sample, 0), key)[p % 4] for p in range(30)]
        cells = sorted(sorted(range(30), key=words.__getitem__)[:21])
        masked = F.tube_mask(3, (2, 5, 6), 0.7, seed=SEED).masked_index[sample].tolist()
        assert masked == cells + [30 + c for c in cells]


# ---- one engine on every backend


grids = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)).filter(lambda g: g[1] * g[2] > 1)


@pytest.mark.parametrize("backend", NATIVE)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(grid=grids, ratio=st.floats(0, 0.999), n=st.integers(0, 999), batch=st.integers(0, 5))
def test_same_bits_as_the_reference(backend, grid, ratio, n, batch):
    cells = grid[1] * grid[2]
    low, high = int(ratio * cells * 0.5), int(ratio * cells)
    generator = torch.Generator().manual_seed(n)
    counts = torch.randint(low, high + 1, (batch,), generator=generator, dtype=torch.int32)
    blocks = [3, 1, 1, grid[1], grid[2]]
    for kind in ("tube", "running_cell", "block"):
        for c, lowest in ((None, high), (counts, low)):
            args = (seed(n), c, kind, batch, list(grid), lowest, high, blocks)
            for a, e in zip(token_mask(*args, backend=backend), token_mask(*args, backend="reference"), strict=True):
                assert torch.equal(a, e), kind
    args = (seed(n), None, "random", batch, list(grid), high, high, [])
    for a, e in zip(token_mask(*args, backend=backend), token_mask(*args, backend="reference"), strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("length", [1, 3, 31, 32, 33, 255, 256, 257, 1568, 24 * 1024 + 1])
def test_same_bits_for_awkward_lengths(backend, length):
    if length > 2000 and backend != "cpu":
        batch, counts = 1, (length // 2,)  # beyond the GPU kernel's shared memory
    else:
        batch, counts = 2, (0, length // 3, length - 1, length)
    for count in counts:
        args = (SEED, None, "random", batch, [1, 1, length], count, count, [])
        for a, e in zip(token_mask(*args, backend=backend), token_mask(*args, backend="reference"), strict=True):
            assert torch.equal(a, e)


@pytest.mark.parametrize("backend", ["reference", *NATIVE])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data(), largest=st.booleans())
def test_scores_are_chosen_as_a_plain_sort_would(backend, data, largest):
    groups, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    value = st.one_of(st.sampled_from([0.0, -0.0, 1.0, math.inf, -math.inf, math.nan]), st.floats(width=32))
    rows = data.draw(st.lists(st.lists(value, min_size=groups * length, max_size=groups * length), max_size=3))
    count = data.draw(st.integers(0, length))
    scores = torch.tensor(rows, dtype=torch.float32).view(-1, groups * length)
    visible, masked = score_mask(scores, None, groups, count, count, largest, backend=backend)
    for row, v, m in zip(scores.tolist(), visible.tolist(), masked.tolist(), strict=True):
        expected = []
        for g in range(groups):
            # NaN ranks below -inf; of equal scores the earlier one is masked first
            rank = [(0, 0.0) if math.isnan(s) else (1, s) for s in row[g * length : (g + 1) * length]]
            order = sorted(range(length), key=rank.__getitem__, reverse=largest)
            expected += sorted(g * length + i for i in order[:count])
        assert m == expected
        assert v == sorted(set(range(groups * length)) - set(expected))


def test_sorting_in_the_test_above_keeps_earlier_ties_first():
    assert sorted(range(3), key=[1, 1, 0].__getitem__, reverse=True) == [0, 1, 2]


# ---- counts


@settings(max_examples=60, deadline=None, derandomize=True)
@given(grid=grids, ratio=st.floats(0, 0.999), batch=st.integers(1, 4), n=st.integers(0, 99))
def test_counts_are_exact(grid, ratio, batch, n):
    cells, tokens = grid[1] * grid[2], math.prod(grid)
    expected = {
        "tube": (F.tube_mask, grid[0] * int(ratio * cells)),
        "cell": (F.running_cell_mask, grid[0] * int(ratio * cells)),
        "random": (F.random_mask, tokens - int(tokens * (1 - ratio))),
        "block": (lambda *a, **k: F.block_mask(*a[:2], ratio=a[2], **k), grid[0] * int(ratio * cells)),
    }
    for make, masked in expected.values():
        if masked == tokens:
            continue
        mask = make(batch, grid, ratio, seed=seed(n))
        assert mask.masked_index.shape == (batch, masked)
        assert mask.visible_index.shape == (batch, tokens - masked)
        assert mask.masked_index.dtype == mask.visible_index.dtype == torch.int32
        assert bool((mask.masked_index.diff(dim=1) > 0).all())
        assert bool((mask.visible_index.diff(dim=1) > 0).all())
        both = torch.cat([mask.visible_index, mask.masked_index], 1).sort(1).values
        assert torch.equal(both, torch.arange(tokens, dtype=torch.int32).expand(batch, -1))
        assert bool((mask.to_bool().sum(1) == masked).all())
        if make is not F.random_mask:
            assert bool((frames(mask, grid).sum(2) == masked // grid[0]).all())


def test_published_counts():
    assert F.tube_mask(1).visible_index.shape == (1, 160)  # VideoMAE: 196 - int(0.9 * 196) = 20 in each of 8 frames
    assert F.random_mask(1).visible_index.shape == (1, 156)  # MAE-ST: int(1568 * (1 - 0.9))
    assert F.running_cell_mask(1).masked_index.shape == (1, 784)  # VideoMAE v2: half


@pytest.mark.parametrize("ratio", [0, 0.0, 1 - 1e-9])
def test_edge_ratios(ratio):
    mask = F.tube_mask(2, (2, 3, 3), ratio, seed=SEED)
    assert mask.masked_index.shape[1] == (0 if ratio == 0 else 16)


# ---- what each kind promises


def test_tubes_are_the_same_in_every_frame_and_differ_between_samples():
    mask = frames(F.tube_mask(16, seed=SEED), (8, 14, 14))
    assert bool((mask == mask[:, :1]).all())
    assert len({tuple(row.tolist()) for row in mask[:, 0]}) == 16


@pytest.mark.parametrize("kind", ["tube", "random"])
def test_every_cell_and_every_pair_of_samples_is_treated_alike(kind):
    make = F.tube_mask if kind == "tube" else F.random_mask
    batch, grid, ratio = 4000, (1, 6, 7), 0.75
    mask = make(batch, grid, ratio, seed=SEED).to_bool().double()
    p = float(mask[0].mean())
    expected = batch * p
    # sum of squared standard scores of 42 cells, of which 41 are free; 41 + 5 standard deviations is 86
    chi2 = float(((mask.sum(0) - expected) ** 2 / (expected * (1 - p))).sum()) * 41 / 42
    assert 10 < chi2 < 86
    # overlap of neighbouring samples: hypergeometric, mean 42 p^2
    overlap = (mask[:-1] * mask[1:]).sum(1)
    spread = 42 * p * p * (1 - p) ** 2 * 42 / 41
    assert abs(float(overlap.mean()) - 42 * p * p) < 5 * math.sqrt(spread / len(overlap))
    assert abs(float(overlap.var()) - spread) < 0.15 * spread


def test_seeds_reproduce_and_differ():
    a, b = F.random_mask(4, seed=SEED), F.random_mask(4, seed=SEED)
    assert torch.equal(a.masked_index, b.masked_index)
    assert not torch.equal(a.masked_index, F.random_mask(4, seed=SEED + 1).masked_index)
    assert not torch.equal(
        a.masked_index, F.random_mask(4, seed=SEED + (1 << 40)).masked_index
    )  # the upper word counts
    assert torch.equal(a.masked_index[:2], F.random_mask(2, seed=SEED).masked_index)  # a sample keeps its mask
    torch.manual_seed(3)
    c = F.tube_mask(2)
    torch.manual_seed(3)
    assert torch.equal(c.masked_index, F.tube_mask(2).masked_index)
    assert not torch.equal(c.masked_index, F.tube_mask(2).masked_index)
    g = [F.tube_mask(2, generator=torch.Generator().manual_seed(5)).masked_index for _ in range(2)]
    assert torch.equal(*g)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_running_cells_on_even_grids_follow_the_cycle(ratio):
    grid = (9, 6, 4)
    mask = F.running_cell_mask(40, grid, ratio, seed=SEED).to_bool().view(40, *grid)
    y, x = torch.arange(6)[:, None], torch.arange(4)
    place = (2 * (y % 2) + x % 2 + torch.arange(9)[:, None, None]) % 4
    phases = []
    for sample in mask:
        fits = [s for s in range(4) if torch.equal(sample, (place + s) % 4 < 4 * ratio)]
        assert len(fits) == 1
        phases += fits
    assert len(set(phases)) == 4


@pytest.mark.parametrize("cells", [(3, 3), (7, 7), (5, 8), (3, 5), (1, 2), (1, 7), (9, 1), (2, 3), (13, 17)])
def test_running_cells_on_odd_grids_reach_every_token(cells):
    grid = (8, *cells)
    mask = frames(F.running_cell_mask(64, grid, seed=SEED), grid)
    assert bool((mask.sum(2) == cells[0] * cells[1] // 2).all())
    for start in range(5):
        cycle = mask[:, start : start + 4]
        assert bool(cycle.any(1).all())
        assert bool((~cycle).any(1).all())


def test_blocks_are_rectangles_through_time():
    grid = (3, 9, 11)
    sizes, _ = _block_sizes(9, 11, 1, 0.2, 0.75, 1.5)
    possible = {(sizes[i], sizes[i + 1]) for i in range(0, len(sizes), 2)}
    seen = set()
    for n in range(40):
        # A count that is exactly one of the possible areas shows the rectangle untouched whenever that size was drawn.
        for h, w in possible:
            cells = 99
            mask = F.block_mask(1, grid, 1, 0.2, ratio=(h * w + 0.5) / cells, seed=seed(n))
            volume = mask.to_bool().view(*grid)
            assert bool((volume == volume[:1]).all())
            ys, xs = volume[0].any(1).nonzero(), volume[0].any(0).nonzero()
            height, width = int(ys.max() - ys.min()) + 1, int(xs.max() - xs.min()) + 1
            if height * width == h * w:
                assert (height, width) in possible
                seen.add((height, width))
    assert len(seen) >= len(possible) - 1


def test_block_counts_are_equal_without_favouring_early_tokens():
    grid, batch = (1, 10, 10), 3000
    mask = F.block_mask(batch, grid, 4, 0.2, seed=SEED).to_bool().view(batch, 10, 10).double()
    assert bool((mask.sum((1, 2)) == mask[0].sum()).all())
    share = mask.mean(0)
    # The distribution is symmetric under half a turn; cutting lists in raster order would break exactly that.
    deviation = (share - share.flip(0, 1)).abs().max() / math.sqrt(0.5 / batch)
    assert float(deviation) < 4.5
    assert abs(float(share[:5].mean() - share[5:].mean())) < 0.01


def test_expected_size_of_a_union():
    """Against the average of unions drawn with Python's own generator."""
    import random

    rng = random.Random(0)
    sizes, expected = _block_sizes(14, 14, 8, 0.15, 0.75, 1.5)
    total = 0
    for _ in range(3000):
        cells = set()
        for _ in range(8):
            i = 2 * rng.randrange(16)
            h, w = sizes[i], sizes[i + 1]
            top, left = rng.randrange(14 - h + 1), rng.randrange(14 - w + 1)
            cells |= {(y, x) for y in range(top, top + h) for x in range(left, left + w)}
        total += len(cells)
    assert abs(total / 3000 - expected) < 0.8  # a union varies by about 12 cells: 0.8 is 3.6 standard errors
    assert F.block_mask(1).masked_index.shape == (1, 8 * round(expected))


@pytest.mark.skipif(_native._C is None, reason="needs the compiled module")
def test_the_wall_before_the_kernel():
    out = torch.empty(2, 5, dtype=torch.int32), torch.empty(2, 4, dtype=torch.int32)
    call = _native._C.token_mask_cpu
    with pytest.raises(ValueError, match="low == high"):
        call(SEED, None, "random", [1, 3, 3], 3, 4, [], torch.empty(2, 6, dtype=torch.int32), out[1])
    with pytest.raises(ValueError, match=r"`visible` of shape \[\*, 6\], got \[2, 5\]"):
        call(SEED, None, "random", [1, 3, 3], 3, 3, [], *out)
    with pytest.raises(ValueError, match="expected kind"):
        call(SEED, None, "checker", [1, 3, 3], 4, 4, [], *out)
    with pytest.raises(ValueError, match="fit the grid"):
        call(SEED, None, "block", [1, 3, 3], 4, 4, [1, 3, 4], *out)
    shared = torch.empty(20, dtype=torch.int32)
    with pytest.raises(ValueError, match="overlaps"):
        call(SEED, None, "random", [1, 3, 3], 4, 4, [], shared[:10].view(2, 5), shared[8:16].view(2, 4))
