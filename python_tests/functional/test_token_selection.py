"""Greedy selection against plain loops and brute force."""

import itertools
import math

import pytest
import torch

from vidkernels.functional.tokens.selection import maximal_marginal_relevance, maximum_coverage


def cosine(a, b):
    lengths = float(a.norm()) * float(b.norm())
    return float(a @ b) / lengths if lengths else 0.0


def mmr_loop(relevance, x, count, trade_off):
    chosen = []
    for _ in range(count):
        best, best_score = None, -math.inf
        for i in range(len(x)):
            if i in chosen:
                continue
            alike = max((cosine(x[i], x[j]) for j in chosen), default=0.0)
            score = trade_off * float(relevance[i]) - (1 - trade_off) * alike
            if score > best_score:
                best, best_score = i, score
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("trade_off", [0.0, 0.3, 0.7, 1.0])
def test_mmr_is_the_loop(trade_off, generator):
    x = torch.randn(3, 15, 6, generator=generator, dtype=torch.float64)
    relevance = torch.rand(3, 15, generator=generator, dtype=torch.float64)
    x[1, 4] = 0
    out = maximal_marginal_relevance(relevance, x, 9, trade_off=trade_off)
    for b in range(3):
        assert out[b].tolist() == mmr_loop(relevance[b], x[b], 9, trade_off)


def test_mmr_spreads_over_near_copies(generator):
    """Three near-copies of each of 20 items: much less alike than the top-k, at little loss of relevance."""
    query = torch.nn.functional.normalize(torch.randn(32, generator=generator), dim=0)
    items = query + 0.25 * torch.randn(20, 32, generator=generator)
    x = (items.repeat_interleave(3, 0) + 0.01 * torch.randn(60, 32, generator=generator))[None]
    relevance = torch.cosine_similarity(x, query[None, None], dim=2)

    def measure(index):
        chosen = torch.nn.functional.normalize(x[0, index], dim=1)
        alike = (chosen @ chosen.T).triu(1).sum() / (len(index) * (len(index) - 1) / 2)
        return float(alike), float(relevance[0, index].mean())

    plain = measure(relevance[0].topk(8).indices)
    diverse = measure(maximal_marginal_relevance(relevance, x, 8, trade_off=0.7)[0])
    assert diverse[0] < 0.75 * plain[0]
    assert diverse[1] > 0.85 * plain[1]


def test_mmr_extremes_ties_masks_and_scales(generator):
    x = torch.randn(2, 10, 4, generator=generator)
    relevance = torch.rand(2, 10, generator=generator)
    top = relevance.topk(10).indices
    assert torch.equal(maximal_marginal_relevance(relevance, x, 10, trade_off=1.0), top)
    assert maximal_marginal_relevance(torch.zeros(1, 5), torch.ones(1, 5, 3), 5).tolist() == [[0, 1, 2, 3, 4]]
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[0, [7, 2]] = True
    out = maximal_marginal_relevance(relevance, x, 3, mask=mask)
    assert sorted(out[0, :2].tolist()) == [2, 7]
    assert out[0, 2] == -1
    assert out[1].tolist() == [-1, -1, -1]
    for scale in (1e-30, 1e30):
        assert torch.equal(
            maximal_marginal_relevance(relevance, x, 6), maximal_marginal_relevance(relevance, scale * x, 6)
        )
    alone = torch.cat([maximal_marginal_relevance(relevance[b : b + 1], x[b : b + 1], 6) for b in range(2)])
    assert torch.equal(alone, maximal_marginal_relevance(relevance, x, 6))


def coverage_loop(sets, budget, weight):
    covered, chosen = torch.zeros(sets.shape[1], dtype=torch.bool), []
    for _ in range(budget):
        gains = [float(weight[s & ~covered].sum()) if i not in chosen else -1 for i, s in enumerate(sets)]
        best = max(range(len(gains)), key=lambda i: (gains[i], -i))
        if gains[best] <= 0:
            break
        chosen.append(best)
        covered |= sets[best]
    return chosen


@pytest.mark.parametrize("weighted", [False, True])
def test_coverage_is_the_greedy_loop(weighted, generator):
    sets = torch.rand(4, 12, 60, generator=generator) < 0.15
    weight = torch.randint(1, 9, (4, 60), generator=generator).float() if weighted else torch.ones(4, 60)
    index, share = maximum_coverage(sets, 7, weight=weight if weighted else None)
    for b in range(4):
        chosen = coverage_loop(sets[b], 7, weight[b])
        assert index[b].tolist() == chosen + [-1] * (7 - len(chosen))
        everything = float(weight[b][sets[b].any(0)].sum())
        for step in range(len(chosen)):
            covered = float(weight[b][sets[b][chosen[: step + 1]].any(0)].sum())
            assert float(share[b, step]) == pytest.approx(covered / everything)


@pytest.mark.parametrize("budget", [1, 2, 3, 4])
def test_coverage_is_within_the_bound_of_the_best(budget):
    """1 - (1 - 1/K)^K of the optimum found by brute force, also where greedy is led astray."""
    for seed in range(25):
        generator = torch.Generator().manual_seed(seed)
        sets = torch.rand(1, 9, 24, generator=generator) < 0.1 + 0.3 * torch.rand(1, 9, 1, generator=generator)
        index, _ = maximum_coverage(sets, budget)
        greedy = int(sets[0][[i for i in index[0].tolist() if i >= 0]].any(0).sum())
        best = max(int(sets[0][list(some)].any(0).sum()) for some in itertools.combinations(range(9), budget))
        assert greedy >= (1 - (1 - 1 / budget) ** budget) * best - 1e-9


