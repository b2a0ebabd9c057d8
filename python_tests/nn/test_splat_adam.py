"""GaussianAdam in the place of torch.optim.Adam: steps, state dicts, rows that come and go."""

import copy

import pytest
import torch
from torch import nn

from vidkernels.nn.splatting.adam import GaussianAdam
from vidkernels.nn.splatting.density import DensityControl

SHAPES = {"means": (3,), "log_scales": (3,), "quats": (4,), "opacities": (), "colors": (3,)}
RATES = {"means": 1e-2, "log_scales": 5e-3, "quats": 1e-3, "opacities": 5e-2, "colors": 2.5e-3}


def make(kind, count=20, **options):
    g = torch.Generator().manual_seed(0)
    rows = nn.ParameterDict({n: nn.Parameter(torch.randn(count, *s, generator=g)) for n, s in SHAPES.items()})
    return rows, kind([{"params": [rows[n]], "lr": RATES[n], "name": n} for n in SHAPES], eps=1e-15, **options)


def pull(rows, optimizer, steps=1, **options):
    for _ in range(steps):
        optimizer.zero_grad()
        sum((value.sin() * (i + 1)).sum() for i, value in enumerate(rows.values())).backward()
        optimizer.step(**options)


def same(rows, other, tolerance=2e-6):
    for name in SHAPES:
        torch.testing.assert_close(rows[name], other[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("peer", [torch.optim.Adam, torch.optim.AdamW])
def test_fits_as_torch_does(peer, decay):
    theirs, their_optimizer = make(peer, weight_decay=decay)
    ours, our_optimizer = make(GaussianAdam, weight_decay=decay, decoupled_weight_decay=peer is torch.optim.AdamW)
    pull(theirs, their_optimizer, 30)
    pull(ours, our_optimizer, 30)
    same(ours, theirs)
    assert ours["means"].grad is not None


@pytest.mark.parametrize(("first", "second"), [
    (GaussianAdam, torch.optim.Adam), (torch.optim.Adam, GaussianAdam), (GaussianAdam, GaussianAdam)
])  # fmt: skip
def test_state_goes_from_one_to_the_other(first, second):
    rows, optimizer = make(torch.optim.Adam)
    pull(rows, optimizer, 10)
    begun, begun_optimizer = make(first)
    pull(begun, begun_optimizer, 5)
    resumed, resumed_optimizer = make(second)
    resumed.load_state_dict(begun.state_dict())
    resumed_optimizer.load_state_dict(copy.deepcopy(begun_optimizer.state_dict()))
    assert resumed_optimizer.state[resumed["means"]]["step"] == 5
    pull(resumed, resumed_optimizer, 5)
    same(resumed, rows)


def test_saved_and_loaded_goes_on_with_the_same_bits(tmp_path):
    rows, optimizer = make(GaussianAdam)
    pull(rows, optimizer, 4)
    torch.save({"rows": rows.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "fit.pt")
    other, other_optimizer = make(GaussianAdam)
    saved = torch.load(tmp_path / "fit.pt", weights_only=True)
    other.load_state_dict(saved["rows"])
    other_optimizer.load_state_dict(saved["optimizer"])
    pull(rows, optimizer, 3)
    pull(other, other_optimizer, 3)
    assert all(torch.equal(rows[n], other[n]) for n in SHAPES)


def test_a_state_that_it_cannot_go_on_with_is_refused():
    rows, optimizer = make(torch.optim.Adam, amsgrad=True)
    pull(rows, optimizer)
    with pytest.raises(ValueError, match="amsgrad or maximize"):
        make(GaussianAdam)[1].load_state_dict(optimizer.state_dict())


def test_schedulers_and_closures_work():
    rows, optimizer = make(GaussianAdam)
    theirs, their_optimizer = make(torch.optim.Adam)
    for values, steps in ((rows, optimizer), (theirs, their_optimizer)):
        decay = torch.optim.lr_scheduler.ExponentialLR(steps, 0.9)

        def closure(values=values, steps=steps):
            steps.zero_grad()
            loss = sum(value.square().sum() for value in values.values())
            loss.backward()
            return loss

        losses = []
        for _ in range(5):
            losses.append(steps.step(closure).item())
            decay.step()
        assert losses == sorted(losses, reverse=True)
    same(rows, theirs)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.9**5)


def test_hidden_rows_keep_parameters_and_moments():
    rows, optimizer = make(GaussianAdam)
    whole, whole_optimizer = make(GaussianAdam)
    pull(rows, optimizer, 2)
    pull(whole, whole_optimizer, 3)
    before = {n: v.detach().clone() for n, v in rows.items()}
    averages = {n: optimizer.state[v]["exp_avg"].clone() for n, v in rows.items()}
    visible = torch.arange(20) % 2 == 0
    pull(rows, optimizer, visibility=visible)
    for n, value in rows.items():
        assert torch.equal(value[~visible], before[n][~visible])
        assert torch.equal(optimizer.state[value]["exp_avg"][~visible], averages[n][~visible])
        assert torch.equal(value[visible], whole[n][visible])


def test_a_mask_of_another_length_moves_nothing():
    rows, optimizer = make(GaussianAdam)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    extra = optimizer.param_groups[-1]["params"][0]
    before = {n: v.detach().clone() for n, v in rows.items()}
    sum(value.sum() for value in [*rows.values(), extra]).backward()
    with pytest.raises(ValueError, match="an entry for every row"):
        optimizer.step(visibility=torch.ones(20, dtype=torch.bool))
    assert all(torch.equal(rows[n], before[n]) for n in SHAPES)
    assert not optimizer.state
    with pytest.raises(TypeError, match=r"step\(visibility=mask\)"):
        optimizer.step(torch.ones(20, dtype=torch.bool))


def test_rows_come_and_go_with_their_moments():
    rows, optimizer = make(GaussianAdam)
    pull(rows, optimizer, 3)
    old = rows["means"]
    value, average = old.detach().clone(), optimizer.state[old]["exp_avg"].clone()
    index = torch.tensor([7, 0, 3])
    kept = optimizer.keep_rows(old, index)
    longer = optimizer.append_rows(kept, torch.ones(2, 3, dtype=torch.float64))
    assert torch.equal(longer, torch.cat([value[index], torch.ones(2, 3)]))
    state = optimizer.state[longer]
    assert torch.equal(state["exp_avg"], torch.cat([average[index], torch.zeros(2, 3)]))
    assert state["exp_avg_sq"][3:].abs().max() == 0
    assert state["step"] == 3
    assert old not in optimizer.state
    assert kept not in optimizer.state
    assert optimizer.param_groups[0]["params"][0] is longer
    mask = torch.tensor([True, False, True, True, False])
    assert torch.equal(optimizer.keep_rows(longer, mask), longer[mask])


def test_density_control_goes_on_alike_with_either_optimizer():
    results = []
    for kind in (torch.optim.Adam, GaussianAdam):
        rows, optimizer = make(kind)
        control = DensityControl(rows, optimizer, threshold=0.5, split_scale=1.0)
        pull(rows, optimizer, 2)
        means2d = torch.zeros(20, 2, requires_grad=True)
        means2d.grad = torch.arange(40.0).view(20, 2) / 40
        control.observe(means2d, (2, 2))
        counts = control.densify(torch.Generator().manual_seed(3))
        pull(rows, optimizer, 3)
        control.prune(rows["opacities"] < 0)
        pull(rows, optimizer, 3)
        control.reset_opacity()
        pull(rows, optimizer, 1)
        results.append((counts, rows))
    assert results[0][0] == results[1][0]
    assert results[0][0]["cloned"] > 0
    assert results[0][0]["split"] > 0
    same(results[0][1], results[1][1], 1e-5)


def test_numbers_out_of_range_are_refused():
    value = [nn.Parameter(torch.zeros(2))]
    for wrong in ({"lr": -1.0}, {"eps": -1.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -0.1}):
        with pytest.raises(ValueError, match="betas in"):
            GaussianAdam(value, **wrong)
