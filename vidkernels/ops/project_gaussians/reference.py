"""Plain torch, the oracle."""

from __future__ import annotations

import torch

EXTENT = 3.33  # standard deviations: exp(-3.33^2 / 2) is just below 1/255
FLOOR = 0.005  # of the compensation, so that a thin Gaussian keeps a gradient


def rotation(quats: torch.Tensor) -> torch.Tensor:
    """[..., 4] (w, x, y, z), of any length, to [..., 3, 3]."""
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def rotation_backward(grad: torch.Tensor, quats: torch.Tensor) -> torch.Tensor:
    length = quats.norm(dim=-1, keepdim=True)
    unit = quats / length
    w, x, y, z = unit.unbind(-1)
    g = [row.unbind(-1) for row in grad.unbind(-2)]
    dw = 2 * (z * (g[1][0] - g[0][1]) + y * (g[0][2] - g[2][0]) + x * (g[2][1] - g[1][2]))
    dx = 2 * (y * (g[0][1] + g[1][0]) + z * (g[0][2] + g[2][0]) + w * (g[2][1] - g[1][2]) - 2 * x * (g[1][1] + g[2][2]))
    dy = 2 * (x * (g[0][1] + g[1][0]) + z * (g[1][2] + g[2][1]) + w * (g[0][2] - g[2][0]) - 2 * y * (g[0][0] + g[2][2]))
    dz = 2 * (x * (g[0][2] + g[2][0]) + y * (g[1][2] + g[2][1]) + w * (g[1][0] - g[0][1]) - 2 * z * (g[0][0] + g[1][1]))
    d = torch.stack((dw, dx, dy, dz), -1)
    return (d - unit * (unit * d).sum(-1, keepdim=True)) / length


def _symmetric(six: torch.Tensor) -> torch.Tensor:
    """[..., 6] (xx, xy, xz, yy, yz, zz) to [..., 3, 3]."""
    return six[..., (0, 1, 2, 1, 3, 4, 2, 4, 5)].unflatten(-1, (3, 3))


