"""Reading out and editing, on scenes made by hand."""

import math

import pytest
import torch

from vidkernels import functional as vkf
from vidkernels import nn as vknn
from vidkernels.nn.splatting import density, hierarchical

SIZE = (24, 32)
STEP = torch.tensor([0.5, -0.25, 0.0])  # scene units over the whole clip


def patch(x0, x1, y0, y1, depth, spacing=0.08):
    x = torch.arange(x0 + spacing / 2, x1, spacing)
    y = torch.arange(y0 + spacing / 2, y1, spacing)
    grid = torch.cartesian_prod(x, y)
    return torch.cat([grid, torch.full((len(grid), 1), depth)], 1)


@pytest.fixture
def layers():
    """A green wall at depth 1 that stands still, a red patch at depth 0.5 that moves; and which Gaussians are red."""
    wall, near = patch(-1.6, 1.6, -1.3, 1.3, 1.0), patch(-0.7, -0.1, -0.3, 0.4, 0.5)
    means = torch.cat([wall, near])
    red = torch.arange(len(means)) >= len(wall)
    colors = torch.where(red[:, None], torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.8, 0.2]))
    velocity = torch.where(red[:, None], STEP, 0.0)
    model = vknn.CanonicalGaussianVideo(means, torch.full((1, 1), math.log(0.06)), colors, 0.98, velocity=velocity)
    return model, red


def moving_camera(dtype=torch.float32):
    pytest.importorskip("torchdiffeq")
    generator = torch.Generator().manual_seed(5)
    place = torch.randn(20, 5, 3, generator=generator) * torch.tensor([0.5, 0.5, 0.1]) + torch.tensor([0, 0, 2.0])
    colors = torch.rand(20, 3, generator=generator)
    model = vknn.HierarchicalGaussianVideo(place, torch.full((1, 1), -1.5), colors)
    with torch.no_grad():
        for value in model.camera.parameters():
            value += 0.2 * torch.randn(value.shape, generator=generator)
    return model.to(dtype)


def test_motion_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 3, generator=generator)
    model = vknn.CanonicalGaussianVideo(means, torch.zeros(3, 1), torch.rand(3, 3), velocity=STEP.expand(3, 3))
    linear = model.centres(torch.tensor([0.0, 0.3, 1.0]))
    torch.testing.assert_close(linear, means + STEP * torch.tensor([0.0, 0.3, 1.0]).view(3, 1, 1))
    # Each coefficient moves as one term of the series, and all terms occur.
    t, found = 0.3, []
    for k in range(12):
        with torch.no_grad():
            model.gaussians["motion"].zero_()
            model.gaussians["motion"][:, k] = 1.0
        found.append(float((model.centres(torch.tensor([t])) - means)[0, 0, 0].detach()))
    terms = [1, t, t**2, t**3]
    terms += [wave(order * math.pi * t) for order in range(1, 5) for wave in (math.cos, math.sin)]
    assert sorted(found) == pytest.approx(sorted(terms), abs=1e-5)


def test_scene_units_and_pixels(layers):
    model = vknn.CanonicalGaussianVideo(
        torch.tensor([[0.5, -0.25, 1.0]]), torch.full((1, 3), math.log(0.1)), torch.ones(1, 3)
    )
    for height, width in ((40, 60), (80, 120)):
        place = model.screen(0.0, (height, width))[0, 0]
        assert place.tolist() == pytest.approx([width / 2 + height / 4, height / 2 - height / 8, 1.0])
        image = model(0.0, (height, width))[..., 0].detach()
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centre = torch.stack([(image * x).sum(), (image * y).sum()]) / image.sum()
        assert centre.tolist() == pytest.approx(place[:2].tolist(), abs=0.05)


def test_any_size_shows_the_same_picture(layers):
    model, _ = layers
    with torch.no_grad():
        small = model(0.4, SIZE)
        large = model(0.4, (SIZE[0] * 4, SIZE[1] * 4))
    averaged = torch.nn.functional.avg_pool2d(large.permute(2, 0, 1), 4).permute(1, 2, 0)
    assert (averaged - small).abs().mean() < 0.02
    assert (averaged - small.flip(1)).abs().mean() > 0.05


