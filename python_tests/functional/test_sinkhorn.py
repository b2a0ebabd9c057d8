"""Sinkhorn: closed forms, other packages, scores of any size, gradients, refusals."""

import pytest
import torch

from vidkernels.functional.clustering.matching import linear_assignment
from vidkernels.functional.clustering.sinkhorn import sinkhorn, sinkhorn_assign


def swav(scores, epsilon, iterations):
    """As SwAV writes it, in float64."""
    q = torch.exp(scores.double() / epsilon).t()
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdim=True) * q.shape[0]
        q /= q.sum(0, keepdim=True) * q.shape[1]
    return (q * q.shape[1]).t()


def log_domain(scores, epsilon, iterations, a=None, b=None):
    z = scores.double() / epsilon
    a = torch.full(z.shape[:1], 1 / z.shape[0], dtype=torch.float64) if a is None else a.double()
    b = torch.full(z.shape[1:], 1 / z.shape[1], dtype=torch.float64) if b is None else b.double()
    u = a.log()
    for _ in range(iterations):
        v = b.log() - torch.logsumexp(z + u[:, None], 0)
        u = a.log() - torch.logsumexp(z + v, 1)
    return (z + u[:, None] + v).exp()


def cosines(n, k, seed=0, dim=32):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, dim, generator=g), torch.randn(k, dim, generator=g)
    return torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize(("n", "k"), [(7, 3), (129, 40), (500, 333)])
def test_is_what_swav_computes(n, k, iterations):
    scores = cosines(n, k)
    expected = swav(scores, 0.05, iterations)
    torch.testing.assert_close(sinkhorn(scores, 0.05, iterations).double(), expected, rtol=3e-5, atol=1e-7)
    torch.testing.assert_close(sinkhorn(scores.double(), 0.05, iterations), expected)


def test_two_by_two_by_hand():
    """exp(s / eps) = [[r, 1], [1, r]] is balanced already: rows r / (r + 1) and 1 / (r + 1)."""
    plan = sinkhorn(torch.tensor([[1.0, 0], [0, 1]], dtype=torch.float64), 0.5, 1)
    r = torch.tensor(2.0, dtype=torch.float64).exp()
    torch.testing.assert_close(plan, torch.stack([torch.stack([r, r * 0 + 1]), torch.stack([r * 0 + 1, r])]) / (r + 1))


def test_equal_scores_are_shared_evenly_and_go_to_the_first():
    for value in (0.0, 1e4, -1e4):
        scores = torch.full((6, 5), value)
        torch.testing.assert_close(sinkhorn(scores), torch.full((6, 5), 0.2))
        assert sinkhorn_assign(scores).tolist() == [0] * 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.6, 5.0, 300.0])
def test_half_precision_scores_of_any_size(dtype, size):
    """exp(0.56 / 0.05) is beyond float16, exp(4.5 / 0.05) beyond float32."""
    scores = (cosines(80, 24) * size).to(dtype)
    plan = sinkhorn(scores, 0.05, 3)
    assert plan.dtype is torch.float32
    torch.testing.assert_close(plan.double() / 80, log_domain(scores, 0.05, 3), rtol=0, atol=3e-5 / 80)


def test_rows_and_columns_far_apart():
    scores = cosines(90, 33)
    for moved in (scores + torch.linspace(-40, 40, 90)[:, None], scores + torch.linspace(-10, 10, 33)):
        plan = sinkhorn(moved, 0.05, 5)
        torch.testing.assert_close(plan.double() / 90, log_domain(moved, 0.05, 5), rtol=0, atol=2e-4 / 90)


def test_a_column_that_nobody_likes_still_gets_its_mass():
    """exp(-200) is nothing in float32, and yet the balance is exact."""
    scores = torch.zeros(64, 8)
    scores[:, 3] = -10.0
    plan = sinkhorn(scores, 0.05, 3)
    torch.testing.assert_close(plan.sum(0), torch.full((8,), 8.0))


def test_forbidden_pairs_get_nothing():
    scores = cosines(12, 5)
    scores[2, :3] = -torch.inf
    plan = sinkhorn(scores, 0.1, 20)
    assert plan[2, :3].abs().max() == 0
    torch.testing.assert_close(plan.sum(1), torch.ones(12))
    scores[:, 4] = -torch.inf  # nobody may use it: the others share what there is
    plan = sinkhorn(scores, 0.1, 20)
    assert plan[:, 4].abs().max() == 0
    assert plan.isfinite().all()


