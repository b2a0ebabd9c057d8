"""The renderers as modules: one sorted composite, locality of particles, rigid skinning."""

import pytest
import torch
from torch.nn import functional as F

from vidkernels import functional as vkf
from vidkernels import nn as vknn


def blob(centre, color, sharp=30.0):
    centre, color = torch.tensor(centre), torch.tensor(color)

    def field(points, directions):
        density = sharp * torch.exp(-((points - centre) ** 2).sum(-1) * 8)
        return density, color.expand(*points.shape[:-1], 3)

    return field


def rays(count, generator):
    directions = torch.cat([torch.rand(count, 2, generator=generator) - 0.5, torch.ones(count, 1)], 1)
    return torch.zeros(count, 3), directions


@pytest.mark.parametrize("training", [False, True])
def test_layers_equal_a_single_sorted_composite(training, generator):
    near, far = vknn.VolumeRenderer(1.0, 3.0, 16, importance=24), vknn.VolumeRenderer(0.5, 6.0, 33)
    both = vknn.LayeredVolumeRenderer([near, far]).train(training)
    fields = [blob((0.0, 0.0, 2.0), (1.0, 0, 0)), blob((0.3, 0.1, 2.2), (0, 0.5, 1.0))]
    origins, directions = rays(50, generator)
    state = generator.get_state()
    out, weights, left, order = both(fields, origins, directions, generator)
    generator.set_state(state)
    samples = []
    for layer, field in zip((near, far), fields):
        density, color, t = layer.sample(field, origins, directions, generator)
        samples.append([density.double(), color.double(), t.double()])
    for r in range(50):  # every sample of the ray in one list, sorted, composited by a plain loop
        one = []
        for density, color, t in samples:
            for s in range(density.shape[1]):
                alpha = 1 - torch.exp(-density[r, s] * (t[r, s + 1] - t[r, s]))
                one.append(((t[r, s] + t[r, s + 1]) / 2, alpha, color[r, s]))
        one.sort(key=lambda sample: float(sample[0]))
        keep, total = 1.0, torch.zeros(3, dtype=torch.float64)
        for _, alpha, color in one:
            total, keep = total + keep * alpha * color, keep * (1 - alpha)
        torch.testing.assert_close(out[r].double(), total, rtol=0, atol=1e-5)
        assert abs(float(left[r]) - float(keep)) <= 1e-5
    assert (weights.sum(1) <= 1 + 1e-5).all()
    assert order.shape == weights.shape


def test_order_of_the_layers_does_not_matter(generator):
    layers = [vknn.VolumeRenderer(1.0, 3.0, 16), vknn.VolumeRenderer(0.5, 6.0, 33)]
    fields = [blob((0.0, 0.0, 2.0), (1.0, 0, 0)), blob((0.3, 0.1, 2.2), (0, 0.5, 1.0))]
    origins, directions = rays(20, generator)
    a = vknn.LayeredVolumeRenderer(layers).eval()(fields, origins, directions)[0]
    b = vknn.LayeredVolumeRenderer(layers[::-1]).eval()(fields[::-1], origins, directions)[0]
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="one field per layer"):
        vknn.LayeredVolumeRenderer(layers)(fields[:1], origins, directions)


def test_importance_sampling_finds_a_surface(generator):
    """Where does an opaque half space begin? 64 even intervals of 10 / 64 against 64 placed by a first rendering."""
    half_space = lambda p, d: (2000.0 * (p[..., 2] > 3.33), torch.ones_like(p))  # noqa: E731
    origins, directions = rays(200, generator)
    errors = []
    for importance in (0, 64):
        renderer = vknn.VolumeRenderer(0.0, 10.0, 64, importance)
        _, weights, _, t = renderer(half_space, origins, directions, generator)
        errors.append(((weights * t[:, :-1]).sum(1) - 3.33).abs().mean())
    assert errors[1] < errors[0] / 4


