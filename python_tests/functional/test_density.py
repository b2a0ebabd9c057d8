"""DPC-kNN and redundancy pruning against the definitions on whole N x N tables, one sample at a time."""

import math

import pytest
import torch

from vidkernels.functional.tokens.density import dpc_knn_cluster
from vidkernels.functional.tokens.merging import merge_tokens
from vidkernels.functional.tokens.redundancy import prune_redundant_tokens
from vidkernels.nn.tokens.density import DPCKNNMerging


def plain_peaks(x, k):
    """[N, C] float64 -> logarithms of density and peak; all distances in one table, the densest gets the maximum."""
    n = len(x)
    squared = torch.stack([(x - x[i]).square().sum(1) for i in range(n)]) / x.shape[1]
    density = []
    for i in range(n):
        others = sorted(float(squared[i, j]) for j in range(n) if j != i)[:k]
        density.append(-sum(others) / max(len(others), 1))  # the exponent: exp may underflow
    peak = []
    for i in range(n):
        denser = [j for j in range(n) if (density[j], -j) > (density[i], -i)]
        away = min(float(squared[i, j]) for j in denser) if denser else float(squared.max())
        peak.append(density[i] + (0.5 * math.log(away) if away > 0 else -1e300))
    return density, peak


def plain_dpc(x, clusters, k):
    """[N, C] float64 -> source, centres."""
    n, (density, peak) = len(x), plain_peaks(x, k)
    by_peak = sorted(range(n), key=lambda i: (-peak[i], -density[i], i))
    centers = sorted(by_peak[:clusters])
    source = [int((x[centers] - x[i]).norm(dim=1).argmin()) for i in range(n)]
    for place, center in enumerate(centers):
        source[center] = place
    return source, centers


def blobs(generator, batch, per, centres, dim, spread=0.1):
    middle = 3 * torch.randn(batch, centres, 1, dim, generator=generator, dtype=torch.float64)
    x = middle + spread * torch.randn(batch, centres, per, dim, generator=generator, dtype=torch.float64)
    label = torch.arange(centres).repeat_interleave(per)
    shuffle = torch.randperm(centres * per, generator=generator)
    return x.flatten(1, 2)[:, shuffle], label[shuffle]


@pytest.mark.parametrize(("length", "clusters", "k"), [(1, 1, 5), (2, 1, 1), (7, 3, 5), (40, 6, 5), (40, 40, 32)])
def test_equals_the_plain_table(length, clusters, k, generator):
    x = torch.randn(3, length, 5, generator=generator, dtype=torch.float64)
    plan, centers = dpc_knn_cluster(x, clusters, k=k)
    for b in range(3):
        source, chosen = plain_dpc(x[b], clusters, k)
        assert centers[b].tolist() == chosen
        assert plan.source[b].tolist() == source


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_equals_the_plain_table_of_its_numbers(dtype, generator):
    x = torch.randn(2, 60, 16, generator=generator).to(dtype)
    plan, centers = dpc_knn_cluster(x, 9)
    for b in range(2):
        source, chosen = plain_dpc(x[b].double(), 9, 5)
        assert centers[b].tolist() == chosen
        assert plan.source[b].tolist() == source


def test_ties_leave_no_better_choice(generator):
    """Whole numbers: distances are exact, many peaks are equal but for rounding."""
    x = torch.randint(0, 3, (4, 30, 4), generator=generator).double()
    plan, centers = dpc_knn_cluster(x, 8, k=4)
    for b in range(4):
        _, peak = plain_peaks(x[b], 4)
        chosen = centers[b].tolist()
        assert min(peak[i] for i in chosen) >= max(peak[i] for i in range(30) if i not in chosen) - 1e-9
        for i, place in enumerate(plan.source[b].tolist()):
            away = (x[b, chosen] - x[b, i]).norm(dim=1)
            assert place == (chosen.index(i) if i in chosen else int(away.argmin()))


def test_finds_planted_blobs(generator):
    x, label = blobs(generator, 5, 12, 6, 8)
    plan, _ = dpc_knn_cluster(x, 6)
    for source in plan.source:
        pairs = set(zip(source.tolist(), label.tolist()))
        assert len(pairs) == 6


def test_densities_that_underflow_keep_their_order(generator):
    """Distances at which exp(-d^2) is 0 in float64, let alone float32."""
    x, _ = blobs(generator, 1, 10, 4, 8)
    plan, centers = dpc_knn_cluster(1000 * x, 4)
    source, chosen = plain_dpc(1000 * x[0], 4, 5)
    assert centers[0].tolist() == chosen
    assert plan.source[0].tolist() == source