def test_flow_and_depth_are_those_of_what_is_seen(layers):
    model, _ = layers
    # At time 0 the patch covers x from -0.7 to -0.1: pixels 7.6 to 14.8; y 8.4 to 16.8.
    seen = model.render(0.0, SIZE, flow_to=[0.5, 1.0])
    inside, outside = (slice(10, 15), slice(10, 13)), (slice(10, 15), slice(20, 30))
    for flow, part in zip(seen.flow, (0.5, 1.0)):
        expected = STEP[:2] * part * SIZE[0] / 2
        torch.testing.assert_close(flow[(slice(None), *inside)].mean((1, 2)), expected, atol=0.05, rtol=0)
        assert flow[(slice(None), *outside)].abs().max() < 1e-3
    assert seen.depth[inside].mean().item() == pytest.approx(0.5, abs=0.02)
    assert seen.depth[outside].mean().item() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(model.flow(0.0, 0.5, SIZE), model.render(0.0, SIZE, flow_to=0.5).flow[0])
    assert model.render(0.0, SIZE).flow is None
    assert model.render(0.0, SIZE).labels is None


def test_flow_goes_backwards_in_time_as_well(layers):
    model, _ = layers
    back = model.flow(1.0, 0.0, SIZE)
    # At time 1 the patch is at x -0.2..0.4, y -0.55..0.15.
    torch.testing.assert_close(back[:, 9:12, 15:19].mean((1, 2)), -STEP[:2] * 12, atol=0.05, rtol=0)


def test_tracks_go_on_where_a_point_is_hidden(layers):
    model, _ = layers
    times = [0.0, 0.15, 1.0]
    points = torch.tensor([[11.0, 12.0], [18.0, 9.0], [28.0, 20.0]])  # on the patch, in its way, beside
    positions, visible = model.tracks(points, 0.0, times, SIZE)
    patch_path = points[0] + STEP[:2] * 12 * torch.tensor(times)[:, None]
    torch.testing.assert_close(positions[:, 0], patch_path, atol=0.1, rtol=0)
    torch.testing.assert_close(positions[:, 1:], points[1:].expand(3, 2, 2), atol=0.05, rtol=0)
    assert visible[:, 0].tolist() == [True, True, True]
    assert visible[:, 1].tolist() == [True, True, False]
    assert visible[:, 2].tolist() == [True, True, True]


def test_selections_find_the_patch(layers):
    model, red = layers
    with torch.no_grad():
        mask = model(0.0, SIZE)[..., 0] > 0.5
    by_mask = model.select_by_mask(mask, 0.0)
    assert not (by_mask & ~red).any()  # the wall behind it is hidden, and is not taken
    assert by_mask[red].float().mean() > 0.9
    with pytest.raises(ValueError, match="one time for each"):
        model.select_by_mask(torch.stack([mask, mask]), 0.0)
    assert torch.equal(model.select_by_depth(0.0, 0.75, 0.5), red)
    box = model.select_by_box((7.6, 8.4, 14.8, 16.8), 0.0, SIZE)
    assert box[red].all()
    assert (box & ~red).any()  # a box looks through
    assert not model.select_by_box((7.6, 8.4, 14.8, 16.8), 1.0, SIZE)[red].all()


