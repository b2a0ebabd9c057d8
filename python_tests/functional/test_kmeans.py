"""k-means against scikit-learn, closed forms, and itself on other thread counts."""

import itertools

import numpy as np
import pytest
import torch

from vidkernels.functional.clustering._collective import ordered_sum
from vidkernels.functional.clustering.hierarchical import hierarchical_assign, hierarchical_kmeans
from vidkernels.functional.clustering.kmeans import kmeans
from vidkernels.functional.clustering.minibatch import minibatch_kmeans
from vidkernels.functional.clustering.seeding import kmeans_plus_plus

sklearn = pytest.importorskip("sklearn.cluster")


def blobs(length, dim, k, generator, spread=4.0):
    centres = torch.randn(k, dim, generator=generator) * spread
    own = torch.randint(k, (length,), generator=generator)
    return centres[own] + torch.randn(length, dim, generator=generator), centres, own


def inertia(x, centres):
    return torch.cdist(x.double(), centres.double()).square().min(1).values.sum()


# ---- Lloyd


@pytest.mark.parametrize("data", ["gaussian", "blobs", "offset"])
def test_same_start_gives_scikit_learns_centres(data, generator):
    x = blobs(3000, 17, 40, generator)[0] if data == "blobs" else torch.randn(3000, 17, generator=generator)
    x = x.double() + (5.0 if data == "offset" else 0.0)
    ours = kmeans(x, 40, iterations=7, init=x[:40])
    theirs = sklearn.KMeans(40, init=x[:40].numpy(), n_init=1, max_iter=7, tol=0.0, algorithm="lloyd").fit(x.numpy())
    torch.testing.assert_close(ours.centres, torch.from_numpy(theirs.cluster_centers_), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.inertia.item(), theirs.inertia_, rtol=1e-10, atol=0)
    assert np.array_equal(ours.index.numpy(), theirs.labels_)
    # float32 follows the same path on these data, to its own rounding
    single = kmeans(x.float(), 40, iterations=7, init=x[:40].float())
    torch.testing.assert_close(single.centres.double(), ours.centres, rtol=0, atol=2e-5)


def test_the_result_describes_itself(generator):
    x = torch.randn(500, 6, generator=generator)
    result = kmeans(x, 9, iterations=3, generator=generator)
    distance = torch.cdist(x.double(), result.centres.double())
    assert torch.equal(result.index, distance.argmin(1))
    torch.testing.assert_close(result.inertia, distance.min(1).values.square().sum(), rtol=1e-6, atol=0)
    assert torch.equal(result.counts, torch.bincount(result.index, minlength=9))


def test_more_iterations_never_cost_more(generator):
    x = torch.randn(800, 5, generator=generator)
    costs = [kmeans(x, 12, iterations=i, init=x[:12]).inertia for i in range(8)]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(costs))


def test_one_cluster_is_the_mean(generator):
    x = torch.randn(101, 3, generator=generator, dtype=torch.float64)
    result = kmeans(x, 1, iterations=1, generator=generator)
    torch.testing.assert_close(result.centres[0], x.mean(0))
    torch.testing.assert_close(result.inertia, (x - x.mean(0)).square().sum())


def test_as_many_clusters_as_points(generator):
    x = torch.randn(7, 3, generator=generator)
    result = kmeans(x, 7, iterations=2, generator=generator)
    assert result.inertia == 0
    assert result.counts.tolist() == [1] * 7


def test_empty_clusters_take_the_worst_served_points_in_turn():
    x = torch.tensor([[0.0], [1.0], [10.0], [30.0], [31.0]])
    # All points go to centre 0; centres 1 and 2 are empty. Worst served: 31, then 30. Centre 0 keeps 0, 1, 10.
    result = kmeans(x, 3, iterations=1, init=torch.tensor([[5.0], [-900.0], [-901.0]]))
    assert result.centres.flatten().tolist() == pytest.approx([11 / 3, 31.0, 30.0])


def test_the_last_point_of_a_cluster_is_not_taken():
    x = torch.tensor([[0.0], [0.5], [50.0]])
    # 50 is alone in cluster 1 and worst served; the empty cluster 2 must take the next, 0.5 (0 is nearer to centre 0).
    result = kmeans(x, 3, iterations=1, init=torch.tensor([[0.0], [90.0], [900.0]]))
    assert result.centres.flatten().tolist() == [0.0, 50.0, 0.5]


