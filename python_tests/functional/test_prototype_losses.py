"""SwAV's and SIGMA's losses against their formulas, and problems shared between processes."""

import pytest
import torch
import torch.multiprocessing as mp
from torch.nn import functional as F

from vidkernels.functional.clustering.prototypes import sigma_loss, swapped_prediction_loss
from vidkernels.functional.clustering.sinkhorn import sinkhorn, sinkhorn_assign


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def swav_formula(scores, assign, queue=None):
    loss = 0
    for k, i in enumerate(assign):
        rows = scores[i].detach()
        q = sinkhorn(rows if queue is None else torch.cat([rows, queue[k]]), gradient=None)[: len(rows)]
        for v in set(range(len(scores))) - {i}:
            loss = loss - (q * F.log_softmax(scores[v] / 0.1, 1)).sum(1).mean()
    return loss / (len(assign) * (len(scores) - 1))


@pytest.mark.parametrize("assign", [(0, 1), (2,)])
@pytest.mark.parametrize("queued", [False, True])
def test_swapped_prediction(assign, queued):
    scores = [(random(37, 9, seed=v) * 0.3).requires_grad_() for v in range(4)]
    queue = [random(20, 9, seed=9 + k) * 0.3 for k in range(len(assign))] if queued else None
    loss = swapped_prediction_loss(scores, assign=assign, queue=queue)
    expected = swav_formula(scores, assign, queue)
    torch.testing.assert_close(loss, expected)
    for got, want in zip(torch.autograd.grad(loss, scores), torch.autograd.grad(expected, scores, allow_unused=True)):
        torch.testing.assert_close(got, torch.zeros_like(got) if want is None else want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapped_prediction_in_narrow_types(dtype):
    scores = (random(2, 1500, 30) * 0.3).to(dtype).requires_grad_()
    loss = swapped_prediction_loss(scores)
    wide = scores.detach().double().requires_grad_()
    expected = swapped_prediction_loss(wide)
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    loss.backward()
    expected.backward()
    assert scores.grad.dtype is dtype
    assert (scores.grad.double() - wide.grad).norm() <= (1e-2 if dtype is torch.bfloat16 else 1e-5) * wide.grad.norm()


def sigma_formula(x, y, p, codes):
    a, b, q = (F.normalize(v.flatten(0, -2), dim=1) for v in (x, y, p))
    on_video, on_target = a @ q.detach().T, b @ q.T
    plans = [sinkhorn(s.detach(), 0.05, 10, gradient=None) for s in (on_video, on_target)]
    if codes == "hard":
        plans = [F.one_hot(plan.argmax(1), plan.shape[1]).to(plan) for plan in plans]
    cross = [(c * F.log_softmax(s / 0.1, 1)).sum(1).mean() for c, s in zip(plans[::-1], (on_video, on_target))]
    return -sum(cross) / 2


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("codes", ["hard", "soft"])
def test_sigma(codes, store):
    x, y, p = (random(*s, seed=i).requires_grad_() for i, s in enumerate([(2, 600, 6), (2, 600, 6), (11, 6)]))
    loss, expected = sigma_loss(x, y, p, codes=codes, store_scores=store), sigma_formula(x, y, p, codes)
    torch.testing.assert_close(loss, expected)
    for got, want in zip(torch.autograd.grad(loss, (x, y, p)), torch.autograd.grad(expected, (x, y, p))):
        torch.testing.assert_close(got, want)


def test_sigma_in_float32_agrees_with_float64():
    inputs = [random(*s, seed=i) for i, s in enumerate([(700, 16), (700, 16), (24, 16)])]
    narrow = sigma_loss(*(v.float() for v in inputs), codes="soft")
    torch.testing.assert_close(narrow.double(), sigma_loss(*inputs, codes="soft"), rtol=1e-5, atol=0)


def test_refusals():
    with pytest.raises(ValueError, match="two or more crops"):
        swapped_prediction_loss([torch.zeros(3, 2)])
    with pytest.raises(ValueError, match="assign"):
        swapped_prediction_loss(torch.zeros(2, 3, 2), assign=(0, 2))
    with pytest.raises(ValueError, match="queue"):
        swapped_prediction_loss(torch.zeros(2, 3, 2), queue=[torch.zeros(1, 2)])
    with pytest.raises(ValueError, match="one shape"):
        sigma_loss(torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="as wide"):
        sigma_loss(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="codes"):
        sigma_loss(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(5, 2), codes="sharp")


def share(rank, world, sizes, folder):
    """One process: its rows of the problem, and what it got for them."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    group = torch.distributed.group.WORLD
    scores, far = problem(sum(sizes))
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    crops = torch.stack([scores, scores.flip(1)])[:, mine]
    torch.save(
        {
            "rows": sinkhorn(scores[mine], 0.05, 3, group=group),
            "plan": sinkhorn(scores[mine].double(), 0.05, 3, group=group, scale="plan"),
            "far": sinkhorn(far[mine], 0.05, 3, group=group),
            "label": sinkhorn_assign(scores[mine], 0.05, 10, group=group),
            "loss": swapped_prediction_loss(crops, group=group) * sizes[rank],
        },
        f"{folder}/{rank}.pt",
    )
    torch.distributed.destroy_process_group()


def problem(rows):
    scores = F.normalize(random(rows, 16), dim=1) @ F.normalize(random(21, 16, seed=1), dim=1).T
    return scores.float(), (scores + torch.linspace(-20, 20, rows)[:, None]).float()


@pytest.mark.parametrize("sizes", [(40, 23), (1, 50, 0, 12)])
def test_processes_share_one_problem(sizes, tmp_path):
    mp.spawn(share, (len(sizes), sizes, str(tmp_path)), nprocs=len(sizes))
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(sizes))]
    scores, far = problem(sum(sizes))
    together = {key: torch.cat([p[key] for p in parts]) for key in ("rows", "plan", "far", "label")}
    torch.testing.assert_close(together["rows"], sinkhorn(scores), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(together["plan"], sinkhorn(scores.double(), scale="plan"))
    torch.testing.assert_close(together["far"], sinkhorn(far), rtol=0, atol=1e-4)
    assert torch.equal(together["label"], sinkhorn_assign(scores, 0.05, 10))
    loss = sum(p["loss"] for p in parts) / sum(sizes)
    torch.testing.assert_close(loss, swapped_prediction_loss(torch.stack([scores, scores.flip(1)])), rtol=1e-5, atol=0)