def test_edits_hold_at_all_times_and_leave_the_rest_alone(layers):
    model, red = layers
    before = {name: value.detach().clone() for name, value in model.gaussians.items()}
    times = [0.0, 0.6, 1.0]
    plain = model.video(times, SIZE)

    removed = model.edited(red, remove=True)
    assert removed.count == int((~red).sum())
    still = removed.video(times, SIZE)
    assert torch.equal(still[0], still[2])
    assert (still[0, 12, 11] - torch.tensor([26, 204, 51])).abs().max() <= 8

    blue = model.edited(red, color=(0.0, 0.0, 1.0)).video(times, SIZE)
    dark = model.edited(red, color=lambda chosen: chosen * 0.5).video(times, SIZE)
    moved = model.edited(red, shift=(0.4, 0.0, 0.0)).video(times, SIZE)
    far_away = (slice(None), slice(None), slice(28, 32))
    for other in (blue, dark, moved):
        assert torch.equal(other[far_away], plain[far_away])
    for t, frame in enumerate((12, 10, 9)):
        x = [11, 14, 17][t]
        assert blue[t, frame, x, 2] > 200
        assert dark[t, frame, x, 0] < 140 < plain[t, frame, x, 0]
    # 0.4 units are 4.8 pixels: what was at x is between x + 4 and x + 5.
    assert moved[0, 12, 16, 0] > 150 > plain[0, 12, 16, 0]
    for name, value in model.gaussians.items():
        assert torch.equal(value, before[name])
    with pytest.raises(ValueError, match="bools"):
        model.edited(red[:-1], remove=True)


@pytest.mark.parametrize("kind", ["ortho", "pinhole"])
def test_stereo_shifts_by_depth_around_the_focus(kind):
    near, far = [-0.4, 0.0, 1.5], [0.4, 0.0, 2.0]
    means, colors = torch.tensor([near, far]), torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    if kind == "ortho":
        model = vknn.CanonicalGaussianVideo(means, torch.full((2, 1), -2.5), colors)
    else:
        model = vknn.HierarchicalGaussianVideo(
            means[:, None].expand(2, 4, 3), torch.full((2, 1), -2.5), colors, camera=False
        )
    left, right = model.stereo(0.0, (40, 80), 0.2, focus=2.0)
    x = torch.arange(80) + 0.5

    def centre(picture, channel):
        weight = picture[..., channel].float().sum(0)
        return float((weight * x).sum() / weight.sum())

    assert centre(left, 1) == pytest.approx(centre(right, 1), abs=0.05)  # in the plane of the screen
    # Ortho: baseline * (focus - z) units; pinhole: focal * baseline * (1 / z - 1 / focus) units, of 20 pixels each.
    disparity = 0.2 * 0.5 * 20 if kind == "ortho" else 2 * 0.2 * (1 / 1.5 - 1 / 2) * 20
    assert centre(left, 0) - centre(right, 0) == pytest.approx(disparity, abs=0.1)  # nearer: crossed


@pytest.mark.parametrize("kind", ["ortho", "pinhole"])
def test_unproject_inverts_screen(layers, kind):
    model = layers[0] if kind == "ortho" else moving_camera()
    with torch.no_grad():
        place = model.screen(0.7, SIZE)[0]
        world = model.centres(torch.tensor([0.7]))[0]
        back = model.unproject(place[:, :2], place[:, 2], 0.7, SIZE)
    torch.testing.assert_close(back, world, atol=1e-4, rtol=1e-4)


def test_labels_are_composited(layers):
    model, _ = layers
    video = model.video([0.0], SIZE)
    labels = (video[..., 0] > 128).long()
    depth = torch.where(labels > 0, 0.5, 1.0)
    other = vknn.CanonicalGaussianVideo.from_video(
        video, 400, depth=depth, labels=labels, generator=torch.Generator().manual_seed(0)
    )
    seen = other.render(0.0, SIZE)
    assert seen.labels.shape == (*SIZE, 2)
    named = other.select_by_label(1)
    assert torch.equal(named, other.gaussians["means"][:, 2] < 1)  # 0 near, 2 far
    with pytest.raises(ValueError, match="no labels"):
        model.select_by_label(1)
    torch.testing.assert_close(seen.labels.sum(2), seen.alpha, atol=1e-4, rtol=0)
    assert ((seen.labels[..., 1] > 0.5 * seen.alpha) == (labels[0] > 0)).float().mean() > 0.9