def test_marginals_and_pot():
    ot = pytest.importorskip("ot")
    cost = 1 - cosines(30, 20).double()
    g = torch.Generator().manual_seed(3)
    a, b = (torch.rand(n, generator=g, dtype=torch.float64) + 0.1 for n in (30, 20))
    a, b = a / a.sum(), b / b.sum()
    for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 2e-8)):
        plan = sinkhorn(-cost.to(dtype), 0.1, 500, marginals=(3 * a, b), scale="plan")
        torch.testing.assert_close(plan.double(), ot.sinkhorn(a, b, cost, 0.1, stopThr=1e-15), rtol=1e-4, atol=atol)
    few = sinkhorn(-cost, 0.1, 4, marginals=(None, b), scale="plan")
    uniform = torch.full_like(a, 1 / 30)
    torch.testing.assert_close(few, ot.sinkhorn(uniform, b, cost, 0.1, numItermax=4, stopThr=0, warn=False))


@pytest.mark.filterwarnings("ignore:If reg_type")
def test_unbalanced_and_pot():
    ot = pytest.importorskip("ot")
    cost = 1 - cosines(15, 9).double()
    a, b = torch.full((15,), 1 / 15, dtype=torch.float64), torch.full((9,), 1 / 9, dtype=torch.float64)
    expected = ot.unbalanced.sinkhorn_unbalanced(a, b, cost, 0.1, 0.7, reg_type="entropy", stopThr=1e-14)
    got = sinkhorn(-cost, 0.1, 1500, scale="plan", unbalanced=0.7)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-10)
    hard = sinkhorn(-cost, 0.1, 1500, scale="plan", unbalanced=(1e9, 1e9))
    torch.testing.assert_close(hard, sinkhorn(-cost, 0.1, 1500, scale="plan"), rtol=1e-5, atol=1e-9)


def test_geomloss_agrees_on_the_transport_cost():
    geomloss = pytest.importorskip("geomloss")
    g = torch.Generator().manual_seed(4)
    x, y = torch.rand(20, 3, generator=g, dtype=torch.float64), torch.rand(16, 3, generator=g, dtype=torch.float64)
    blur = 0.3
    theirs = geomloss.SamplesLoss("sinkhorn", p=2, blur=blur, debias=False, scaling=0.99)(x, y)
    cost = torch.cdist(x, y).square() / 2
    plan = sinkhorn(-cost, blur**2, 2000, scale="plan")
    entropy = (plan * (plan * 20 * 16).log()).sum()
    torch.testing.assert_close((plan * cost).sum() + blur**2 * entropy, theirs, rtol=1e-5, atol=0)


def test_batches_are_independent_problems():
    scores = torch.stack([cosines(33, 12, seed) for seed in range(5)])
    together = sinkhorn(scores, 0.05, 4)
    for one, plan in zip(scores, together):
        assert torch.equal(sinkhorn(one, 0.05, 4), plan)
    labels = sinkhorn_assign(scores, 0.05, 4)
    assert torch.equal(labels, together.argmax(2))


def test_labels_are_the_largest_entries():
    scores = cosines(700, 50)
    label = sinkhorn_assign(scores, 0.05, 10)
    assert label.dtype is torch.int64
    assert torch.equal(label, swav(scores, 0.05, 10).argmax(1))


def test_logarithm_survives_where_the_plan_does_not():
    scores = cosines(20, 10) * 20
    log = sinkhorn(scores.double(), 0.05, 5, log=True)
    assert log.isfinite().all()
    torch.testing.assert_close(log.exp(), sinkhorn(scores.double(), 0.05, 5))
    assert sinkhorn(scores, 0.05, 5, log=True).isfinite().all()


@pytest.mark.parametrize("scale", ["rows", "plan"])
@pytest.mark.parametrize("gradient", ["unroll", "implicit"])
@pytest.mark.parametrize(("n", "k"), [(6, 4), (3, 5)])
def test_gradients(scale, gradient, n, k):
    g = torch.Generator().manual_seed(5)
    scores = torch.randn(n, k, generator=g, dtype=torch.float64, requires_grad=True)
    a, b = (torch.rand(m, generator=g, dtype=torch.float64).add(0.1).requires_grad_() for m in (n, k))
    iterations = 300 if gradient == "implicit" else 3

    def run(s, a, b):
        return sinkhorn(s, 0.5, iterations, marginals=(a, b), scale=scale, gradient=gradient)

    assert torch.autograd.gradcheck(run, (scores, a, b))


