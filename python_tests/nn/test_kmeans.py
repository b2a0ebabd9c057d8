"""Modules that keep centres."""

import pytest
import torch

from vidkernels.functional.clustering.kmeans import kmeans
from vidkernels.nn.clustering.kmeans import HierarchicalKMeans, KMeans


def test_fit_is_the_function(generator):
    x = torch.randn(300, 5, generator=generator)
    module = KMeans(5, 7).fit(x, iterations=4, generator=torch.Generator().manual_seed(1))
    want = kmeans(x, 7, iterations=4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(module.centres, want.centres)
    assert torch.equal(module.counts, want.counts.float())
    assert torch.equal(module.predict(x), want.index)
    assert torch.equal(module(x), want.index)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_transform_measures_from_every_centre(metric, generator):
    x = torch.randn(50, 5, generator=generator)
    module = KMeans(5, 7, metric=metric).fit(x, iterations=2, generator=generator)
    distance = module.transform(x)
    want = torch.cdist(x.double(), module.centres.double())
    if metric == "cosine":
        want = 1 - torch.nn.functional.cosine_similarity(x.double()[:, None], module.centres.double()[None], dim=2)
    torch.testing.assert_close(distance.double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(module.predict(x), distance.argmin(1))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_following_batches_finds_the_heaps(metric, generator):
    heaps = torch.nn.functional.normalize(torch.randn(8, 6, generator=generator), dim=1) * 30
    module = KMeans(6, 8, metric=metric)
    for _ in range(20):
        own = torch.randint(8, (100,), generator=generator)
        module.partial_fit(heaps[own] + torch.randn(100, 6, generator=generator), generator)
    assert module.counts.sum() == 2000
    target = torch.nn.functional.normalize(heaps, dim=1) if metric == "cosine" else heaps
    away = torch.cdist(target, module.centres).min(1).values
    assert away.max() < (0.02 if metric == "cosine" else 0.6)


def test_a_centre_that_never_got_a_point_moves():
    module = KMeans(1, 2, init=torch.tensor([[0.0], [1e6]]))
    module.partial_fit(torch.tensor([[1.0], [2.0], [9.0]]))
    assert module.centres.flatten().tolist() == [1.5, 9.0]
    module.partial_fit(torch.tensor([[1.0], [3.0]]))  # centre 1 has a past: it stays
    assert module.centres.flatten().tolist() == [1.75, 9.0]
    assert module.counts.tolist() == [4.0, 1.0]


def test_a_fit_can_use_batches(generator):
    x = torch.randn(2000, 4, generator=generator)
    whole = KMeans(4, 10).fit(x, iterations=20, generator=generator)
    parts = KMeans(4, 10).fit(x, iterations=60, batch_size=200, generator=generator)
    cost = [m.transform(x).min(1).values.square().sum() for m in (whole, parts)]
    assert cost[1] < 1.1 * cost[0]
    with pytest.raises(ValueError, match="mini-batches"):
        parts.fit(x, iterations=1, batch_size=200, tolerance=0.1)


def test_state_dict_carries_everything(generator):
    x = torch.randn(100, 3, generator=generator)
    first, second = KMeans(3, 4), KMeans(3, 4)
    first.partial_fit(x, generator)
    second.load_state_dict(first.state_dict())
    first.partial_fit(x + 1)
    second.partial_fit(x + 1)
    assert torch.equal(first.centres, second.centres)
    assert torch.equal(first.predict(x), second.predict(x))


def test_tree(generator):
    x = torch.randn(400, 3, generator=generator)
    tree = HierarchicalKMeans(3, (4, 3, 2)).fit(x, iterations=5, generator=generator)
    leaf = tree.predict(x)
    assert leaf.max() < 24
    assert leaf.unique().numel() == 24
    assert torch.equal(leaf // 6, torch.cdist(x, tree.centres[0]).argmin(1))
    other = HierarchicalKMeans(3, (4, 3, 2))
    other.load_state_dict(tree.state_dict())
    assert torch.equal(other(x), leaf)


def test_bad_input(generator):
    x = torch.randn(20, 3, generator=generator)
    for method in ("predict", "transform"):
        with pytest.raises(RuntimeError, match="no centres yet"):
            getattr(KMeans(3, 4), method)(x)
    with pytest.raises(ValueError, match="`k`"):
        KMeans(3, 21).partial_fit(x)
    module = KMeans(3, 4).fit(x, iterations=1)
    x[7] = float("nan")
    for method in ("predict", "transform", "partial_fit"):
        with pytest.raises(ValueError, match=r"not finite: 7\."):
            getattr(module, method)(x)
