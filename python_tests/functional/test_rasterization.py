"""rasterization against a dense float64 renderer that is written here; conventions, modes, gradients, refusals."""

import math

import pytest
import torch

from vidkernels.functional.splatting.harmonics import spherical_harmonics
from vidkernels.functional.splatting.project import project_gaussians
from vidkernels.functional.splatting.rasterization import rasterization
from vidkernels.functional.splatting.tiles import isect_offset_encode, isect_tiles
from vidkernels.integrations import gsplat

W, H = 22, 17


def look_at(eye, target):
    """World to camera, +z towards the target, y down."""
    ahead = torch.nn.functional.normalize(target - eye, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(ahead, torch.tensor([0.0, -1, 0]).to(eye)), dim=0)
    turn = torch.stack((right, torch.linalg.cross(ahead, right), ahead))
    out = torch.eye(4, dtype=eye.dtype)
    out[:3, :3], out[:3, 3] = turn, -turn @ eye
    return out


def scene(count=9, views=2, channels=3, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    means = (torch.rand(count, 3, generator=g) - 0.5) * torch.tensor([1.2, 0.9, 1.5])
    quats, scales = torch.randn(count, 4, generator=g), 0.05 + 0.15 * torch.rand(count, 3, generator=g)
    opacities, colors = 0.3 + 0.69 * torch.rand(count, generator=g), torch.rand(count, channels, generator=g)
    eyes = torch.tensor([[0.4, -0.3, -3.0], [-1.5, 0.5, -2.5], [2.0, 1.0, 1.0]], dtype=torch.float64)[:views]
    viewmats = torch.stack([look_at(e, torch.zeros(3, dtype=torch.float64)) for e in eyes])
    K = torch.tensor([[24.0, 0, 10.3], [0, 21, 8.9], [0, 0, 1]])
    inputs = (means, quats, scales, opacities, colors, viewmats, K.expand(views, 3, 3))
    return tuple(t.to(dtype) for t in inputs)


def quaternion_matrix(q):
    """By rotating the axes: v + 2 w (u x v) + 2 u x (u x v), another formula than the library's."""
    q = q / q.norm()
    w, u = q[0], q[1:]
    columns = []
    for axis in torch.eye(3, dtype=q.dtype):
        once = torch.linalg.cross(u, axis)
        columns.append(axis + 2 * w * once + 2 * torch.linalg.cross(u, once))
    return torch.stack(columns, 1)


def dense(means, quats, scales, opacities, colors, viewmats, Ks, background=None, ortho=False, antialiased=False):
    """One Gaussian and one camera at a time, every pixel, plain formulas; differentiable by autograd."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=means.dtype) + 0.5 for n in (H, W)), indexing="ij")
    images, alphas, all_depths = [], [], []
    for view, K in zip(viewmats, Ks):
        points = means @ view[:3, :3].mT + view[:3, 3]
        light, image = torch.ones(H, W, dtype=means.dtype), torch.zeros(H, W, colors.shape[-1], dtype=means.dtype)
        depth = torch.zeros(H, W, dtype=means.dtype)
        open_ = torch.ones(H, W, dtype=torch.bool)
        for n in points[:, 2].argsort().tolist():
            p = points[n]
            if p[2] < 0.01:
                continue
            root = quaternion_matrix(quats[n]) @ torch.diag(scales[n])
            sigma = view[:3, :3] @ root @ root.mT @ view[:3, :3].mT
            zero = torch.zeros_like(p[2])
            if ortho:
                mean = K[:2, 2] + torch.stack((K[0, 0] * p[0], K[1, 1] * p[1]))
                J = torch.stack((torch.stack((K[0, 0], zero, zero)), torch.stack((zero, K[1, 1], zero))))
            else:
                mean = K[:2, 2] + torch.stack((K[0, 0] * p[0], K[1, 1] * p[1])) / p[2]
                J = torch.stack(
                    (
                        torch.stack((K[0, 0] / p[2], zero, -K[0, 0] * p[0] / p[2] ** 2)),
                        torch.stack((zero, K[1, 1] / p[2], -K[1, 1] * p[1] / p[2] ** 2)),
                    )
                )
            cov = J @ sigma @ J.mT
            blurred = cov + 0.3 * torch.eye(2, dtype=means.dtype)
            opacity = opacities[n]
            if antialiased:
                opacity = opacity * (torch.linalg.det(cov) / torch.linalg.det(blurred)).clamp(min=0.005**2).sqrt()
            d = torch.stack((x - mean[0], y - mean[1]), -1)
            raw = opacity * torch.exp(-0.5 * torch.einsum("hwi,ij,hwj->hw", d, torch.linalg.inv(blurred), d))
            alpha = raw.clamp(max=0.99)
            felt = (raw >= 1 / 255) & open_
            ends = felt & (light * (1 - alpha) <= 1e-4)
            open_ = open_ & ~ends
            alpha = torch.where(felt & ~ends, alpha, 0.0)
            image = image + (light * alpha)[..., None] * (colors[n] if colors.dim() == 2 else colors[len(images), n])
            depth = depth + light * alpha * p[2]
            light = light * (1 - alpha)
        if background is not None:
            image = image + light[..., None] * background[len(images)]
        images.append(image)
        alphas.append(1 - light)
        all_depths.append(depth)
    return torch.stack(images), torch.stack(alphas)[..., None], torch.stack(all_depths)[..., None]


@pytest.mark.parametrize("ortho", [False, True])
@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_the_dense_renderer(ortho, antialiased, dtype):
    args = scene()
    background = torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.5, 0.1]], dtype=torch.float64)
    expected, alpha, _ = dense(*args, background, ortho, antialiased)
    image, alphas, _ = rasterization(
        *(a.to(dtype) for a in args), W, H, backgrounds=background.to(dtype),
        rasterize_mode="antialiased" if antialiased else "classic", camera_model="ortho" if ortho else "pinhole",
    )  # fmt: skip
    assert image.dtype is dtype
    assert alpha.max() > 0.6
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype is torch.float32 else 1e-12}
    torch.testing.assert_close(image.double(), expected, **tolerance)
    torch.testing.assert_close(alphas.double(), alpha, **tolerance)


def test_gradients_agree_with_the_dense_renderer():
    """Of Gaussians and cameras, through image and alpha."""
    args = [a.clone().requires_grad_() for a in scene(5)]
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(2, H, W, 4, generator=g, dtype=torch.float64)
    image, alpha, _ = dense(*args)
    expected = torch.autograd.grad((torch.cat((image, alpha), -1) * weight).sum(), args)
    image, alpha, _ = rasterization(*args, W, H)
    actual = torch.autograd.grad((torch.cat((image, alpha), -1) * weight).sum(), args)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-8)


def test_camera_gradients_by_finite_differences():
    args = scene(6, 1)
    weight = torch.randn(1, H, W, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(view, K):
        return (rasterization(*args[:5], view, K, W, H)[0] * weight).sum()

    view, K = args[5].clone().requires_grad_(), args[6].clone().requires_grad_()
    got = torch.autograd.grad(loss(view, K), (view, K))
    step = 1e-6
    with torch.no_grad():
        for leaf, grad, rows in ((view, got[0], 3), (K, got[1], 2)):
            for i in range(rows):
                for j in range(leaf.shape[-1]):
                    change = torch.zeros_like(leaf)
                    change[0, i, j] = step
                    pairs = [[leaf + s * change if leaf is x else x for x in (view, K)] for s in (1, -1)]
                    slope = (loss(*pairs[0]) - loss(*pairs[1])) / (2 * step)
                    if leaf is view or i == j or j == 2:
                        assert grad[0, i, j].item() == pytest.approx(slope.item(), rel=1e-4, abs=1e-4)
                    else:
                        assert grad[0, i, j] == 0  # skew is not read


def test_one_gaussian_by_hand():
    """On the axis: sigma^2 = (f s / z)^2 + 0.3, falling off from (cx, cy) at pixel centres + 0.5."""
    image, alpha, _ = rasterization(
        torch.tensor([[0.0, 0, 2]]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.2), torch.tensor([0.8]),
        torch.tensor([[1.0, 0.5]]), torch.eye(4)[None], torch.tensor([[[20.0, 0, 10.5], [0, 20, 8.5], [0, 0, 1]]]),
        W, H,
    )  # fmt: skip
    assert alpha[0, 8, 10, 0].item() == pytest.approx(0.8)
    assert image[0, 8, 13, 1].item() == pytest.approx(0.4 * math.exp(-4.5 / 4.3), rel=1e-5)
    assert image[0, 10, 10, 0].item() == pytest.approx(0.8 * math.exp(-2 / 4.3), rel=1e-5)


def test_render_modes():
    args = scene()
    image, alpha, depth = dense(*args)
    background = torch.full((2, 3), 0.5, dtype=torch.float64)
    for mode, expected in (("D", depth), ("ED", depth / alpha.clamp(min=1e-10))):
        out, alphas, _ = rasterization(*args, W, H, render_mode=mode, backgrounds=background)
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
        both, _, _ = rasterization(*args, W, H, render_mode=f"RGB+{mode}", backgrounds=background)
        torch.testing.assert_close(both[..., 3:], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(both[..., :3], image + (1 - alpha) * 0.5, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(alphas, alpha)


def test_depth_gradients_reach_the_means():
    args = [a.clone().requires_grad_() for a in scene(4)]
    (expected,) = torch.autograd.grad(dense(*args)[2].sum(), args[0])
    (actual,) = torch.autograd.grad(rasterization(*args, W, H, render_mode="D")[0].sum(), args[0])
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


def test_leading_axes_and_colours_per_camera():
    scenes = [scene(5, seed=s, dtype=torch.float32) for s in range(4)]
    stacked = [torch.stack(column).unflatten(0, (2, 2)) for column in zip(*scenes)]
    image, alpha, meta = rasterization(*stacked, W, H)
    assert image.shape == (2, 2, 2, H, W, 3)
    assert alpha.shape == (2, 2, 2, H, W, 1)
    assert meta["means2d"].shape == (2, 2, 2, 5, 2)
    assert (meta["n_batches"], meta["n_cameras"]) == (4, 2)
    for i, one in enumerate(scenes):
        assert torch.equal(image[i // 2, i % 2], rasterization(*one, W, H)[0])
    each = torch.rand(2, 5, 3)
    varied = list(scenes[0])
    varied[4] = each
    image = rasterization(*varied, W, H)[0]
    for c in range(2):
        varied[4] = each[c]
        assert torch.equal(image[c], rasterization(*varied, W, H)[0][c])


def test_covariances_instead_of_quaternions():
    args = scene()
    roots = torch.stack([quaternion_matrix(q) @ torch.diag(s) for q, s in zip(args[1], args[2])])
    image = rasterization(args[0], None, None, *args[3:], W, H, covars=roots @ roots.mT)[0]
    torch.testing.assert_close(image, rasterization(*args, W, H)[0])


def test_many_channels():
    args = scene(channels=45, dtype=torch.float32)
    image = rasterization(*args, W, H)[0]
    args = list(args)
    args[4] = args[4][:, 40:]
    torch.testing.assert_close(image[..., 40:], rasterization(*args, W, H)[0])


def test_gaussians_behind_a_camera_are_not_drawn():
    args = list(scene(3, 1))
    args[0] = args[0] + torch.tensor([0, 0, -10.0])
    leaves = [a.clone().requires_grad_() for a in args]
    image, alpha, meta = rasterization(*leaves, W, H)
    assert not image.any()
    assert not alpha.any()
    assert not meta["radii"].any()
    image.sum().backward()
    assert all(a.grad is None or not a.grad.any() for a in leaves)


def test_harmonics_are_orthonormal():
    """Gauss-Legendre in z, equal steps in the azimuth: exact for these degrees."""
    import numpy as np

    z, weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(8))
    azimuth = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    radius = (1 - z * z).sqrt()[:, None]
    directions = torch.stack((radius * azimuth.cos(), radius * azimuth.sin(), z[:, None].expand(8, 16)), -1)
    values = spherical_harmonics(4, 3 * directions, torch.eye(25, dtype=torch.float64))
    gram = torch.einsum("zak,zal,z->kl", values, values, weight) * (2 * math.pi / 16)
    torch.testing.assert_close(gram, torch.eye(25, dtype=torch.float64), rtol=0, atol=1e-12)


def test_harmonics_signs_and_order():
    """Constants that Gaussian-splat scenes are stored with, written as roots."""
    x, y, z = d = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.7], dtype=torch.float64), dim=0)
    got = spherical_harmonics(4, d, torch.eye(25, dtype=torch.float64))
    pi = math.pi
    expected = {
        0: math.sqrt(1 / (4 * pi)),
        1: -math.sqrt(3 / (4 * pi)) * y,
        2: math.sqrt(3 / (4 * pi)) * z,
        3: -math.sqrt(3 / (4 * pi)) * x,
        4: math.sqrt(15 / (4 * pi)) * x * y,
        5: -math.sqrt(15 / (4 * pi)) * y * z,
        6: math.sqrt(5 / (16 * pi)) * (3 * z * z - 1),
        7: -math.sqrt(15 / (4 * pi)) * x * z,
        8: math.sqrt(15 / (16 * pi)) * (x * x - y * y),
        9: -math.sqrt(35 / (32 * pi)) * y * (3 * x * x - y * y),
        10: math.sqrt(105 / (4 * pi)) * x * y * z,
        11: -math.sqrt(21 / (32 * pi)) * y * (5 * z * z - 1),
        12: math.sqrt(7 / (16 * pi)) * z * (5 * z * z - 3),
        15: -math.sqrt(35 / (32 * pi)) * x * (x * x - 3 * y * y),
        16: math.sqrt(315 / (16 * pi)) * x * y * (x * x - y * y),
        20: math.sqrt(9 / (256 * pi)) * (35 * z**4 - 30 * z * z + 3),
        24: math.sqrt(315 / (256 * pi)) * (x**4 - 6 * x * x * y * y + y**4),
    }
    for k, value in expected.items():
        assert float(got[k]) == pytest.approx(float(value), abs=1e-14), k


@pytest.mark.parametrize("degree", [0, 2, 4])
def test_harmonic_colours(degree):
    """From the camera's centre to the mean, plus a half, not below zero; gradients to coefficients, means, cameras."""
    args = list(scene(6, 2))
    g = torch.Generator().manual_seed(4)
    args[4] = torch.randn(6, 25, 3, generator=g, dtype=torch.float64) * 0.4
    leaves = [a.clone().requires_grad_() for a in args]
    centres = torch.linalg.inv(leaves[5])[:, :3, 3]
    directions = leaves[0] - centres[:, None]
    shown = (spherical_harmonics(degree, directions, leaves[4]) + 0.5).clamp(min=0)
    expected = dense(*leaves[:4], shown, *leaves[5:])[0]
    image = rasterization(*leaves, W, H, sh_degree=degree)[0]
    torch.testing.assert_close(image, expected)
    weight = torch.randn(image.shape, generator=g, dtype=torch.float64)
    inputs = leaves[:2] + leaves[4:6]
    for a, e in zip(
        torch.autograd.grad((image * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        a, e = (x[..., :3, :] if x.shape[-2:] == (4, 4) else x for x in (a, e))
        torch.testing.assert_close(a, e, rtol=1e-7, atol=1e-8)


def test_meta_and_absgrad():
    args = [a.clone().requires_grad_() for a in scene(6, 2, dtype=torch.float32)]
    image, _, meta = rasterization(*args, W, H, absgrad=True, tile_size=8)
    assert (meta["tile_width"], meta["tile_height"], meta["width"], meta["height"]) == (3, 3, W, H)
    image.square().sum().backward()
    means2d = meta["means2d"]
    assert means2d.grad.shape == (2, 6, 2)
    assert (means2d.absgrad + 1e-6 >= means2d.grad.abs()).all()
    assert (means2d.absgrad > means2d.grad.abs() + 1e-3).any()
    # By pixel: the gradient of each pixel alone, in absolute value.
    total = torch.zeros(6, 2)
    single = [a.detach()[:1] if i > 4 else a.detach() for i, a in enumerate(args)]
    single[0].requires_grad_()
    image, _, meta = rasterization(*single, W, H)
    for pixel in image.square().sum(-1).flatten():
        (grad,) = torch.autograd.grad(pixel, meta["means2d"], retain_graph=True)
        total += grad[0].abs()
    torch.testing.assert_close(means2d.absgrad[0], total, rtol=1e-3, atol=1e-4)


def test_tile_lists():
    """Every pixel's Gaussians with alpha >= 1/255 are in its tile's list, near to far, and no tile lists another."""
    args = scene(12, 2)
    *_, meta = rasterization(*args, W, H, tile_size=8)
    conics, means, opacities = (meta[k].reshape(-1, *meta[k].shape[2:]) for k in ("conics", "means2d", "opacities"))
    per, flat, starts = meta["tiles_per_gauss"], meta["flatten_ids"].tolist(), meta["isect_offsets"].flatten().tolist()
    assert meta["isect_offsets"].shape == (2, 3, 3)
    assert int(per.sum()) == len(flat)
    y, x = torch.meshgrid(torch.arange(24) + 0.5, torch.arange(24) + 0.5, indexing="ij")
    lists = [flat[a:b] for a, b in zip(starts, [*starts[1:], len(flat)])]
    assert torch.equal(torch.bincount(torch.tensor(flat), minlength=24).reshape(2, 12), per.long())
    fine = (torch.arange(0, 24 * 16) + 0.5) / 16
    for n in range(24):
        dx, dy = x - means[n, 0], y - means[n, 1]
        a, b, c = conics[n]
        felt = opacities[n] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy) >= 1 / 255
        dx, dy = fine - means[n, 0], (fine - means[n, 1])[:, None]
        close = opacities[n] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy) >= 1 / 255
        for tile in range(9):
            rows, columns = slice(tile // 3 * 8, tile // 3 * 8 + 8), slice(tile % 3 * 8, tile % 3 * 8 + 8)
            listed = n in lists[n // 12 * 9 + tile]
            if felt[rows, columns].any():
                assert listed
            if listed:  # reached between pixel centres, if not on one
                wide = close[rows.start * 16 : rows.stop * 16, columns.start * 16 : columns.stop * 16]
                assert wide.any()
    depths = meta["depths"].flatten()
    for ids in lists:
        assert depths[ids].tolist() == sorted(depths[ids].tolist())


def test_tile_lists_from_radii_alone():
    means, radii = torch.tensor([[12.0, 12.0], [4, 20], [50, 50]]), torch.tensor([[5, 3], [1, 1], [0, 2]])
    per, keys, flat = isect_tiles(means, radii, torch.tensor([2.0, 1.0, 3.0]), 8, 3, 3)
    assert per.tolist() == [3, 1, 0]  # x from 7 to 17 and y from 9 to 15: the middle row; then the lower left corner
    assert flat.tolist() == [0, 0, 0, 1]
    assert (keys >> 32).tolist() == [3, 4, 5, 6]
    assert isect_offset_encode(keys, 1, 3, 3).flatten().tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 4]


def test_gsplat_names():
    args = scene(dtype=torch.float32)
    means, quats, scales, _, _, viewmats, Ks = args
    radii, means2d, depths, conics, none = gsplat.fully_fused_projection(
        means, None, quats, scales, viewmats, Ks, W, H, camera_model="pinhole"
    )
    seen = project_gaussians(means, quats, scales, viewmats, Ks, W, H)
    assert none is None
    for a, b in zip(
        (radii, means2d, depths, conics), (seen.radii, seen.means2d, seen.depths, seen.conics), strict=True
    ):
        assert torch.equal(a, b)
    assert torch.equal(
        gsplat.fully_fused_projection(means, None, quats, scales, viewmats, Ks, W, H, calc_compensations=True)[4],
        seen.compensations,
    )
    assert gsplat.rasterization is rasterization
    with pytest.raises(NotImplementedError, match="packed results"):
        gsplat.fully_fused_projection(means, None, quats, scales, viewmats, Ks, W, H, packed=True)


def test_refusals():
    args = scene(2, 1, dtype=torch.float32)
    for option in (
        {"distributed": True}, {"sparse_grad": True}, {"with_ut": True}, {"with_eval3d": True},
        {"camera_model": "fisheye"}, {"radial_coeffs": torch.zeros(1, 6)}, {"rolling_shutter": "ROLLING_TOP_TO_BOTTOM"},
    ):  # fmt: skip
        with pytest.raises(NotImplementedError, match=r"rasterization: .*not supported"):
            rasterization(*args, W, H, **option)
    with pytest.raises(ValueError, match="expected `render_mode`"):
        rasterization(*args, W, H, render_mode="depth")
    with pytest.raises(ValueError, match=r"expected `opacities` of shape \[..., N\](.|\n)*opacities *: shape="):
        rasterization(*args[:3], args[3][:, None], *args[4:], W, H)
    with pytest.raises(ValueError, match=r"expected `colors` of shape \[..., N, K, 3\]"):
        rasterization(*args, W, H, sh_degree=1)
    with pytest.raises(ValueError, match="expected `backgrounds`"):
        rasterization(*args, W, H, backgrounds=torch.zeros(3))
    with pytest.raises(ValueError, match=r"expected `degrees_to_use` in 0\.\.4"):
        spherical_harmonics(5, torch.ones(3), torch.ones(36, 3))
    with pytest.raises(ValueError, match="or neither"):
        isect_tiles(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1), 8, 1, 1, conics=torch.ones(1, 3))
