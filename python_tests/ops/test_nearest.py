"""nearest: values by hand, the tie and NaN rules, and a screen that must not show in any bit."""

import math

import pytest
import torch

from vidkernels.ops.nearest.op import nearest, nearest_op

BACKENDS = ["reference", "cpu", "simt"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    example = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), 1, "l2", "all", True
    reason = nearest_op.why_not(request.param, *example)
    if reason is not None:
        pytest.skip(reason)
    return request.param


def rows(*values):
    return torch.tensor([values], dtype=torch.float32)


def test_distances_by_hand(backend):
    index, value = nearest(rows([0, 0], [3, 4]), rows([3, 0], [0, 1], [3, 3]), 3, "l2", "all", True, backend=backend)
    assert index.tolist() == [[[1, 0, 2], [2, 0, 1]]]
    assert value.tolist() == [[[1, 9, 18], [1, 16, 18]]]


def test_similarities_by_hand(backend):
    points, codes = rows([1, 2], [0, 0]), rows([1, 1], [-4, -2], [0, 3])
    index, value = nearest(points, codes, 2, "ip", "all", True, backend=backend)
    assert index.tolist() == [[[2, 0], [0, 1]]]
    assert value.tolist() == [[[6, 3], [0, 0]]]
    index, value = nearest(points, codes, 3, "cosine", "all", True, backend=backend)
    assert index.tolist() == [[[0, 2, 1], [0, 1, 2]]]
    expected = torch.tensor([3 / math.sqrt(10), 2 / math.sqrt(5), -8 / 10])
    torch.testing.assert_close(value[0, 0], expected, rtol=1e-6, atol=0)
    assert value[0, 1].tolist() == [0, 0, 0]


def test_candidates_by_hand(backend):
    x = rows([0.0], [1.0], [1.5], [-0.25])
    index, value = nearest(x, x, 2, "l2", "others", True, backend=backend)
    assert index.tolist() == [[[3, 1], [2, 0], [1, 0], [0, 1]]]
    assert value[0, 0].tolist() == [0.0625, 1.0]
    index, value = nearest(x, x, 2, "l2", "before", True, backend=backend)
    assert index.tolist() == [[[-1, -1], [0, -1], [1, 0], [0, 1]]]
    assert value[0, 0].tolist() == [math.inf, math.inf]
    assert nearest(x, x, 1, "ip", "before", True, backend=backend)[1][0, 0].tolist() == [-math.inf]


@pytest.mark.parametrize("k", [1, 3])
def test_equal_values_come_in_the_order_of_their_index(backend, k):
    codes = torch.ones(1, 500, 4)
    index, value = nearest(torch.zeros(1, 70, 4), codes, k, "l2", "all", True, backend=backend)
    assert torch.equal(index, torch.arange(k).expand(1, 70, k))
    assert bool((value == 4).all())


def test_nan_rows_and_codes(backend):
    points, codes = rows([0, 0], [math.nan, 0]), rows([math.nan, 0], [5, 0])
    index, value = nearest(points, codes, 2, "l2", "all", True, backend=backend)
    assert index.tolist() == [[[1, -1], [-1, -1]]]
    assert value[0, 0].tolist() == [25, math.inf]
    assert bool(value[0, 1].isnan().all())


def test_an_infinite_code_is_the_last_resort(backend):
    codes = rows([math.inf, 0], [100, 0])
    assert nearest(rows([0, 0]), codes, 2, "l2", "all", True, backend=backend)[0].tolist() == [[[1, 0]]]


def hard_data(kind, generator, count, length, dim):
    x, c = torch.randn(1, count, dim, generator=generator), torch.randn(1, length, dim, generator=generator)
    if kind == "clustered":
        centres = 10 * torch.randn(8, dim, generator=generator)
        x = 0.01 * x + centres[torch.randint(0, 8, (count,), generator=generator)]
        c = 0.01 * c + centres[torch.randint(0, 8, (length,), generator=generator)]
    elif kind == "low_rank":
        basis = torch.randn(3, dim, generator=generator)
        x, c = x[..., :3] @ basis, c[..., :3] @ basis
    elif kind.startswith("offset"):
        x, c = x + float(kind[6:]), c + float(kind[6:])
    elif kind == "near_duplicates":
        c = c[:, :1] + 1e-4 * c
    elif kind == "duplicates":
        c = x[:, torch.randint(0, count, (length,), generator=generator)]
    elif kind.startswith("times"):
        x, c = x * float(kind[5:]), c * float(kind[5:])
    return x, c


KINDS = ["gaussian", "clustered", "low_rank", "offset10", "offset1000", "near_duplicates", "duplicates",
         "times1e4", "times3e18", "times1e30", "times1e-18"]  # fmt: skip


