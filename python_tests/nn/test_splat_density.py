import math

import pytest
import torch
from torch import nn

from vidkernels import nn as vknn
from vidkernels.nn.splatting import density


def make(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"means": (3,), "log_scales": (3,), "quats": (4,), "opacities": (), "colors": (3,)}
    rows = {name: torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()}
    rows["opacities"] = rows["opacities"] + 3
    rows["log_scales"] = torch.full((count, 3), math.log(0.01))
    gaussians = nn.ParameterDict({name: nn.Parameter(value) for name, value in rows.items()})
    optimizer = torch.optim.Adam([{"params": [value], "lr": 1e-2} for value in gaussians.values()])
    for _ in range(2):
        optimizer.zero_grad()
        sum(value.square().sum() for value in gaussians.values()).backward()
        optimizer.step()
    return gaussians, optimizer


def moments(gaussians, optimizer, key="exp_avg"):
    return {name: optimizer.state[value][key].clone() for name, value in gaussians.items()}


def observe(control, lengths):
    means2d = torch.zeros(len(lengths), 2, requires_grad=True)
    means2d.grad = torch.tensor([[length, 0.0] for length in lengths])
    control.observe(means2d, (2, 2))  # half the frame is one pixel


def test_rows_keep_their_moments_and_go_on_alike():
    gaussians, optimizer = make()
    other, other_optimizer = make()
    before, averages = {n: v.detach().clone() for n, v in gaussians.items()}, moments(gaussians, optimizer)
    index = torch.tensor([4, 0, 3])
    density.keep_gaussians(gaussians, optimizer, index)
    for name, value in gaussians.items():
        assert torch.equal(value, before[name][index])
        assert torch.equal(optimizer.state[value]["exp_avg"], averages[name][index])
    assert len(optimizer.state) == len(gaussians)
    # The next step is the one that these rows would have taken anyway.
    for rows, steps in ((gaussians, optimizer), (other, other_optimizer)):
        steps.zero_grad()
        sum(value.square().sum() for value in rows.values()).backward()
        steps.step()
    for name, value in gaussians.items():
        torch.testing.assert_close(value, other[name][index])


def test_new_rows_start_without_moments():
    gaussians, optimizer = make()
    averages = moments(gaussians, optimizer)
    new = {name: torch.ones(2, *value.shape[1:]) for name, value in gaussians.items()}
    density.append_gaussians(gaussians, optimizer, new)
    for name, value in gaussians.items():
        assert torch.equal(value[6:], new[name])
        state = optimizer.state[value]["exp_avg"]
        assert torch.equal(state[:6], averages[name])
        assert not state[6:].any()
    with pytest.raises(ValueError, match=r"expected rows for .*means"):
        density.append_gaussians(gaussians, optimizer, {"means": torch.zeros(1, 3)})


def test_small_ones_are_cloned_large_ones_split():
    gaussians, optimizer = make()
    with torch.no_grad():
        gaussians["log_scales"][4] = math.log(0.2)
    before = {n: v.detach().clone() for n, v in gaussians.items()}
    control = vknn.DensityControl(gaussians, optimizer, threshold=0.5, split_scale=0.1)
    observe(control, [0, 1, 0, 0, 1, 0.25])
    assert control.densify(torch.Generator().manual_seed(0)) == {"cloned": 1, "split": 1, "pruned": 0}
    assert gaussians["means"].shape == (8, 3)
    old = [0, 1, 2, 3, 5]
    assert torch.equal(gaussians["means"][:6], before["means"][[*old, 1]])
    halves = gaussians["means"][6:]
    assert not torch.equal(halves[0], halves[1])
    assert ((halves - before["means"][4]).norm(dim=1) < 4 * 0.2 * 3**0.5).all()
    torch.testing.assert_close(gaussians["log_scales"][6:], before["log_scales"][[4, 4]] - math.log(1.6))
    assert torch.equal(gaussians["colors"][6:], before["colors"][[4, 4]])


def test_halves_of_a_split_lie_along_the_turned_axis():
    # Long in its own x, turned by 90 degrees about z: along y.
    count = 400
    quats = torch.tensor([1.0, 0, 0, 1]).expand(count, 4)
    scales = torch.tensor([1.0, 1e-4, 1e-4]).expand(count, 3)
    offsets = vknn.DensityControl._offsets(quats, scales, torch.Generator().manual_seed(0))
    assert offsets[:, [0, 2]].abs().max() < 1e-3
    assert offsets[:, 1].std() == pytest.approx(1, rel=0.15)


def test_the_strongest_come_first_when_there_is_little_room():
    gaussians, optimizer = make()
    before = gaussians["means"].detach().clone()
    control = vknn.DensityControl(gaussians, optimizer, threshold=0.5, max_count=8)
    observe(control, [0.6, 0.9, 0.7, 0.1, 0.8, 0.55])
    assert control.densify()["cloned"] == 2
    assert torch.equal(gaussians["means"][6:], before[[1, 4]])


def test_gradients_are_averaged_over_the_steps_that_saw_the_gaussian():
    gaussians, optimizer = make(3)
    control = vknn.DensityControl(gaussians, optimizer, threshold=0.5)
    observe(control, [0.8, 0.8, 0.0])
    observe(control, [0.0, 0.1, 0.0])
    assert control.densify()["cloned"] == 1  # 0.8 / 1, not 0.9 / 2
    with pytest.raises(RuntimeError, match="retain_grad"):
        control.observe(torch.zeros(4, 2), (2, 2))


def test_the_transparent_go_but_never_all():
    gaussians, optimizer = make()
    with torch.no_grad():
        gaussians["opacities"][[1, 2]] = -9.0
    control = vknn.DensityControl(gaussians, optimizer)
    kept = gaussians["colors"][[0, 4, 5]].detach().clone()
    assert control.prune(torch.tensor([False, False, False, True, False, False])) == 3
    assert torch.equal(gaussians["colors"], kept)
    with torch.no_grad():
        gaussians["opacities"].copy_(torch.tensor([-9.0, -8.0, -9.0]))
    assert control.prune() == 2
    assert gaussians["opacities"].tolist() == [-8.0]


def test_opacity_reset():
    gaussians, optimizer = make()
    vknn.DensityControl(gaussians, optimizer).reset_opacity(0.1)
    assert (gaussians["opacities"].sigmoid() <= 0.1 + 1e-6).all()
    assert not moments(gaussians, optimizer)["opacities"].any()
    assert moments(gaussians, optimizer)["means"].any()


def test_error_is_drawn_in_proportion_and_without_repeats():
    error = torch.zeros(4, 5)
    error[1, 3], error[2, 0] = 3.0, 1.0
    generator = torch.Generator().manual_seed(0)
    drawn = [density.sample_error(error, 1, generator).squeeze(0).tolist() for _ in range(400)]
    share = sum(pixel == [3.5, 1.5] for pixel in drawn) / 400
    assert share == pytest.approx(0.75, abs=0.07)
    both = density.sample_error(error, 9, generator)
    assert sorted(both.tolist()) == [[0.5, 2.5], [3.5, 1.5]]
    assert density.sample_error(torch.zeros(4, 5), 3).shape == (0, 2)
