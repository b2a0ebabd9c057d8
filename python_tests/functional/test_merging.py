"""Token merging: plans against a search by plain loops, properties of merge and unmerge, ties, bad input."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from vidkernels.functional.tokens.merging import MergePlan, bipartite_soft_matching, merge_tokens, unmerge_tokens

PAIRINGS = ("alternate", "spatial", "temporal", "joint", "cell")


def sides(pairing, protect, length, grid):
    """Sources with the destinations that each may join, and all destinations: token numbers."""
    free = range(protect, length)
    if pairing == "alternate":
        odd = [n for n in free if n % 2 == 1]
        return {n: odd for n in free if n % 2 == 0}, odd
    cells = {c: protect + i for i, c in enumerate(itertools.product(*map(range, grid)))}
    if pairing == "cell":
        whole = lambda t, h, w: h < grid[1] // 2 * 2 and w < grid[2] // 2 * 2  # noqa: E731
        chosen = [n for c, n in cells.items() if whole(*c) and c[1] % 2 == 0 and c[2] % 2 == 0]
        return {n: chosen for n in free if n not in chosen}, chosen
    parity = {
        "spatial": lambda t, h, w: (h + w) % 2,
        "temporal": lambda t, h, w: t % 2,
        "joint": lambda t, h, w: (t + h + w) % 2,
    }[pairing]
    steps = []
    if pairing != "temporal":
        steps += [(0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)]
    if pairing != "spatial":
        steps += [(1, 0, 0)]
    around = lambda c: [tuple(a + b for a, b in zip(c, step)) for step in steps]  # noqa: E731
    sources = {n: sorted(cells[d] for d in around(c) if d in cells) for c, n in cells.items() if parity(*c) == 0}
    return sources, [n for c, n in cells.items() if parity(*c) == 1]


def by_loops(metric, r, protect, pairing, grid, threshold=None):
    """The map of one sample, as the docstring tells it."""
    length = len(metric)
    cosine = torch.nn.functional.normalize(metric.double(), dim=1)
    cosine = (cosine @ cosine.t()).tolist()
    sources, destinations = sides(pairing, protect, length, grid)
    best = {}
    for n, choices in sources.items():
        if choices:
            target = max(choices, key=lambda d: (cosine[n][d], -d))
            best[n] = (cosine[n][target], target)
    r = min(r, (length - protect) // 2 if pairing == "alternate" else len(best))
    if r == 0:
        return list(range(length)), length
    joining = sorted(best, key=lambda n: (-best[n][0], n))[:r]
    if threshold is not None:
        joining = [n for n in joining if best[n][0] >= threshold]
    order = [*range(protect), *(n for n in sources if n not in joining), *destinations]
    place = {n: i for i, n in enumerate(order)}
    return [place[best[n][1]] if n in joining else place[n] for n in range(length)], length - r


grids = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))


@settings(max_examples=120, deadline=None)
@given(
    pairing=st.sampled_from(PAIRINGS),
    grid=grids,
    protect=st.integers(0, 3),
    r=st.integers(0, 80),
    threshold=st.none() | st.floats(-1, 1),
    seed=st.integers(0, 2**32),
)
def test_plan_equals_the_plain_search(pairing, grid, protect, r, threshold, seed):
    g = torch.Generator().manual_seed(seed)
    metric = torch.randn(2, protect + math.prod(grid), 6, generator=g)
    plan = bipartite_soft_matching(metric, r, protect=protect, pairing=pairing, grid=grid, threshold=threshold)
    assert plan.source.dtype is torch.int32
    for b in range(2):
        source, count = by_loops(metric[b], r, protect, pairing, grid, threshold)
        assert plan.source[b].tolist() == source
        assert plan.count == (count if threshold is None else metric.shape[1])


@settings(max_examples=60, deadline=None)
@given(
    pairing=st.sampled_from(PAIRINGS),
    grid=grids,
    protect=st.integers(0, 2),
    r=st.integers(0, 80),
    threshold=st.none() | st.floats(-1, 1),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    scale=st.sampled_from([1e-6, 1.0, 3e4]),
)
def test_merging_keeps_sums_and_unmerging_is_constant_on_groups(
    pairing, grid, protect, r, threshold, seed, dtype, scale
):
    g = torch.Generator().manual_seed(seed)
    length = protect + math.prod(grid)
    x = (torch.rand(2, length, 5, generator=g) * 2 - 1).mul(scale).to(dtype)
    size = torch.randint(1, 9, (2, length), generator=g).float()
    plan = bipartite_soft_matching(x, r, protect=protect, pairing=pairing, grid=grid, threshold=threshold)
    merged, total = merge_tokens(x, plan, size)
    assert torch.isfinite(merged).all()
    assert torch.equal(total.sum(1), size.sum(1))
    assert torch.equal((total > 0).sum(1).int(), plan.used())  # empty places come last
    if threshold is None:
        assert (total > 0).all()
    rounding = torch.finfo(dtype).eps + length * torch.finfo(torch.float32).eps
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # below, numbers of float16 lie evenly
    left, right = (merged.double() * total[..., None]).sum(1), (x.double() * size[..., None]).sum(1)
    torch.testing.assert_close(left, right, rtol=0, atol=float(size.sum()) * (scale * rounding + least))
    assert torch.equal(merged[:, :protect], x[:, :protect])
    back = unmerge_tokens(merged, plan)
    again, _ = merge_tokens(back, plan, size)
    torch.testing.assert_close(again, merged, rtol=rounding, atol=least)
    alone = plan.sizes().gather(1, plan.source.long()) == 1
    assert torch.equal(back[alone], x[alone])


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_a_sample_does_not_depend_on_its_batch(pairing, threshold, generator):
    metric = torch.randn(5, 1 + 2 * 4 * 6, 8, generator=generator)
    options = {"protect": 1, "pairing": pairing, "grid": (2, 4, 6), "threshold": threshold}
    plan = bipartite_soft_matching(metric, 9, **options)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.equal(bipartite_soft_matching(metric[order], 9, **options).source, plan.source[order])
    assert torch.equal(bipartite_soft_matching(metric[2:3], 9, **options).source, plan.source[2:3])


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("fill", [0.0, 3.0])
def test_equal_and_zero_tokens_merge_from_the_front(pairing, fill):
    """Ties: the lowest source and, for each, the lowest destination. Zeros are no reason for NaN."""
    metric = torch.full((1, 2 + 24), fill).unsqueeze(2).expand(1, 26, 4)
    plan = bipartite_soft_matching(metric, 3, protect=2, pairing=pairing, grid=(2, 3, 4))
    sources, _ = sides(pairing, 2, 26, (2, 3, 4))
    first = [n for n in sources if sources[n]][:3]
    for n in first:
        assert plan.source[0, n] == plan.source[0, sources[n][0]]
    assert plan.sizes().sum() == 26
    assert plan.count == 23
    merged, size = merge_tokens(metric, plan)
    assert torch.equal(merged, torch.full_like(merged, fill))
    assert size.max() <= 4


def test_half_precision_of_any_size_matches_like_float32(generator):
    metric = torch.randn(2, 60, 16, generator=generator)
    for scale in (6e4 / float(metric.abs().max()), 1.0, 2e-3):
        half = (metric * scale).half()
        expected = bipartite_soft_matching(half.double(), 20)
        assert torch.equal(bipartite_soft_matching(half, 20).source, expected.source)
    huge = bipartite_soft_matching(metric * 1e37, 20)
    assert torch.equal(huge.source, bipartite_soft_matching(metric.double(), 20).source)


def test_r_is_clamped_and_zero_changes_nothing(generator):
    metric = torch.randn(1, 9, 4, generator=generator)
    assert bipartite_soft_matching(metric, 0).source.tolist() == [list(range(9))]
    assert bipartite_soft_matching(metric, 100).count == 5
    assert bipartite_soft_matching(metric, 100, protect=9).count == 9
    assert bipartite_soft_matching(metric, 4, protect=8).count == 9
    assert bipartite_soft_matching(metric[:, :0], 3).source.shape == (1, 0)
    assert bipartite_soft_matching(metric[:0], 3).source.shape == (0, 9)
    assert bipartite_soft_matching(metric, 9, pairing="temporal", grid=(1, 3, 3)).count == 9
    assert bipartite_soft_matching(metric, 9, pairing="spatial", grid=(9, 1, 1)).count == 9
    assert bipartite_soft_matching(metric, 9, pairing="joint", grid=(9, 1, 1)).count == 5


def usual_tome(metric, x, size, r, class_token, distill_token):
    """Token merging as its users write it: gather, scatter_reduce, concatenation, in float64."""
    protected = int(class_token) + int(distill_token)
    r = min(r, (metric.shape[1] - protected) // 2)
    metric = metric / metric.norm(dim=-1, keepdim=True)
    scores = metric[:, ::2] @ metric[:, 1::2].mT
    if class_token:
        scores[:, 0, :] = -math.inf
    if distill_token:
        scores[:, :, 0] = -math.inf
    value, index = scores.max(-1)
    edge = value.argsort(-1, descending=True)[..., None]
    stay, join = edge[:, r:].sort(1)[0], edge[:, :r]
    target = index[..., None].gather(1, join)

    def merge(x):
        source, destination = x[:, ::2], x[:, 1::2]
        c = source.shape[2]
        kept = source.gather(1, stay.expand(-1, -1, c))
        joined = source.gather(1, join.expand(-1, -1, c))
        destination = destination.scatter_reduce(1, target.expand(-1, -1, c), joined, reduce="sum")
        if distill_token:
            return torch.cat([kept[:, :1], destination[:, :1], kept[:, 1:], destination[:, 1:]], 1)
        return torch.cat([kept, destination], 1)

    total = merge(size[..., None])
    return merge(x * size[..., None]) / total, total[..., 0]


@pytest.mark.parametrize(("class_token", "distill_token"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("length", [197, 198])
def test_layers_of_merging_equal_the_usual_code(class_token, distill_token, length, generator):
    x = torch.randn(2, length, 24, generator=generator, dtype=torch.float64)
    usual, usual_size = x, torch.ones(2, length, dtype=torch.float64)
    size, whole = None, None
    ours = x
    for r in (16, 16, 40, 100):
        plan = bipartite_soft_matching(ours, r, protect=int(class_token) + int(distill_token))
        ours, size = merge_tokens(ours, plan, size)
        usual, usual_size = usual_tome(usual, usual, usual_size, r, class_token, distill_token)
        torch.testing.assert_close(ours, usual, rtol=1e-10, atol=1e-12)
        assert torch.equal(size, usual_size)
        whole = plan if whole is None else whole.then(plan)
    assert torch.equal(whole.sizes().double(), size)
    torch.testing.assert_close(merge_tokens(x, whole)[0], ours, rtol=1e-10, atol=1e-12)
    assert torch.equal(unmerge_tokens(ours, whole), ours.gather(1, whole.source.long()[..., None].expand(-1, -1, 24)))


def test_threshold_plans_keep_their_shape_and_trim(generator):
    metric = torch.randn(3, 40, 4, generator=generator)
    open_plan = bipartite_soft_matching(metric, 12)
    assert torch.equal(bipartite_soft_matching(metric, 12, threshold=-2.0).source, open_plan.source)
    none = bipartite_soft_matching(metric, 12, threshold=1.5)
    assert none.used().tolist() == [40] * 3
    some = bipartite_soft_matching(metric, 12, threshold=0.9)
    used = some.used()
    assert some.count == 40
    assert 28 <= int(used.min()) < int(used.max()) <= 40
    merged, size = merge_tokens(metric, some)
    for b in range(3):
        assert (size[b, used[b] :] == 0).all()
        assert (merged[b, used[b] :] == 0).all()
    short = some.trim()
    assert short.count == int(used.max())
    assert torch.equal(unmerge_tokens(merged[:, : short.count], short), unmerge_tokens(merged, some))


def test_cells_draw_their_destinations():
    """Equal tokens all join the first destination, so that the other destinations are those left alone."""
    t, h, w, sy, sx = 2, 5, 7, 2, 3
    metric = torch.ones(3, 1 + t * h * w, 6)
    places = set()
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        plan = bipartite_soft_matching(
            metric, 1000, protect=1, pairing="cell", grid=(t, h, w), cell=(sy, sx), generator=g
        )
        assert plan.count == 1 + 2 * 2 * 2
        assert torch.equal(plan.source, plan.source[:1].expand(3, -1))
        alone = (plan.sizes().gather(1, plan.source.long())[0] == 1).nonzero()[1:, 0] - 1
        cells = {(n // (h * w), n // w % h // sy, n % w // sx) for n in alone.tolist()}
        assert len(cells) == len(alone) == 7
        assert cells < set(itertools.product(range(t), range(h // sy), range(w // sx)))
        places.add(tuple(alone.tolist()))
    assert len(places) == 6


def test_gradients_flow_through_merge_and_unmerge(generator):
    x = torch.randn(2, 21, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    plan = bipartite_soft_matching(x, 7, protect=1)
    size = torch.rand(2, 21, generator=generator, dtype=torch.float64) + 0.5
    assert torch.autograd.gradcheck(lambda x: unmerge_tokens(merge_tokens(x, plan, size)[0].sin(), plan), x)
    assert torch.autograd.gradgradcheck(lambda x: merge_tokens(x, plan, size)[0].sin(), x)
    assert not merge_tokens(x, plan, size)[1].requires_grad


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_compiled_code_gives_the_same_plan_and_result(pairing, generator):
    def step(x, size):
        plan = bipartite_soft_matching(x, 6, protect=1, pairing=pairing, grid=(2, 3, 4), threshold=None)
        merged, size = merge_tokens(x, plan, size)
        return merged, size, plan

    x, size = torch.randn(2, 25, 8, generator=generator), torch.ones(2, 25)
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="inductor" if pairing == "alternate" else "aot_eager")
    merged, total, plan = compiled(x, size)
    expected, expected_total, expected_plan = step(x, size)
    assert torch.equal(plan.source, expected_plan.source)
    assert plan.count == expected_plan.count
    torch.testing.assert_close(merged, expected)
    assert torch.equal(total, expected_total)
    back = torch.compile(unmerge_tokens, fullgraph=True, backend="aot_eager")(merged, plan)
    assert torch.equal(back, unmerge_tokens(merged, plan))


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_autocast_changes_no_choice(pairing, generator):
    metric = torch.randn(2, 48, 16, generator=generator)
    plan = bipartite_soft_matching(metric, 12, pairing=pairing, grid=(2, 4, 6))
    with torch.autocast("cpu", torch.bfloat16):
        same = bipartite_soft_matching(metric, 12, pairing=pairing, grid=(2, 4, 6))
    assert torch.equal(same.source, plan.source)


def test_a_plan_is_a_pytree(generator):
    plan = bipartite_soft_matching(torch.randn(1, 8, 4, generator=generator), 2)
    leaves, spec = pytree.tree_flatten(plan)
    again = pytree.tree_unflatten(leaves, spec)
    assert again.count == 6
    assert torch.equal(again.source, plan.source)
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": -1}, "expected `r` to be at least 0"),
        ({"protect": 9}, "expected `protect` between 0 and the number of tokens"),
        ({"pairing": "diagonal"}, "expected `pairing` to be one of alternate, spatial"),
        ({"pairing": "joint"}, r"expected `grid` \(T, H, W\) of the 8 tokens"),
        ({"pairing": "joint", "grid": (2, 2, 3)}, r"expected `grid` \(T, H, W\) of the 8 tokens"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        bipartite_soft_matching(torch.zeros(1, 8, 4), **{"r": 2, **options})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_endless_metrics_are_named(bad):
    metric = torch.ones(3, 8, 4)
    metric[1, 5, 2] = metric[2, 0, 0] = bad
    with pytest.raises(ValueError, match=r"NaN or infinity in tokens \(batch, token\) \(1, 5\), \(2, 0\)\."):
        bipartite_soft_matching(metric, 2)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_compiled_code_takes_endless_numbers_as_zeros(pairing, generator):
    metric = torch.randn(1, 24, 4, generator=generator)
    metric[0, 7], metric[0, 8, 1] = float("nan"), float("inf")
    clean = torch.where(metric.isfinite(), metric, 0)
    torch._dynamo.reset()
    match = lambda m: bipartite_soft_matching(m, 12, pairing=pairing, grid=(2, 3, 4))  # noqa: E731
    plan = torch.compile(match, fullgraph=True, backend="aot_eager")(metric)
    assert torch.equal(plan.source, match(clean).source)


def test_plans_that_do_not_fit_are_refused():
    plan = MergePlan(torch.tensor([[0, 1, 1]], dtype=torch.int32), 2)
    with pytest.raises(ValueError, match="expected a plan for the tokens of `x`"):
        merge_tokens(torch.zeros(1, 4, 2), plan)
    with pytest.raises(ValueError, match=r"expected `size` of shape \[B, N\]"):
        merge_tokens(torch.zeros(1, 3, 2), plan, torch.ones(1, 3, 1))
    with pytest.raises(ValueError, match="expected `x` to hold the 2 tokens that the plan leaves"):
        unmerge_tokens(torch.zeros(1, 3, 2), plan)
    with pytest.raises(ValueError, match="expected `following` to be a plan of 2 tokens"):
        plan.then(plan)
