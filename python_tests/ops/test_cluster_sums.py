"""cluster_sums: values by hand, so that the reference itself is pinned; order of addition; refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidkernels import _native
from vidkernels.ops.cluster_sums.op import cluster_sums

BACKENDS = ("reference", "cpu", "simt")


def need(backend, points, index, k):
    reason = cluster_sums.why_not(backend, points, index, k)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_by_hand(backend):
    points = torch.tensor([[1.0, 10], [2, 20], [4, 40], [8, 80], [16, 160]])
    index = torch.tensor([2, 0, 2, -1, 0])
    need(backend, points, index, 4)
    sums, counts = cluster_sums(points, index, 4, backend=backend)
    assert sums.tolist() == [[18, 180], [0, 0], [5, 50], [0, 0]]
    assert counts.tolist() == [2, 0, 2, 0]
    assert sums.dtype is counts.dtype is torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_by_hand(backend):
    points = torch.zeros(4, 2, requires_grad=True)
    index = torch.tensor([1, -1, 0, 1])
    need(backend, points, index, 2)
    sums, counts = cluster_sums(points, index, 2, backend=backend)
    assert not counts.requires_grad
    (grad,) = torch.autograd.grad(sums, points, torch.tensor([[1.0, 2], [3, 4]]), create_graph=True)
    assert grad.tolist() == [[3, 4], [0, 0], [1, 2], [3, 4]]


def test_double_backward_is_the_op_again():
    g = torch.Generator().manual_seed(0)
    points = torch.randn(9, 3, generator=g, dtype=torch.float64, requires_grad=True)
    index = torch.randint(-1, 4, (9,), generator=g)
    assert torch.autograd.gradgradcheck(lambda p: cluster_sums(p, index, 4)[0].square(), points)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 900), st.integers(1, 70), st.integers(1, 40)),
    used=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_backends_agree_whatever_the_clusters(sizes, used, seed):
    length, dim, k = sizes
    g = torch.Generator().manual_seed(seed)
    index = torch.randint(-1, min(used, k), (length,), generator=g)
    points = torch.randint(-8, 9, (length, dim), generator=g).float()  # sums of small integers are exact
    expected = cluster_sums(points, index, k, backend="reference")
    for backend in ("cpu", "simt") if _native.module("_simt") else ("cpu",):
        for a, e in zip(cluster_sums(points, index, k, backend=backend), expected, strict=True):
            assert torch.equal(a, e)


@pytest.mark.parametrize("backend", ["cpu", "simt"])
def test_members_are_added_in_ascending_order_in_blocks(backend):
    """Points of other clusters, wherever they stand, do not change a bit."""
    g = torch.Generator().manual_seed(1)
    own = torch.randn(700, 40, generator=g)
    need(backend, own, torch.zeros(700).long(), 1)
    alone, _ = cluster_sums(own, torch.zeros(700).long(), 1, backend=backend)
    place = torch.randperm(2000, generator=g)[:700].sort().values
    points = torch.randn(2000, 40, generator=g)
    index = torch.randint(-1, 3, (2000,), generator=g)
    index[index == 2] = 3
    points[place], index[place] = own, 2
    among, counts = cluster_sums(points, index, 5, backend=backend)
    assert counts[2] == 700
    assert torch.equal(among[2], alone[0])


def test_rounding_does_not_grow_with_a_large_cluster():
    """300 000 numbers around 1: one running float32 sum loses three more digits."""
    points = 1 + torch.rand(300_000, 1, generator=torch.Generator().manual_seed(2))
    index = torch.zeros(300_000, dtype=torch.int64)
    sums, _ = cluster_sums(points, index, 1, backend="cpu")
    exact = points.double().sum()
    assert abs(sums.double().sum() - exact) / exact < 5e-7


@pytest.mark.parametrize("bad", [-2, 3, 2**31, -(2**63), 2**63 - 1])
def test_index_outside_is_refused_with_its_place(bad):
    index = torch.tensor([0, -1, 2, bad, bad])
    with pytest.raises(ValueError, match=rf"`index`\[3\] is {bad}, outside the 3 clusters(.|\n)*HINT: -1 leaves"):
        cluster_sums(torch.zeros(5, 4), index, 3, backend="cpu")


@pytest.mark.parametrize("bad", [-2, 3, 2**31, 2**32 + 1, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("backend", ["simt", "simt_trace"])
def test_gpu_leaves_out_what_is_outside(backend, bad):
    points, index = torch.ones(5, 4), torch.tensor([0, -1, 2, bad, 2])
    need(backend, points, index, 3)
    points.requires_grad_()
    sums, counts = cluster_sums(points, index, 3, backend=backend)
    assert counts.tolist() == [1, 0, 2]
    assert sums[:, 0].tolist() == [1, 0, 2]
    assert torch.autograd.grad(sums.sum(), points)[0][:, 0].tolist() == [1, 0, 1, 0, 1]


def test_native_wall_names_every_argument():
    with pytest.raises(ValueError, match=r"cluster_sums: expected `index` of dtype int64(.|\n)*points *: shape="):
        cluster_sums(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int32), 4, backend="cpu")