def test_particles_act_within_their_radius_only(generator):
    renderer = vknn.PointRayRenderer(6, radius=0.3, near=0.5, far=4.0, samples=64, k=4).eval()
    positions = torch.tensor([[0.0, 0, 2.0], [0.05, 0, 2.0], [1.5, 0, 2.0]])
    features = torch.randn(3, 6, generator=generator)
    _, directions = vkf.pixel_rays(torch.tensor([[10.0, 0, 8], [0, 10, 8], [0, 0, 1]]), torch.eye(4), (16, 16))
    directions = directions.reshape(-1, 3)
    origins = torch.zeros_like(directions)
    full, weights, left, _ = renderer(positions, features, origins, directions)
    less, _, _, _ = renderer(positions[:2], features[:2], origins, directions)
    # Distance of each ray from the third particle.
    along = F.normalize(directions, dim=1)
    away = (positions[2] - (along @ positions[2])[:, None] * along).norm(dim=1)
    assert torch.equal(full[away > 0.3], less[away > 0.3])
    assert (full - less)[away < 0.15].abs().max() > 0.01
    assert (weights.sum(1) + left - 1).abs().max() < 1e-5
    none = renderer(positions[:0], features[:0], origins, directions, background=torch.tensor([0.2, 0.4, 0.6]))[0]
    torch.testing.assert_close(none, torch.tensor([0.2, 0.4, 0.6]).expand_as(none))
    full.sum().backward()
    assert all(p.grad is not None for p in renderer.parameters())


def test_inverse_skinning_undoes_a_pose():
    """Upper and lower arm; points on the bones come back to where they were, points elsewhere are unlikely."""
    joints = torch.tensor([[0.0, 0, 0], [1.0, 0, 0]])
    tails = torch.tensor([[1.0, 0, 0], [2.0, 0, 0]])
    skin = vknn.InverseLBS(joints, tails, torch.tensor([[-1.0, -1, -1], [3, 1, 1]]), resolution=48, width=0.1)
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    motion = vkf.bone_transforms(joints, (-1, 0), torch.stack([torch.eye(3), turn]), torch.tensor([0.0, 0, 0.5]))
    rest = torch.tensor([[0.2, 0.05, 0.0], [0.5, 0, 0.1], [1.6, 0.05, 0], [1.9, -0.05, 0.05]])
    bone = [0, 0, 1, 1]
    posed = torch.stack([(motion[k] @ torch.cat([x, torch.ones(1)]))[:3] for k, x in zip(bone, rest)])
    back, likelihood = skin(posed, motion)
    torch.testing.assert_close(back, rest, rtol=0, atol=0.02)
    assert (likelihood > 0.7).all()
    far, nobody = skin(torch.tensor([[50.0, 0, 0], [0.5, 0.9, 0.5]]), motion)
    assert nobody.max() < 0.05
    assert far.isfinite().all()
    still, _ = skin(rest, torch.eye(4).expand(2, 4, 4))
    torch.testing.assert_close(still, rest, rtol=0, atol=1e-5)
    skin(posed, motion)[0].sum().backward()
    assert skin.logits.grad.abs().max() > 0


def test_mpi_renderer_keeps_disparities_with_the_weights():
    renderer = vknn.MPIRenderer(5, near=1.0, far=10.0)
    torch.testing.assert_close(renderer.disparities, torch.linspace(1, 0.1, 5))
    k = torch.tensor([[8.0, 0, 4], [0, 8, 4], [0, 0, 1]])
    planes = torch.rand(1, 5, 8, 8, 4)
    image = renderer(planes, k, k, torch.eye(4))[0]
    torch.testing.assert_close(image, vkf.render_mpi(planes, renderer.disparities, k, k, torch.eye(4))[0])
    with pytest.raises(ValueError, match="0 < near < far"):
        vknn.MPIRenderer(5, near=2.0, far=1.0)