def test_greedy_can_miss_the_best_but_not_the_bound():
    """The usual trap: the largest set first costs the perfect pair."""
    a, b = torch.zeros(8), torch.zeros(8)
    a[:4], b[4:] = 1, 1
    trap = torch.tensor([0.0, 1, 1, 1, 1, 1, 0, 0])
    index, share = maximum_coverage(torch.stack([a, b, trap]).bool()[None], 2)
    assert index.tolist() == [[2, 1]]
    assert share.tolist() == [[0.625, 0.875]]


def test_coverage_stops_at_the_target_and_when_all_is_covered():
    sets = torch.eye(5, dtype=torch.bool)[None]
    index, share = maximum_coverage(sets, 5, target=0.6)
    assert index.tolist() == [[0, 1, 2, -1, -1]]
    assert share.tolist()[0] == pytest.approx([0.2, 0.4, 0.6, 0.6, 0.6])
    same = torch.ones(1, 5, 5, dtype=torch.bool)
    assert maximum_coverage(same, 3)[0].tolist() == [[0, -1, -1]]
    nothing, share = maximum_coverage(torch.zeros(1, 5, 5, dtype=torch.bool), 2)
    assert nothing.tolist() == [[-1, -1]]
    assert share.tolist() == [[1.0, 1.0]]


def test_coverage_mask_batch_and_order(generator):
    sets = torch.rand(3, 10, 40, generator=generator) < 0.2
    mask = torch.rand(3, 10, generator=generator) < 0.6
    index, _ = maximum_coverage(sets, 6, mask=mask)
    for b in range(3):
        chosen = [i for i in index[b].tolist() if i >= 0]
        assert all(mask[b, i] for i in chosen)
        assert len(set(chosen)) == len(chosen)
        alone, _ = maximum_coverage(sets[b : b + 1], 6, mask=mask[b : b + 1])
        assert torch.equal(alone[0], index[b])


def test_coverage_needs_no_copy_of_the_sets():
    """40 MB of sets; what the call allocates at a time stays far below."""
    sets = torch.zeros(1, 400, 100_000, dtype=torch.bool)
    for i in range(400):
        sets[0, i, i * 200 : i * 200 + 300] = True
    with torch.profiler.profile(profile_memory=True) as profile:
        maximum_coverage(sets, 3)
    largest = max(abs(event.self_cpu_memory_usage) for event in profile.events())
    assert largest <= 10 << 20


def test_no_sets_no_elements_no_budget():
    assert maximum_coverage(torch.zeros(2, 0, 4, dtype=torch.bool), 0)[0].shape == (2, 0)
    assert maximum_coverage(torch.zeros(2, 3, 0, dtype=torch.bool), 2)[0].tolist() == [[-1, -1]] * 2
    assert maximum_coverage(torch.zeros(0, 3, 4, dtype=torch.bool), 2)[1].shape == (0, 2)
    assert maximal_marginal_relevance(torch.zeros(2, 0), torch.zeros(2, 0, 3), 0).shape == (2, 0)
    assert maximal_marginal_relevance(torch.zeros(0, 4), torch.zeros(0, 4, 3), 2).shape == (0, 2)
    assert maximal_marginal_relevance(torch.zeros(1, 4), torch.zeros(1, 4, 0), 2).tolist() == [[0, 1]]


def test_compiles_in_one_piece(generator):
    x, relevance = torch.randn(2, 10, 4, generator=generator), torch.rand(2, 10, generator=generator)
    sets = torch.rand(2, 10, 30, generator=generator) < 0.2

    def both(relevance, x, sets):
        return maximal_marginal_relevance(relevance, x, 4), maximum_coverage(sets, 4)[0]

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")(relevance, x, sets)
    for a, b in zip(compiled, both(relevance, x, sets)):
        assert torch.equal(a, b)


def test_bad_input_is_named():
    x, relevance = torch.zeros(2, 5, 3), torch.zeros(2, 5)
    with pytest.raises(ValueError, match="`relevance` "):
        maximal_marginal_relevance(torch.zeros(5), x, 2)
    with pytest.raises(ValueError, match="`count` between"):
        maximal_marginal_relevance(relevance, x, 6)
    with pytest.raises(ValueError, match="`trade_off` between"):
        maximal_marginal_relevance(relevance, x, 2, trade_off=1.5)
    bad = x.clone()
    bad[1, 3, 0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN at \[batch, item\] \[\[1, 3\]\]"):
        maximal_marginal_relevance(relevance, bad, 2)
    sets = torch.zeros(2, 5, 7, dtype=torch.bool)
    with pytest.raises(ValueError, match="`sets` of bool"):
        maximum_coverage(sets.float(), 2)
    with pytest.raises(ValueError, match="`budget` between"):
        maximum_coverage(sets, 6)
    with pytest.raises(ValueError, match="weights of 0 or more"):
        maximum_coverage(sets, 2, weight=-torch.ones(7))
    with pytest.raises(ValueError, match=r"`weight` \[B, V\]"):
        maximum_coverage(sets, 2, weight=torch.ones(6))