def test_a_sample_does_not_see_its_batch(generator):
    x = torch.randn(4, 50, 6, generator=generator)
    x[2] *= 100  # would change a maximum taken over the batch
    together, centers = dpc_knn_cluster(x, 7)
    for b in range(4):
        alone, own = dpc_knn_cluster(x[b : b + 1], 7)
        assert torch.equal(alone.source[0], together.source[b])
        assert torch.equal(own[0], centers[b])


def test_padding_might_as_well_not_exist(generator):
    x = torch.randn(2, 20, 6, generator=generator)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, [3, 4, 15, 16, 17]] = False
    x[1, 3], x[1, 4] = float("nan"), 1e30
    plan, centers = dpc_knn_cluster(x, 5, mask=mask)
    kept = mask[1].nonzero()[:, 0]
    alone, own = dpc_knn_cluster(x[1:, kept], 5)
    assert torch.equal(plan.source[1, kept], alone.source[0])
    assert torch.equal(centers[1], kept[own[0]])
    assert torch.equal(plan.source[0], dpc_knn_cluster(x[:1], 5)[0].source[0])
    assert not plan.source[1, ~mask[1]].any()


def test_fewer_tokens_than_clusters_and_none():
    x = torch.randn(2, 6, 3)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, [1, 4]] = True
    plan, centers = dpc_knn_cluster(x, 4, mask=mask)
    assert centers.tolist() == [[1, 4, -1, -1], [-1, -1, -1, -1]]
    assert plan.source[0, [1, 4]].tolist() == [0, 1]
    merged, size = merge_tokens(torch.where(mask[..., None], x, 0), plan, mask.float())
    assert size.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert torch.equal(merged[0, :2], x[0, [1, 4]])
    assert not merged[0, 2:].any()
    assert not merged[1].any()
    plan, centers = dpc_knn_cluster(torch.zeros(3, 0, 4), 0)
    assert (plan.source.shape, plan.count, centers.shape) == ((3, 0), 0, (3, 0))
    assert dpc_knn_cluster(torch.zeros(0, 5, 4), 2)[0].source.shape == (0, 5)


def test_equal_tokens_take_the_first_as_centres():
    plan, centers = dpc_knn_cluster(torch.ones(1, 6, 3), 2)
    assert centers.tolist() == [[0, 1]]
    assert plan.source.tolist() == [[0, 1, 0, 0, 0, 0]]


def test_module_takes_means_uniform_or_learned(generator):
    x, _ = blobs(generator, 2, 8, 3, 5)
    x = x.float()
    merged, size, plan = DPCKNNMerging(5, 3, weight="uniform")(x)
    learned = DPCKNNMerging(5, 0.1, weight="learned")  # ceil(2.4) = 3
    with torch.no_grad():
        learned.score.weight.normal_(generator=generator, std=30)  # exponentials of either sign overflow
    heavy, heavy_size, _ = learned(x)
    assert torch.equal(size, heavy_size)
    for b in range(2):
        for place in range(3):
            members = x[b, plan.source[b] == place].double()
            assert size[b, place] == len(members)
            torch.testing.assert_close(merged[b, place].double(), members.mean(0), rtol=1e-5, atol=1e-6)
            weight = (members @ learned.score.weight[0].double()).softmax(0)
            torch.testing.assert_close(heavy[b, place].double(), weight @ members, rtol=1e-4, atol=1e-4)


def test_module_ignores_padding_and_learns(generator):
    torch.manual_seed(0)
    net = DPCKNNMerging(5, 4)
    x = torch.randn(2, 12, 5, generator=generator).requires_grad_()
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, 5:], mask[1, :] = False, False
    noise = torch.where(mask[..., None], x.detach(), torch.full_like(x, float("nan")))
    merged, size, _ = net(x, mask)
    again, _, _ = net(noise, mask)
    torch.testing.assert_close(again, merged)
    assert size.sum(1).tolist() == [5, 0]
    assert not merged[1].any()
    merged.square().sum().backward()
    assert x.grad[0, :5].abs().sum() > 0
    assert not x.grad[~mask].any()
    assert net.score.weight.grad.abs().sum() > 0


def test_gradient_of_the_merge(generator):
    net = DPCKNNMerging(3, 2).double()
    x = blobs(generator, 1, 4, 2, 3)[0].requires_grad_()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    # float32 inside; a coarse step and tolerance are what it allows
    assert torch.autograd.gradcheck(lambda x: net(x)[0], (x,), eps=1e-3, atol=1e-3, rtol=1e-3)