def test_copies_of_one_point_leave_the_other_centres_alone():
    x = torch.ones(6, 2)
    result = kmeans(x, 3, iterations=5, init=torch.tensor([[1.0, 1.0], [4.0, 4.0], [7.0, 7.0]]))
    assert result.centres.tolist() == [[1.0, 1.0], [4.0, 4.0], [7.0, 7.0]]
    assert result.counts.tolist() == [6, 0, 0]
    assert kmeans(x, 3, iterations=5).inertia == 0  # seeding finds repeats only


def test_cosine_is_kmeans_on_the_sphere(generator):
    x = torch.randn(600, 4, generator=generator) * torch.rand(600, 1, generator=generator) * 10
    x[5] = 0
    result = kmeans(x, 6, iterations=4, init=x[10:16], metric="cosine")
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    centres = torch.nn.functional.normalize(x[10:16].double(), dim=1)
    for _ in range(4):
        index = (unit @ centres.t()).argmax(1)
        centres = torch.stack([torch.nn.functional.normalize(unit[index == j].sum(0), dim=0) for j in range(6)])
    torch.testing.assert_close(result.centres.double(), centres, rtol=0, atol=1e-5)
    cosine = unit @ centres.t()
    assert torch.equal(result.index, cosine.argmax(1))
    torch.testing.assert_close(result.inertia, (1 - cosine.max(1).values).sum(), rtol=1e-4, atol=0)


def test_tolerance_stops_where_scikit_learn_stops(generator):
    x = torch.randn(2000, 8, generator=generator, dtype=torch.float64)
    theirs = sklearn.KMeans(10, init=x[:10].numpy(), n_init=1, max_iter=300, tol=3e-2, algorithm="lloyd")
    steps = theirs.fit(x.numpy()).n_iter_
    assert 3 < steps < 300
    ours = kmeans(x, 10, iterations=300, init=x[:10], tolerance=3e-2)
    fixed = kmeans(x, 10, iterations=steps, init=x[:10])
    assert torch.equal(ours.centres, fixed.centres)
    assert not torch.equal(ours.centres, kmeans(x, 10, iterations=300, init=x[:10]).centres)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_clustered_in_float32(dtype, generator):
    x = torch.randn(400, 5, generator=generator).to(dtype)
    half, single = (kmeans(v, 8, iterations=3, init=x[:8].float()) for v in (x, x.float()))
    assert half.centres.dtype is torch.float32
    assert all(torch.equal(a, b) for a, b in zip(half, single))


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_threads_do_not_matter(init, one_and_two_threads, generator):
    x = torch.randn(9000, 24, generator=generator)
    one, two = one_and_two_threads(
        lambda: kmeans(x, 70, iterations=3, init=init, tolerance=1e-9, generator=torch.Generator().manual_seed(1))
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two))


def test_ordered_sum(one_and_two_threads, generator):
    for length in (0, 1, 1023, 1024, 70_001, 1_100_000):
        values = torch.randn(length, generator=generator)
        one, two = one_and_two_threads(lambda v=values: ordered_sum(v))
        assert torch.equal(one, two)
        torch.testing.assert_close(one, values.double().sum(), rtol=1e-10, atol=1e-9)


# ---- seeding


def test_seeding_is_as_good_as_scikit_learns(generator):
    """Means of several runs, with the sample smaller than the points."""
    x = blobs(12_000, 8, 100, generator, spread=6.0)[0]
    ours = [inertia(x, x[kmeans_plus_plus(x, 100, generator=torch.Generator().manual_seed(s))]) for s in range(4)]
    theirs = [
        inertia(x, torch.from_numpy(sklearn.kmeans_plusplus(x.numpy(), 100, random_state=s)[0])) for s in range(4)
    ]
    assert sum(ours) <= 1.05 * sum(theirs)
    random = [inertia(x, x[torch.randperm(len(x), generator=generator)[:100]]) for _ in range(4)]
    assert sum(ours) < 0.7 * sum(random)  # such data tell a good start from a bad one