class _View:
    """Everything both passes need, [B, C, N, ...]."""

    def __init__(self, means, shapes, scales, viewmats, Ks, width, height, eps2d, camera_model):
        self.turn = viewmats[:, :, None, :3, :3]
        self.point = (self.turn @ means[:, None, :, :, None])[..., 0] + viewmats[:, :, None, :3, 3]
        x, y, self.z = self.point.unbind(-1)
        self.fx, self.fy, self.cx, self.cy = (Ks[:, :, None, i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
        if camera_model == "ortho":
            self.inverse = torch.ones_like(self.z)
            self.ratio = torch.zeros_like(self.point[..., :2])
            self.free = torch.zeros_like(self.ratio, dtype=torch.bool)
        else:
            self.inverse = 1 / self.z
            # Far outside the image the Jacobian is that of a point 30 % beyond its border: the true one explodes.
            raw = torch.stack((x * self.inverse, y * self.inverse), -1)
            size, focal, centre = ((width, height), (self.fx, self.fy), (self.cx, self.cy))
            low = torch.stack([-(c + 0.15 * s) / f for s, f, c in zip(size, focal, centre)], -1)
            high = torch.stack([(s - c + 0.15 * s) / f for s, f, c in zip(size, focal, centre)], -1)
            self.ratio = torch.maximum(torch.minimum(raw, high), low)
            self.free = (raw >= low) & (raw <= high)
        focal = torch.stack((self.fx, self.fy), -1)
        self.mean = self.point[..., :2] * focal * self.inverse[..., None] + torch.stack((self.cx, self.cy), -1)
        steep = -focal * self.ratio * self.inverse[..., None]
        zero = torch.zeros_like(self.z)
        self.jacobian = torch.stack(
            (self.fx * self.inverse, zero, steep[..., 0], zero, self.fy * self.inverse, steep[..., 1]), -1
        ).unflatten(-1, (2, 3))
        self.chain = self.jacobian @ self.turn  # world to pixel
        self.root = None
        if scales is not None:
            self.root = (rotation(shapes) * scales[..., None, :])[:, None]
            self.sigma = self.root @ self.root.mT
        else:
            self.sigma = _symmetric(shapes)[:, None]
        cov = self.chain @ self.sigma @ self.chain.mT
        self.xx, self.xy, self.yy = cov[..., 0, 0], cov[..., 0, 1], cov[..., 1, 1]
        self.a, self.c = self.xx + eps2d, self.yy + eps2d
        self.sharp = self.xx * self.yy - self.xy * self.xy
        self.det = self.sharp + eps2d * (self.xx + self.yy) + eps2d * eps2d
        self.share = self.sharp / self.det


def project_gaussians(
    means, shapes, scales, viewmats, Ks, width, height, eps2d, near_plane, far_plane, radius_clip, camera_model
):
    v = _View(means, shapes, scales, viewmats, Ks, width, height, eps2d, camera_model)
    extent = EXTENT * torch.stack((v.a, v.c), -1).sqrt()
    radius = extent.ceil()
    size = means.new_tensor((width, height))
    seen = (v.z >= near_plane) & (v.z <= far_plane) & (v.det > 0) & (v.a > 0) & (v.c > 0)
    seen &= (radius > radius_clip).any(-1) & extent.isfinite().all(-1) & v.mean.isfinite().all(-1) & v.det.isfinite()
    seen &= ((v.mean + radius > 0) & (v.mean - radius < size)).all(-1)
    conic = torch.stack((v.c, -v.xy, v.a), -1) / v.det[..., None]
    compensation = v.share.clamp(min=FLOOR * FLOOR).sqrt()
    outputs = (v.mean, conic, v.z, extent, compensation)
    return tuple(torch.where(seen if o.dim() == 3 else seen[..., None], o, torch.zeros_like(o)) for o in outputs)


def project_gaussians_backward(
    grad_means2d, grad_conics, grad_depths, grad_extents, grad_compensations, means, shapes, scales, viewmats, Ks,
    extents, width, height, eps2d, camera_model, cameras,
):  # fmt: skip
    v = _View(means, shapes, scales, viewmats, Ks, width, height, eps2d, camera_model)
    seen = extents[..., 0] > 0
    # To the blurred covariance, as a symmetric matrix D with dL = trace(D dCov).
    conic = torch.stack((v.c, -v.xy, -v.xy, v.a), -1).unflatten(-1, (2, 2)) / v.det[..., None, None]
    ga, gb, gc = grad_conics.unbind(-1)
    d = -conic @ torch.stack((ga, gb / 2, gb / 2, gc), -1).unflatten(-1, (2, 2)) @ conic
    steepness = torch.where(v.share > FLOOR * FLOOR, grad_compensations / (2 * v.share.sqrt() * v.det), 0.0)
    off = -(1 - v.share) * v.xy
    d = d + steepness[..., None, None] * torch.stack(
        (v.yy - v.share * v.c, off, off, v.xx - v.share * v.a), -1
    ).unflatten(-1, (2, 2))
    d = d + torch.diag_embed(grad_extents * (EXTENT / 2) / torch.stack((v.a, v.c), -1).sqrt())
    d = torch.where(seen[..., None, None], d, 0.0)
    # To the world covariance and the chain of matrices.
    to_chain = 2 * d @ v.chain @ v.sigma
    to_sigma = torch.where(seen[..., None, None], v.chain.mT @ d @ v.chain, 0.0).sum(1)
    to_jacobian = to_chain @ v.turn.mT
    # To the point in the camera: through the mean, the depth and the Jacobian.
    focal = torch.stack((v.fx, v.fy), -1)
    scale = focal * v.inverse[..., None]
    diagonal = torch.stack((to_jacobian[..., 0, 0], to_jacobian[..., 1, 1]), -1)
    steep = to_jacobian[..., 2]
    if camera_model == "ortho":
        to_point = torch.cat((grad_means2d * scale, grad_depths[..., None]), -1)
        to_focal = grad_means2d * v.point[..., :2] + diagonal
        to_centre = grad_means2d
    else:
        to_ratio = -steep * scale
        to_free = torch.where(v.free, to_ratio, 0.0) * v.inverse[..., None]
        to_inverse = ((grad_means2d * v.point[..., :2] + diagonal - steep * v.ratio) * focal).sum(-1)
        to_inverse = to_inverse + torch.where(v.free, to_ratio * v.point[..., :2], 0.0).sum(-1)
        to_z = grad_depths - to_inverse * v.inverse * v.inverse
        to_point = torch.cat((grad_means2d * scale + to_free, to_z[..., None]), -1)
        to_bound = torch.where(v.free, 0.0, to_ratio) / focal  # a clamped ratio is (constant - centre) / focal
        to_focal = (grad_means2d * v.point[..., :2] + diagonal - steep * v.ratio) * v.inverse[..., None]
        to_focal = to_focal - to_bound * v.ratio
        to_centre = grad_means2d - to_bound
    to_point = torch.where(seen[..., None], to_point, 0.0)
    grad_means = (v.turn.mT @ to_point[..., None])[..., 0].sum(1)
    if scales is not None:
        unit = rotation(shapes)
        to_root = 2 * to_sigma @ v.root[:, 0]
        any_view = seen.any(1)[..., None]
        grad_scales = torch.where(any_view, (to_root * unit).sum(-2), 0.0)
        grad_shapes = torch.where(any_view, rotation_backward(to_root * scales[..., None, :], shapes), 0.0)
    else:
        grad_scales = means.new_empty(0)
        twice = means.new_tensor((1, 2, 2, 1, 2, 1))
        grad_shapes = to_sigma.flatten(-2)[..., (0, 1, 2, 4, 5, 8)] * twice
    grad_viewmats, grad_Ks = torch.zeros_like(viewmats), torch.zeros_like(Ks)
    if cameras:
        to_turn = v.jacobian.mT @ to_chain + to_point[..., :, None] * means[:, None, :, None, :]
        grad_viewmats[..., :3, :3] = torch.where(seen[..., None, None], to_turn, 0.0).sum(2)
        grad_viewmats[..., :3, 3] = to_point.sum(2)
        for i in range(2):
            grad_Ks[..., i, i] = torch.where(seen, to_focal[..., i], 0.0).sum(2)
            grad_Ks[..., i, 2] = torch.where(seen, to_centre[..., i], 0.0).sum(2)
    return grad_means, grad_shapes, grad_scales, grad_viewmats, grad_Ks