def test_starting_from_pixels_uses_the_priors():
    video = torch.randint(0, 256, (3, 8, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flow = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand(2, 2, 8, 10)
    model = vknn.CanonicalGaussianVideo.from_video(video, 50, flow=flow, generator=torch.Generator().manual_seed(1))
    path = model.screen([0.0, 0.5, 1.0], (8, 10)).detach()[..., :2]
    torch.testing.assert_close(path[1] - path[0], torch.tensor([1.0, -2.0]).expand(50, 2), atol=1e-4, rtol=0)
    # In one of the frames each Gaussian sits on a pixel's centre and has its colour.
    hits = 0
    for t in range(3):
        column, row = (path[t] - 0.5).round().long().unbind(1)
        good = (column >= 0) & (column < 10) & (row >= 0) & (row < 8)
        colour = video[t, row.clamp(0, 7), column.clamp(0, 9)].float() / 255
        hits = hits + (good & ((colour - model.gaussians["colors"]).abs().amax(1) < 1e-6)).int()
    assert (hits > 0).all()


def test_refined_spline_is_the_same_curve():
    points = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = torch.linspace(0, 1, 23, dtype=torch.float64)
    finer = hierarchical.refine_bspline(points)
    assert finer.shape == (5, 9, 3)
    torch.testing.assert_close(
        vkf.motion_eval(finer, times, "bspline"), vkf.motion_eval(points, times, "bspline"), atol=1e-12, rtol=0
    )
    with pytest.raises(ValueError, match="K >= 4"):
        hierarchical.refine_bspline(points[:, :3])


def test_inserting_controls_changes_no_picture():
    model = moving_camera()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model(0.3, SIZE).sum().backward()
    optimizer.step()
    before = model.video([0.2, 0.9], SIZE).int()
    assert model.insert_controls(optimizer) == 7
    assert (model.video([0.2, 0.9], SIZE).int() - before).abs().max() <= 1
    assert optimizer.state[model.gaussians["points"]]["exp_avg"].shape == (20, 7, 3)
    assert (optimizer.state[model.gaussians["points"]]["exp_avg_sq"] >= 0).all()


def test_camera_solves_its_equation():
    integrate = pytest.importorskip("scipy.integrate")
    camera = moving_camera(torch.float64).camera
    times = torch.tensor([0.9, 0.0, 0.35, 1.0, 0.35], dtype=torch.float64)
    with torch.no_grad():
        path = camera(times)

        def field(t, state):
            return camera.velocity(torch.tensor(t, dtype=torch.float64), torch.from_numpy(state)).numpy()

        exact = integrate.solve_ivp(field, (0, 1), camera.start.numpy(), dense_output=True, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(path, torch.from_numpy(exact.sol(times.numpy()).T), atol=1e-5, rtol=0)
        # A view does not depend on which others are asked for.
        torch.testing.assert_close(camera(times[2:3])[0], path[2], atol=1e-7, rtol=0)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        camera(torch.tensor([1.2]))


def test_camera_starts_at_rest():
    pytest.importorskip("torchdiffeq")
    camera = vknn.CameraODE()
    assert not camera(torch.tensor([0.0, 0.5, 1.0])).detach().any()
    camera(torch.tensor([0.7])).sum().backward()
    assert camera.field[2].bias.grad.abs().sum() > 0


def test_rows_at_pixels_land_there():
    model = moving_camera()
    pixels = torch.tensor([[4.5, 6.5], [20.5, 11.5]])
    rows = model.rows_at(pixels, torch.rand(2, 3), 0.6, SIZE, spread=0.05)
    density.append_gaussians(model.gaussians, None, rows)
    torch.testing.assert_close(model.screen(0.6, SIZE)[0, -2:, :2].detach(), pixels, atol=1e-3, rtol=0)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="means and colors"):
        vknn.CanonicalGaussianVideo(torch.zeros(2, 2), torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="K >= 4"):
        vknn.HierarchicalGaussianVideo(torch.zeros(2, 3, 3), torch.zeros(2, 3), torch.zeros(2, 3))