def test_plain_seeding_draws_by_squared_distance():
    """With one candidate the second centre given the first has probabilities in closed form; so has the third."""
    x = torch.tensor([[0.0], [1.0], [3.0]])
    distance = torch.cdist(x, x).square().double()
    expected = torch.zeros(3, 3, 3, dtype=torch.float64)
    for a in range(3):
        second = distance[a] / distance[a].sum()
        for b in (b for b in range(3) if b != a):
            expected[a, b, 3 - a - b] = second[b] / 3
    runs = 4000
    counts = torch.zeros_like(expected)
    for s in range(runs):
        a, b, c = kmeans_plus_plus(x, 3, candidates=1, generator=torch.Generator().manual_seed(s)).tolist()
        counts[a, b, c] += 1
    error = (expected * (1 - expected) / runs).sqrt()
    assert ((counts / runs - expected).abs() <= 4 * error).all()


def test_batches_of_draws_follow_the_same_law():
    """Acceptance by new / old distance: the fourth centre, drawn in one batch with the third, against enumeration."""
    x = torch.tensor([[0.0], [1.0], [3.0], [3.5], [9.0]])
    distance = torch.cdist(x, x).square().double()

    def extend(law):
        longer = {}
        for chosen, p in law.items():
            closest = distance[list(chosen)].amin(0)
            for j, d in enumerate(closest.tolist()):
                if d > 0:
                    longer[(*chosen, j)] = longer.get((*chosen, j), 0.0) + p * d / closest.sum().item()
        return longer

    law = extend(extend(extend({(j,): 0.2 for j in range(5)})))
    runs, counts = 4000, dict.fromkeys(law, 0)
    for s in range(runs):
        counts[tuple(kmeans_plus_plus(x, 4, candidates=1, generator=torch.Generator().manual_seed(s)).tolist())] += 1
    for chosen, p in law.items():
        assert abs(counts[chosen] / runs - p) <= 4.5 * (p * (1 - p) / runs) ** 0.5, chosen


