"""Multiplane images, rays, particles and skeletons against closed forms and plain loops."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from vidkernels import functional as vkf

K = torch.tensor([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])


def pose(angles=(0.0, 0.0, 0.0), shift=(0.0, 0.0, 0.0)):
    out = torch.eye(4)
    out[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", angles).as_matrix()).float()
    out[:3, 3] = torch.tensor(shift)
    return out


def test_homography_is_the_ray_plane_intersection():
    """Without a homography: cast the ray of the target pixel, hit z = depth in the source frame, project."""
    move = pose((0.1, -0.2, 0.05), (0.3, -0.1, 0.2))
    target = torch.tensor([[30.0, 0, 7], [0, 25, 5], [0, 0, 1]])
    disparities = torch.tensor([1.0, 0.4, 0.1])
    h = vkf.mpi_homographies(disparities, K, target, move)[0].double()
    back = torch.linalg.inv(move.double())
    for d, disparity in enumerate(disparities.tolist()):
        for pixel in ((0.5, 0.5), (9.0, 3.0), (15.5, 11.5)):
            ray = torch.linalg.inv(target.double()) @ torch.tensor([*pixel, 1.0]).double()
            origin, along = back[:3, 3], back[:3, :3] @ ray
            hit = origin + along * ((1 / disparity - origin[2]) / along[2])
            expected = K.double() @ hit / hit[2]
            got = h[d] @ torch.tensor([*pixel, 1.0]).double()
            torch.testing.assert_close(got / got[2], expected, rtol=1e-5, atol=1e-4)


def test_identity_camera_is_plain_compositing():
    g = torch.Generator().manual_seed(0)
    planes = torch.rand(2, 5, 12, 16, 4, generator=g)
    image, weights, left = vkf.render_mpi(planes, torch.linspace(1, 0.1, 5), K, K, torch.eye(4))
    flat = planes.permute(0, 2, 3, 1, 4)
    expected = vkf.composite(flat[..., :3], flat[..., 3])
    for a, e in zip((image, weights, left), expected):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-5)


def test_parallax_shifts_each_plane_by_its_disparity():
    """Camera moves sideways by b: a plane moves by focal * b * disparity pixels."""
    ramp = torch.arange(16.0).expand(12, 16)
    planes = torch.stack([ramp, ramp, ramp, torch.ones_like(ramp)], -1)[None, None].repeat(1, 2, 1, 1, 1)
    planes[:, 0, ..., 3] = 0  # see only the far plane
    for plane, disparity in ((0, 0.5), (1, 0.1)):
        shown = planes.clone()
        shown[:, :, ..., 3] = 0
        shown[:, plane, ..., 3] = 1
        image, _, left = vkf.render_mpi(shown, torch.tensor([0.5, 0.1]), K, K, pose(shift=(-0.25, 0, 0)))
        moved = 20 * 0.25 * disparity
        inner = slice(3, 12)
        torch.testing.assert_close(image[0, :, inner, 0], ramp[:, inner] + moved, rtol=0, atol=1e-4)
        assert left[0, :, inner].abs().max() == 0


def test_planes_behind_the_camera_and_outside_are_empty():
    planes = torch.ones(1, 2, 12, 16, 4)
    _, weights, left = vkf.render_mpi(planes, torch.tensor([1.0, 0.1]), K, K, pose(shift=(0, 0, -3.0)))
    assert weights[..., 0].abs().max() == 0  # the camera has passed the plane at depth 1
    assert weights[0, 6, 8, 1] == 1
    _, _, left = vkf.render_mpi(planes, torch.tensor([1.0, 0.1]), K, K, pose(shift=(100.0, 0, 0)))
    assert left.min() == 1


def test_mpi_gradients():
    g = torch.Generator().manual_seed(1)
    planes = torch.rand(1, 3, 4, 5, 4, generator=g, dtype=torch.float64, requires_grad=True)
    disparities = torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    move = pose((0.02, 0.03, 0.01), (0.011, 0.023, 0.017)).double().requires_grad_()
    k = torch.tensor([[5.0, 0, 2.5], [0, 5, 2], [0, 0, 1]], dtype=torch.float64)
    # Away from the border: there alpha is cut, which has no derivative.
    inner = lambda p, m: vkf.render_mpi(p, disparities, k, k, m)[0][:, 1:3, 1:4]  # noqa: E731
    assert torch.autograd.gradcheck(inner, (planes, move))


def test_rays_and_depth_are_inverse_to_projection():
    world = pose((0.3, 0.1, -0.2), (1.0, 2.0, -0.5))
    depth = torch.rand(6, 8) + 1
    points = vkf.unproject_depth(depth, K, world)
    camera = (points.reshape(-1, 3) - world[:3, 3]) @ world[:3, :3]
    torch.testing.assert_close(camera[:, 2].view(6, 8), depth, rtol=1e-5, atol=1e-5)
    pixel = camera @ K.T
    pixel = (pixel[:, :2] / pixel[:, 2:]).view(6, 8, 2)
    torch.testing.assert_close(pixel[3, 5], torch.tensor([5.5, 3.5]), rtol=1e-4, atol=1e-4)


def test_constant_fog_obeys_beers_law_for_any_sampling(generator):
    for jitter in (False, True):
        t = vkf.stratified_samples(0.5, 3.0, 7, 40, generator, jitter=jitter)
        assert (t.diff(dim=1) >= 0).all()
        assert (t[:, 0] == 0.5).all()
        torch.testing.assert_close(t[:, -1], torch.full((7,), 3.0))
        out, _, left = vkf.render_rays(torch.full((7, 40), 0.8), torch.full((7, 40, 1), 2.0), t)
        torch.testing.assert_close(left, torch.full((7,), math.exp(-0.8 * 2.5)), rtol=1e-5, atol=0)
        torch.testing.assert_close(out[:, 0], 2 * (1 - left))


def test_importance_samples_follow_the_weights(generator):
    t = torch.linspace(0, 1, 11).expand(4, -1)
    weights = torch.zeros(4, 10)
    weights[:, 3], weights[:, 7] = 0.6, 0.2
    drawn = vkf.importance_samples(t, weights, 400, generator)
    assert (drawn.diff(dim=1) >= 0).all()
    inside = lambda a, b: ((drawn > a) & (drawn < b)).float().mean().item()  # noqa: E731
    assert inside(0.3, 0.4) == pytest.approx(0.75, abs=0.02)
    assert inside(0.7, 0.8) == pytest.approx(0.25, abs=0.02)
    empty = vkf.importance_samples(t, torch.zeros(4, 10), 10, jitter=False)
    torch.testing.assert_close(empty, t.contiguous(), rtol=0, atol=1e-6)


def test_contraction_keeps_the_inside_and_bounds_the_outside():
    x = torch.randn(1000, 3) * torch.logspace(-2, 6, 1000)[:, None]
    y = vkf.contract(x)
    near = x.norm(dim=1) <= 1
    assert torch.equal(y[near], x[near])
    assert (y.norm(dim=1) <= 2 + 1e-6).all()
    order = x.norm(dim=1).argsort()
    assert (y.norm(dim=1)[order].diff() >= -1e-6).all()
    eps = torch.tensor([[1e-3, 0, 0]])
    torch.testing.assert_close(vkf.contract(eps + torch.tensor([[1.0, 0, 0]]))[0, 0], torch.tensor(2 - 1 / 1.001))


def test_farthest_points_is_the_greedy_cover(generator):
    points = torch.randn(60, 3, generator=generator)
    index = vkf.farthest_points(points, 12, start=5)
    assert index[0] == 5
    assert len(set(index.tolist())) == 12
    for i in range(1, 12):
        away = torch.cdist(points, points[index[:i]]).amin(1)
        assert away[index[i]] == pytest.approx(away.max().item(), rel=1e-5)
    with pytest.raises(ValueError, match="farthest_points: expected `count`"):
        vkf.farthest_points(points, 61)


def test_nearest_points_agree_with_a_sort_and_have_gradients(generator):
    points = torch.randn(40, 3, generator=generator, dtype=torch.float64) + 100
    queries = torch.randn(17, 3, generator=generator, dtype=torch.float64) + 100
    distance, index = vkf.nearest_points(queries, points, 5, chunk=100)
    full = (queries[:, None] - points).square().sum(-1).sqrt()
    torch.testing.assert_close(distance, full.sort(1).values[:, :5])
    torch.testing.assert_close(full.gather(1, index), distance)
    queries.requires_grad_(), points.requires_grad_()
    assert torch.autograd.gradcheck(lambda q, p: vkf.nearest_points(q, p, 3)[0], (queries, points))
    same = points.detach()[:2].clone().requires_grad_()
    vkf.nearest_points(same, points.detach(), 1)[0].sum().backward()
    assert same.grad.abs().max() == 0


def test_bones_carry_their_children():
    joints = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    rotations = torch.stack([torch.eye(3), turn, turn])
    m = vkf.bone_transforms(joints, (-1, 0, 1), rotations, torch.tensor([0.0, 0, 5]))
    at = lambda k, x: (m[k] @ torch.tensor([*x, 1.0]))[:3].tolist()  # noqa: E731
    assert at(0, (1, 0, 0)) == [1, 0, 5]
    assert at(1, (2, 0, 0)) == [1, 1, 5]
    assert at(2, (3, 0, 0)) == [0, 1, 5]  # elbow and wrist each turn by a right angle
    with pytest.raises(ValueError, match="parent of bone 0"):
        vkf.bone_transforms(joints, (1, -1, 1), rotations)