def test_implicit_gradient_is_that_of_many_iterations():
    scores = cosines(12, 7).double().requires_grad_()
    weight = torch.randn(12, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    grads = [
        torch.autograd.grad((sinkhorn(scores, 0.2, 400, gradient=how) * weight).sum(), scores)[0]
        for how in ("unroll", "implicit")
    ]
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-12)
    plain = torch.autograd.grad((log_domain(scores, 0.2, 400) * 12 * weight).sum(), scores)[0]
    torch.testing.assert_close(grads[0], plain, rtol=1e-8, atol=1e-12)
    assert not sinkhorn(scores, gradient=None).requires_grad


def test_unbalanced_gradient():
    scores = cosines(5, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: sinkhorn(s, 0.5, 4, scale="plan", unbalanced=(1.0, 0.3)), scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bad_scores_are_named(dtype):
    for bad in (float("nan"), float("inf")):
        scores = torch.zeros(2, 130, 7, dtype=dtype)
        scores[1, 77, 3] = bad
        with pytest.raises(ValueError, match=r"\[1, 77\] holds NaN or \+inf"):
            sinkhorn(scores)
        with pytest.raises(ValueError, match=r"\[1, 77\]"):
            sinkhorn_assign(scores)


def test_refusals():
    scores = torch.zeros(4, 3)
    for wrong in (
        {"epsilon": 0.0},
        {"iterations": 0},
        {"scale": "columns"},
        {"gradient": "both"},
        {"marginals": (torch.ones(3), None)},
        {"marginals": (None, torch.tensor([1.0, -1, 1]))},
        {"unbalanced": 1.0},
    ):
        with pytest.raises(ValueError, match="sinkhorn:"):
            sinkhorn(scores, **wrong)
    with pytest.raises(ValueError, match="floating"):
        sinkhorn(scores.long())
    with pytest.raises(ValueError, match="shape"):
        sinkhorn(scores[0])
    assert sinkhorn(torch.zeros(0, 3)).shape == (0, 3)


def test_matching_is_the_best_of_all_permutations():
    import itertools

    g = torch.Generator().manual_seed(7)
    cost = torch.randn(4, 3, 5, generator=g)
    row, column = linear_assignment(cost)
    for b in range(4):
        found = cost[b, row[b], column[b]].sum()
        best = min(cost[b, range(3), list(p)].sum() for p in itertools.permutations(range(5), 3))
        assert found == pytest.approx(best.item())
    tall = linear_assignment(cost.mT, maximize=True)
    assert tall[0].shape == (4, 3)
    assert torch.equal(linear_assignment(-cost)[1].sort(1)[0], tall[0])
    assert linear_assignment(cost[:0])[0].shape == (0, 3)


def test_matching_refuses():
    cost = torch.zeros(2, 3, 3)
    cost[1, 2, 0] = float("nan")
    with pytest.raises(ValueError, match=r"\[1, 2\] holds NaN"):
        linear_assignment(cost)
    with pytest.raises(ValueError, match="problem 0 has no matching"):
        linear_assignment(torch.full((2, 2), torch.inf))
    with pytest.raises(ValueError, match="shape"):
        linear_assignment(torch.zeros(3))


def test_best_column_without_mass():
    """Rows whose best column may take nothing, the others hundreds of epsilon below it: nothing may vanish."""
    scores = torch.tensor([[[1.0, -9.0, -9.1], [1.0, -9.2, -9.0]]])
    mass = torch.tensor([[0.0, 0.5, 0.5]])
    rows = torch.tensor([[0.5, 0.5]])
    got = torch.ops.vidkernels.sinkhorn(scores, 0.05, 4, rows, mass, True)[0]
    narrow = torch.ops.vidkernels.sinkhorn(
        scores[:, :, 1:].contiguous(), 0.05, 4, rows, mass[:, 1:].contiguous(), True
    )[0]
    assert torch.equal(got[:, :, 0], torch.zeros(1, 2))
    torch.testing.assert_close(got[:, :, 1:], narrow, rtol=1e-5, atol=0)