def test_greedy_seeding_takes_the_best_candidate():
    """Ten heaps of 20, far apart: with enough candidates the greedy choice never takes a heap twice."""
    heaps = torch.arange(10.0)[:, None] * 1000
    x = (heaps[:, None] + torch.rand(10, 20, 1, generator=torch.Generator().manual_seed(0))).reshape(-1, 1)
    for s in range(20):
        chosen = kmeans_plus_plus(x, 10, candidates=8, generator=torch.Generator().manual_seed(s))
        assert (chosen // 20).sort().values.tolist() == list(range(10))


def test_seeding_far_from_the_origin_and_with_an_outlier(generator):
    x = torch.randn(3000, 4, generator=generator) + 300.0
    x[7] = 1e6  # the integer grid of the score then sees only two places; the draws still work
    chosen = kmeans_plus_plus(x, 50, generator=generator)
    assert len(chosen.unique()) == 50
    assert 7 in chosen


def test_seeding_with_few_different_points(generator):
    x = torch.tensor([[0.0], [5.0]]).repeat(10, 1)
    chosen = kmeans_plus_plus(x, 6, generator=generator)
    assert len(chosen.unique()) == 6
    assert x[chosen[:2]].flatten().sort().values.tolist() == [0.0, 5.0]


# ---- mini-batches


def test_one_big_batch_is_one_lloyd_step(generator):
    x = torch.randn(300, 4, generator=generator)
    batch = minibatch_kmeans(x, 5, iterations=1, init=x[:5], batch_size=1000)
    torch.testing.assert_close(batch.centres, kmeans(x, 5, iterations=1, init=x[:5]).centres)


def test_centres_are_means_of_all_they_got():
    from vidkernels.functional.clustering.minibatch import minibatch_step

    centres, counts = torch.tensor([[0.0], [10.0]]), torch.zeros(2)
    for batch in ([1.0, 9.0], [2.0, 3.0], [11.0]):
        centres, counts, _ = minibatch_step(torch.tensor(batch)[:, None], centres, counts, "l2")
    assert centres.flatten().tolist() == [2.0, 10.0]  # (1 + 2 + 3) / 3, (9 + 11) / 2
    assert counts.tolist() == [3.0, 2.0]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_minibatch_is_about_as_good_as_scikit_learns(metric, generator):
    x = blobs(8000, 12, 30, generator)[0]
    x = torch.nn.functional.normalize(x, dim=1) if metric == "cosine" else x
    theirs = sklearn.MiniBatchKMeans(30, batch_size=500, max_iter=5, n_init=1, random_state=0).fit(x.numpy())
    ours = minibatch_kmeans(x, 30, iterations=80, batch_size=500, metric=metric, generator=generator)
    assert inertia(x, ours.centres) <= 1.1 * theirs.inertia_


# ---- trees


def test_a_tree_finds_blobs_of_blobs(generator):
    high = torch.tensor([-1000.0, 0.0, 1000.0])
    low = torch.tensor([-50.0, 50.0])
    place = (high[:, None] + low).flatten()
    x = (place.repeat_interleave(20) + torch.randn(120, generator=generator))[:, None]
    tree = hierarchical_kmeans(x, (3, 2), iterations=10, generator=generator)
    assert [tuple(c.shape) for c in tree.centres] == [(3, 1), (6, 1)]
    assert tree.counts.tolist() == [20] * 6
    assert len((tree.index // 2 * 1000 + torch.arange(120) // 40).unique()) == 3  # parents are the high places
    torch.testing.assert_close(tree.centres[1][tree.index], x.view(6, 20, 1).mean(1).repeat_interleave(20, 0))
    torch.testing.assert_close(tree.inertia, inertia(x, tree.centres[1]), rtol=1e-5, atol=0)
    assert torch.equal(hierarchical_assign(x, tree.centres), tree.index)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_nodes_with_few_points(metric, generator):
    x = torch.randn(40, 3, generator=generator)
    tree = hierarchical_kmeans(x, (4, 4, 4), iterations=5, metric=metric, generator=generator)
    assert tree.counts.sum() == 40
    assert tree.centres[2].isfinite().all()
    assert torch.equal(hierarchical_assign(x, tree.centres, metric=metric), tree.index)


# ---- what is refused


def test_bad_input(generator):
    x = torch.randn(10, 3, generator=generator)
    bad = x.clone()
    bad[3, 1], bad[8, 0] = float("nan"), float("inf")
    for function in (kmeans, minibatch_kmeans):
        with pytest.raises(ValueError, match=r"not finite: 3, 8\."):
            function(bad, 2, iterations=1)
        with pytest.raises(ValueError, match=r"`k` in \[1, N\], N = 10"):
            function(x, 11, iterations=1)
        with pytest.raises(ValueError, match="`k`"):
            function(x, 0, iterations=1)
        with pytest.raises(ValueError, match="k-means\\+\\+"):
            function(x, 2, iterations=1, init="kmeans")
        with pytest.raises(ValueError, match=r"shape \[k, D\]"):
            function(x, 2, iterations=1, init=x)
        with pytest.raises(ValueError, match="cosine"):
            function(x, 2, iterations=1, metric="ip")
        with pytest.raises(ValueError, match="iterations"):
            function(x, 2, iterations=-1)
        with pytest.raises(ValueError, match="floating-point"):
            function(x.long(), 2, iterations=1)
        with pytest.raises(ValueError, match=r"\[N, D\]"):
            function(x[0], 2, iterations=1)
    with pytest.raises(ValueError, match="finite centres"):
        kmeans(x, 2, iterations=1, init=bad[2:4])
    with pytest.raises(ValueError, match="batch_size"):
        minibatch_kmeans(x, 2, iterations=1, batch_size=0)
    with pytest.raises(ValueError, match="candidate"):
        kmeans_plus_plus(x, 2, candidates=0)
    with pytest.raises(ValueError, match="finite"):
        kmeans_plus_plus(bad, 2)
    with pytest.raises(ValueError, match="levels"):
        hierarchical_kmeans(x, (), iterations=1)
    with pytest.raises(ValueError, match="divide"):
        hierarchical_assign(x, [x[:2], x[:3]])


def test_large_finite_values_are_not_taken_for_infinite():
    x = torch.tensor([[3e38, 3e38], [0.0, 0.0]], dtype=torch.float32)
    with pytest.raises(ValueError, match=r"not finite: 2\."):
        kmeans(torch.cat([x, torch.full((1, 2), float("nan"))]), 1, iterations=1)
