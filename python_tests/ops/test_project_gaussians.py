"""project_gaussians: closed forms that pin the reference, culling, independent gradients, refusals."""

import math

import pytest
import torch

from vidkernels.functional.splatting.project import project_gaussians
from vidkernels.ops.project_gaussians import reference
from vidkernels.ops.project_gaussians.cases import CASES
from vidkernels.testing import arguments

BACKENDS = ("reference", "cpu")
IDENTITY = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)


def camera(fx=100.0, fy=80.0, cx=32.0, cy=24.0):
    return torch.tensor([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]], dtype=torch.float64)


def eye():
    return torch.eye(4, dtype=torch.float64)[None]


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gaussian_on_the_axis_by_hand(backend):
    """On the optical axis J = diag(f / z): a variance s^2 becomes (f s / z)^2."""
    seen = project_gaussians(row(0, 0, 4), IDENTITY, row(0.2, 0.1, 0.7), eye(), camera(), 64, 48, backend=backend)
    xx, yy = (100 * 0.2 / 4) ** 2 + 0.3, (80 * 0.1 / 4) ** 2 + 0.3
    assert seen.means2d[0, 0].tolist() == [32, 24]
    assert seen.depths[0, 0].item() == 4
    torch.testing.assert_close(seen.conics[0, 0], torch.tensor([1 / xx, 0, 1 / yy], dtype=torch.float64))
    assert seen.radii[0, 0].tolist() == [math.ceil(3.33 * math.sqrt(xx)), math.ceil(3.33 * math.sqrt(yy))]
    assert seen.radii.dtype is torch.int32
    assert seen.compensations.item() == pytest.approx(math.sqrt((xx - 0.3) * (yy - 0.3) / (xx * yy)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_camera_conventions(backend):
    """World to camera, +z ahead, x right, y down; quaternions (w, x, y, z)."""
    turn = torch.tensor([[0.0, 0, -1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    turn[:3, 3] = torch.tensor([0.5, -0.25, 1.0])
    # p = (-z + 0.5, y - 0.25, x + 1)
    seen = project_gaussians(
        row(3, 0.75, 0), IDENTITY, row(0.1, 0.1, 0.1), turn[None], camera(), 64, 48, backend=backend
    )
    assert seen.depths.item() == 4
    assert seen.means2d[0, 0].tolist() == [32 + 100 * 0.5 / 4, 24 + 80 * 0.5 / 4]
    # A quarter turn about z swaps the axes of the image.
    quarter = row(math.sqrt(0.5), 0, 0, math.sqrt(0.5))
    a = project_gaussians(row(0, 0, 4), 7 * quarter, row(0.2, 0.1, 0.3), eye(), camera(fy=100), 64, 48, backend=backend)
    b = project_gaussians(row(0, 0, 4), IDENTITY, row(0.1, 0.2, 0.3), eye(), camera(fy=100), 64, 48, backend=backend)
    torch.testing.assert_close(a.conics, b.conics)


def test_jacobian_is_the_derivative_of_the_projection():
    """Off the axis and inside the frustum, the covariance is J Sigma J^T with J from autograd of x/z, y/z."""
    g = torch.Generator().manual_seed(3)
    root = torch.randn(3, 3, generator=g, dtype=torch.float64) * 0.1
    sigma = root @ root.mT
    mean, K = row(0.3, -0.2, 2.5), camera()

    def image(p):
        return torch.stack((100 * p[0] / p[2] + 32, 80 * p[1] / p[2] + 24))

    J = torch.autograd.functional.jacobian(image, mean[0])
    cov = J @ sigma @ J.mT + 0.3 * torch.eye(2)
    expected = torch.linalg.inv(cov)
    seen = project_gaussians(mean, None, None, eye(), K, 64, 48, covars=sigma[None])
    torch.testing.assert_close(seen.conics[0, 0], torch.stack((expected[0, 0], expected[0, 1], expected[1, 1])))
    six = sigma[(0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)][None]
    torch.testing.assert_close(project_gaussians(mean, None, None, eye(), K, 64, 48, covars=six).conics, seen.conics)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", [-1, 1])
def test_frustum_clamp_by_hand(backend, side):
    """Far beside the image the Jacobian is that of the point 15 % of the width outside it; the mean is not moved."""
    args = row(30, 30, 30), eye(), camera(cx=20.0), 64, 48
    seen = project_gaussians(row(side * 40.0, 0, 10), IDENTITY, *args, backend=backend)
    assert seen.means2d[0, 0, 0].item() == 20 + side * 400
    ratio = (64 - 20 + 9.6) / 100 if side > 0 else -(20 + 9.6) / 100
    xx = (100 / 10 * 30) ** 2 + (100 * ratio / 10 * 30) ** 2 + 0.3
    yy = (80 / 10 * 30) ** 2 + 0.3
    assert seen.radii[0, 0].tolist() == [math.ceil(3.33 * math.sqrt(xx)), math.ceil(3.33 * math.sqrt(yy))]
    near = project_gaussians(row(side * 40.0, 0, 10), IDENTITY, row(3, 3, 3), *args[1:], backend=backend)
    assert not near.radii.any()  # 420 or 380 pixels away, and a radius below 120


@pytest.mark.parametrize("backend", BACKENDS)
def test_orthographic_by_hand(backend):
    seen = project_gaussians(
        row(0.1, -0.05, 7), IDENTITY, row(0.02, 0.03, 5), eye(), camera(), 64, 48, camera_model="ortho", backend=backend
    )
    torch.testing.assert_close(seen.means2d[0, 0], torch.tensor([42.0, 20.0], dtype=torch.float64))
    expected = torch.tensor([1 / (4 + 0.3), 0, 1 / (5.76 + 0.3)], dtype=torch.float64)
    torch.testing.assert_close(seen.conics[0, 0], expected)
    assert seen.depths.item() == 7


@pytest.mark.parametrize("backend", BACKENDS)
def test_culling(backend):
    means = torch.tensor(
        [
            [0, 0, 5],  # seen
            [0, 0, 0.005],  # before the near plane
            [0, 0, -5],
            [0, 0, 200],  # behind the far plane
            [20, 0, 5],  # beside the image
            [float("nan"), 0, 5],
            [0, float("inf"), 5],
            [0, 0, 5],  # no rotation
            [0, 0, 5],  # not finite
        ],
        dtype=torch.float64,
    ).requires_grad_()
    quats = IDENTITY.expand(9, 4).clone()
    quats[7] = 0
    scales = torch.full((9, 3), 0.1, dtype=torch.float64)
    scales[8, 0] = float("inf")
    quats, scales = quats.requires_grad_(), scales.requires_grad_()
    view, K = eye().requires_grad_(), camera().requires_grad_()
    seen = project_gaussians(means, quats, scales, view, K, 64, 48, far_plane=100.0, backend=backend)
    assert (seen.radii > 0).all(-1).tolist() == [[True] + [False] * 8]
    for out in seen:
        assert not out[:, 1:].any()
    leaves = (means, quats, scales, view, K)
    grads = torch.autograd.grad(sum(o.sum() for o in seen if o.requires_grad), leaves)
    assert all(g.isfinite().all() for g in grads)
    assert all(not g[1:].any() for g in grads[:3])
    assert grads[0][0].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_flat_and_clipped_gaussians(backend):
    """Determinant 0 is culled only without blur; radius_clip asks for both radii."""
    args = (row(0, 0, 4), IDENTITY, row(0.2, 0.0, 0.0), eye(), camera(), 64, 48)
    assert not project_gaussians(*args, eps2d=0.0, backend=backend).radii.any()
    blurred = project_gaussians(*args, backend=backend)
    assert blurred.radii[0, 0].tolist() == [math.ceil(3.33 * math.sqrt(25.3)), 2]
    assert blurred.compensations.item() == 0.005
    assert project_gaussians(*args, radius_clip=2.0, backend=backend).radii.any()
    assert not project_gaussians(*args, radius_clip=17.0, backend=backend).radii.any()


def test_gradients_against_autograd_of_the_reference():
    """The explicit backward pass equals autograd through the forward formulas, clamped frustum included."""
    for case in CASES["project_gaussians"]:
        if case.kind not in ("tiny", "odd"):
            continue
        args = list(arguments(case, torch.float64))
        args[0] = args[0] * torch.tensor([1.6, 1.6, 1.0])  # more of them beyond the border
        leaves = [a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
        inputs = [a for a in leaves if isinstance(a, torch.Tensor)]
        outputs = reference.project_gaussians(*leaves)
        g = torch.Generator().manual_seed(0)
        weights = [torch.randn(o.shape, generator=g, dtype=o.dtype) for o in outputs]
        expected = torch.autograd.grad(outputs, inputs, weights)
        rest = (args[5], args[6], args[7], args[11], True)
        actual = reference.project_gaussians_backward(*weights, *args[:5], outputs[3].detach(), *rest)
        for a, e in zip([x for x in actual if x.numel()], expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


def test_leading_axes_and_half_precision():
    g = torch.Generator().manual_seed(0)
    means = torch.rand(2, 3, 5, 3, generator=g) - 0.5 + torch.tensor([0.0, 0, 3])
    quats, scales = torch.randn(2, 3, 5, 4, generator=g), torch.rand(2, 3, 5, 3, generator=g) * 0.1
    views, Ks = eye().float().expand(2, 3, 4, 4, 4), camera().float().expand(2, 3, 4, 3, 3)
    seen = project_gaussians(means, quats, scales, views, Ks, 64, 48)
    assert [list(o.shape[4:]) for o in seen] == [[2], [3], [], [2], []]
    assert all(o.shape[:4] == (2, 3, 4, 5) for o in seen)
    alone = project_gaussians(means[1, 2], quats[1, 2], scales[1, 2], views[1, 2], Ks[1, 2], 64, 48)
    for a, b in zip(seen, alone, strict=True):
        assert torch.equal(a[1, 2], b)
    half = project_gaussians(means.half(), quats.half(), scales.half(), views, Ks, 64, 48)
    wide = project_gaussians(means.half().float(), quats.half().float(), scales.half().float(), views, Ks, 64, 48)
    assert half.means2d.dtype is torch.float32
    assert torch.equal(half.conics, wide.conics)


def test_refusals():
    good = (row(0, 0, 4), IDENTITY, row(1, 1, 1), eye(), camera(), 64, 48)
    with pytest.raises(ValueError, match=r"expected either quats and scales, or covars(.|\n)*means *: shape="):
        project_gaussians(*good, covars=torch.ones(1, 6))
    with pytest.raises(ValueError, match="expected `camera_model`"):
        project_gaussians(*good, camera_model="fisheye")
    with pytest.raises(ValueError, match=r"same leading axes(.|\n)*HINT: viewmats.expand"):
        project_gaussians(good[0].expand(2, 1, 3), IDENTITY.expand(2, 1, 4), good[2].expand(2, 1, 3), *good[3:])
    with pytest.raises(ValueError, match=r"`quats` of shape \[..., N, 4\]"):
        project_gaussians(good[0], row(1, 0, 0), *good[2:])
    with pytest.raises(ValueError, match="at least 1"):
        project_gaussians(*good[:5], 0, 48)
    with pytest.raises(TypeError, match=r"expected `Ks` to be a torch\.Tensor"):
        project_gaussians(*good[:4], None, 64, 48)