def same_bits(a, b):
    return all(torch.equal(p.view(torch.int32), q.view(torch.int32)) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_screen_does_not_show(kind, metric, dtype, generator, one_and_two_threads):
    if nearest_op.why_not("cpu", torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), 1, "l2", "all", True):
        pytest.skip("no CPU kernel")
    for count, length, dim, k in ((150, 700, 40, 1), (130, 4500, 17, 3), (97, 97, 70, 6)):
        x, c = (t.to(dtype) for t in hard_data(kind, generator, count, length, dim))
        for candidates in ("all", "others", "before") if count == length else ("all",):
            plain = nearest(x, c, k, metric, candidates, False)
            for screened in one_and_two_threads(lambda: nearest(x, c, k, metric, candidates, True)):  # noqa: B023
                assert same_bits(plain, screened), (count, length, dim, k, candidates)
            if dtype is torch.float16 and bool(x.isfinite().all() & c.isfinite().all()):
                assert bool(plain[1][plain[0] >= 0].isfinite().all())


@pytest.mark.parametrize("kind", ["gaussian", "clustered", "offset1000", "near_duplicates"])
def test_the_choice_is_the_best_of_the_measured_values(kind, generator):
    """Against one group at a time: a single code per call leaves nothing to choose or screen."""
    if nearest_op.why_not("cpu", torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), 1, "l2", "all", True):
        pytest.skip("no CPU kernel")
    x, c = hard_data(kind, generator, 40, 60, 33)
    value = torch.cat([nearest(x, c[:, j : j + 1], 1, "l2", "all", False)[1] for j in range(60)], 2)
    least, index = value.sort(dim=2, stable=True)
    got = nearest(x, c, 5, "l2", "all", True)
    assert torch.equal(got[0], index[..., :5])
    assert torch.equal(got[1], least[..., :5])


@pytest.mark.parametrize("kind", ["gaussian", "clustered", "low_rank", "offset10", "offset1000"])
def test_values_are_near_float64_wherever_the_data_lie(kind, generator):
    if nearest_op.why_not("cpu", torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), 1, "l2", "all", True):
        pytest.skip("no CPU kernel")
    x, c = hard_data(kind, generator, 100, 300, 48)
    index, value = nearest(x, c, 4, "l2", "all", True)
    exact = (x.double()[0, :, None] - c.double()[0, index[0]]).square().sum(-1)
    torch.testing.assert_close(value[0].double(), exact, rtol=3e-6, atol=0)
    best = (x.double()[0, :, None] - c.double()[0]).square().sum(-1).sort(1).values[:, :4]
    torch.testing.assert_close(value[0].double(), best, rtol=3e-6, atol=0)


def test_rows_of_a_slice_are_not_copied(generator):
    if nearest_op.why_not("cpu", torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), 1, "l2", "all", True):
        pytest.skip("no CPU kernel")
    tokens = torch.randn(3, 90, 24, generator=generator)
    wide = torch.randn(3, 90, 40, generator=generator)
    wide[..., 8:32] = tokens
    sliced = wide[..., 8:32]
    expected = nearest(tokens[:, ::2].contiguous(), tokens[:, 1::2].contiguous(), 2, "cosine", "all", True)
    assert same_bits(expected, nearest(sliced[:, ::2], sliced[:, 1::2], 2, "cosine", "all", True))
    shared = tokens[:1, :17].expand(3, -1, -1)
    assert same_bits(
        nearest(tokens, shared, 1, "l2", "all", True), nearest(tokens, shared.contiguous(), 1, "l2", "all", True)
    )


def test_three_threads_give_the_same_bits(generator):
    if nearest_op.why_not("cpu", torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), 1, "l2", "all", True):
        pytest.skip("no CPU kernel")
    x, c = torch.randn(3, 301, 36, generator=generator), torch.randn(3, 411, 36, generator=generator)
    before = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(nearest(x, c, 4, "l2", "all", True))
    finally:
        torch.set_num_threads(before)
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


def test_gradients_in_closed_form():
    x = rows([1, 2]).requires_grad_()
    c = rows([0, 0], [9, 9]).requires_grad_()
    nearest(x, c, 1, "l2", "all", True)[1].sum().backward()
    assert x.grad.tolist() == [[[2, 4]]]
    assert c.grad.tolist() == [[[-2, -4], [0, 0]]]


def test_a_zero_row_has_no_gradient():
    x, c = torch.zeros(1, 2, 3, requires_grad=True), torch.ones(1, 2, 3, requires_grad=True)
    nearest(x, c, 1, "cosine", "all", True)[1].sum().backward()
    assert x.grad.tolist() == [[[0, 0, 0], [0, 0, 0]]]
    assert c.grad.abs().max() == 0