def plain_redundancy(x, order):
    """[N, C] float64: the highest cosine with a token earlier in `order`."""
    cosine = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(x, dim=1).T
    out = torch.full((len(x),), -torch.inf, dtype=x.dtype)
    for place, i in enumerate(order):
        if place:
            out[i] = cosine[i, order[:place]].max()
    return out


@pytest.mark.parametrize("ranked", [False, True])
def test_redundancy_is_the_table(ranked, generator):
    x = torch.randn(2, 25, 4, generator=generator, dtype=torch.float64)
    importance = torch.rand(2, 25, generator=generator, dtype=torch.float64) if ranked else None
    index, redundancy = prune_redundant_tokens(x, 10, importance=importance)
    for b in range(2):
        order = importance[b].argsort(descending=True).tolist() if ranked else list(range(25))
        expected = plain_redundancy(x[b], order)
        torch.testing.assert_close(redundancy[b], expected)
        assert index[b].tolist() == sorted(expected.argsort()[:10].tolist())


def test_of_copies_one_stays(generator):
    """Eight frames of a still clip: the first one is kept."""
    frame = torch.randn(1, 12, 16, generator=generator)
    clip = frame.repeat(1, 8, 1) + 1e-4 * torch.randn(1, 96, 16, generator=generator)
    assert prune_redundant_tokens(clip, 12)[0].tolist() == [list(range(12))]
    late = torch.arange(96.0)[None]
    assert prune_redundant_tokens(clip, 12, importance=late)[0].tolist() == [list(range(84, 96))]


def test_redundancy_with_the_mean_protection_and_padding(generator):
    x = torch.randn(1, 9, 4, generator=generator, dtype=torch.float64)
    index, redundancy = prune_redundant_tokens(x, 4, against="mean", protect=1)
    cosine = torch.cosine_similarity(x[0], x[0].mean(0, keepdim=True), dim=1)
    torch.testing.assert_close(redundancy[0, 1:], cosine[1:])
    assert redundancy[0, 0] == -torch.inf
    assert index[0].tolist() == sorted([0, *(1 + cosine[1:].argsort()[:3]).tolist()])
    mask = torch.tensor([[True, False, True, True, False, False, False, False, False]])
    for against in ("before", "mean"):
        index, redundancy = prune_redundant_tokens(x, 4, against=against, mask=mask)
        assert {0, 2, 3} <= set(index[0].tolist())
        assert (redundancy[~mask] == torch.inf).all()
    zeros = prune_redundant_tokens(torch.zeros(1, 5, 3), 2)
    assert zeros[0].tolist() == [[0, 1]]
    assert zeros[1].tolist() == [[-torch.inf, 0, 0, 0, 0]]
    assert prune_redundant_tokens(torch.zeros(2, 0, 3), 0)[0].shape == (2, 0)


def test_compiles_in_one_piece(generator):
    x = torch.randn(2, 20, 6, generator=generator)
    torch.manual_seed(0)
    net = DPCKNNMerging(6, 4)

    def both(x):
        return *net(x)[:2], prune_redundant_tokens(x, 5)[0]

    for a, b in zip(torch.compile(both, fullgraph=True, backend="aot_eager")(x), both(x)):
        torch.testing.assert_close(a, b)


def test_bad_input_is_named():
    x = torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match="`clusters` between"):
        dpc_knn_cluster(x, 6)
    with pytest.raises(ValueError, match="`clusters` between"):
        dpc_knn_cluster(x, 0)
    with pytest.raises(ValueError, match="`k` between"):
        dpc_knn_cluster(x, 2, k=33)
    with pytest.raises(ValueError, match=r"`mask` \[B, N\] bool"):
        dpc_knn_cluster(x, 2, mask=torch.ones(2, 5))
    bad = x.clone()
    bad[1, 3, 0] = float("nan")
    for function in (dpc_knn_cluster, prune_redundant_tokens):
        with pytest.raises(ValueError, match=r"infinity at \[batch, token\] \[\[1, 3\]\]"):
            function(bad, 2)
    with pytest.raises(ValueError, match="`against`"):
        prune_redundant_tokens(x, 2, against="all")
    with pytest.raises(ValueError, match="`protect` <= `keep`"):
        prune_redundant_tokens(x, 2, protect=3)
    with pytest.raises(ValueError, match="`importance`"):
        prune_redundant_tokens(x, 2, importance=torch.zeros(5))
    with pytest.raises(ValueError, match="share in"):
        DPCKNNMerging(3, 1.5)
    with pytest.raises(ValueError, match="'uniform' or 'learned'"):
        DPCKNNMerging(3, 2, weight="max")
