"""splat_topk in plain torch: every Gaussian at every pixel of a band of rows, then torch's stable sort."""

from __future__ import annotations

import itertools

import torch

_LEAST = 1 / 255
_EPSILON = 1e-4  # Image-GS's
_ELEMENTS = 1 << 22  # pixels times Gaussians held at once


def _conics(means, shapes, colors, opacities, form):
    """[N, 3] inverse covariances (a, b, c), and which Gaussians are felt at all."""
    s0, s1, s2 = shapes.unbind(1)
    if form == "conic":
        a, b, c = s0, s1, s2
        determinant = a * c - b * b
        valid = (a > 0) & (c > 0) & (determinant > 0)
        xx, yy = c / determinant, a / determinant
    else:
        root = (s0 * s2) ** 2
        xx, yy = s0 * s0, s1 * s1 + s2 * s2
        a, b, c = yy / root, -s0 * s1 / root, xx / root
        determinant, valid = 1 / root, root > 0
    reach = 2 * torch.log(255 * opacities)
    valid = valid & (reach >= 0) & (determinant < 1e30) & (torch.sqrt(reach * torch.maximum(xx, yy)) < 1e9)
    valid = valid & (means.abs() < 1e9).all(1) & colors.isfinite().all(1)
    return torch.where(valid[:, None], torch.stack([a, b, c], 1), 0), valid


def _parts(offsets, count):
    edges = [0, count] if offsets is None else offsets.tolist()
    return list(itertools.pairwise(edges))


def _bands(means, shapes, colors, opacities, offsets, height, width, pixel_center, form):
    """Yields (image, rows of pixels, first Gaussian, Gaussians, dx, dy, conics, g) for bands of pixel rows; g [H, W, N]
    is exp(-sigma), 0 without support."""
    opacities = means.new_ones(means.shape[0]) if opacities is None else opacities
    conics, valid = _conics(means, shapes, colors, opacities, form)
    centres = torch.where(valid[:, None], means, 0)
    y, x = (torch.arange(n, dtype=means.dtype, device=means.device) + pixel_center for n in (height, width))
    for b, (lo, hi) in enumerate(_parts(offsets, means.shape[0])):
        step = max(1, _ELEMENTS // max(1, (hi - lo) * width))
        for top in range(0, height, step):
            rows = slice(top, min(top + step, height))
            dx, dy = x[None, :, None] - centres[lo:hi, 0], y[rows, None, None] - centres[lo:hi, 1]
            a, b_, c = conics[lo:hi].unbind(1)
            g = torch.exp(-(0.5 * (a * dx * dx + c * dy * dy) + b_ * dx * dy))
            g = torch.where(valid[lo:hi] & (opacities[lo:hi] * g >= _LEAST), g, 0)
            yield b, rows, lo, hi, dx, dy, conics[lo:hi], g


def splat_topk(means, shapes, colors, opacities, offsets, height, width, count, pixel_center, form):
    images = len(_parts(offsets, means.shape[0]))
    image = means.new_zeros(images, height, width, colors.shape[1])
    index = torch.full((images, height, width, count), -1, dtype=torch.int32, device=means.device)
    weights = means.new_ones(means.shape[0]) if opacities is None else opacities
    for b, rows, lo, hi, _, _, _, g in _bands(
        means, shapes, colors, opacities, offsets, height, width, pixel_center, form
    ):
        w = torch.where(g > 0, g * weights[lo:hi], 0)
        heaviest = w.sort(dim=-1, descending=True, stable=True)
        w, chosen = heaviest.values[..., :count], heaviest.indices[..., :count]
        chosen, w = torch.where(w > 0, chosen, hi - lo), torch.where(w > 0, w, 0)
        chosen, place = chosen.sort(-1)
        w = w.gather(-1, place)
        padded = torch.cat([colors[lo:hi], colors.new_zeros(1, colors.shape[1])])
        total = w.sum(-1, keepdim=True) + _EPSILON
        image[b, rows] = (w[..., None] * padded[chosen]).sum(-2) / total
        index[b, rows, :, : w.shape[-1]] = torch.where(chosen < hi - lo, chosen + lo, -1).int()
    return image, index


def splat_topk_backward(grad_image, index, means, shapes, colors, opacities, offsets, pixel_center, form):
    _, height, width, _ = grad_image.shape
    d_means, d_conics, d_colors = torch.zeros_like(means), torch.zeros_like(shapes), torch.zeros_like(colors)
    weights = means.new_ones(means.shape[0]) if opacities is None else opacities
    d_opacities = torch.zeros_like(weights)
    for b, rows, lo, hi, dx, dy, conics, g in _bands(
        means, shapes, colors, opacities, offsets, height, width, pixel_center, form
    ):
        index_b = index[b, rows].long()
        chosen = torch.zeros(*g.shape[:2], hi - lo + 1, dtype=torch.bool, device=g.device)
        chosen.scatter_(-1, torch.where(index_b < 0, hi - lo, index_b - lo), True)
        g = torch.where(chosen[..., :-1], g, 0)
        # A Gaussian that is not felt may have any opacity, NaN too.
        w = torch.where(g > 0, g * weights[lo:hi], 0)
        felt = torch.where(chosen[..., :-1].any(0).any(0)[:, None], colors[lo:hi], 0)
        total = w.sum(-1, keepdim=True) + _EPSILON
        grad = grad_image[b, rows]
        along = grad @ felt.T
        along = (along - (w * along).sum(-1, keepdim=True) / total) / total
        s = w * along
        a, b_, c = conics.unbind(1)
        d_means[lo:hi] += torch.stack([(s * (a * dx + b_ * dy)).sum((0, 1)), (s * (b_ * dx + c * dy)).sum((0, 1))], 1)
        moments = [(s * dx * dx).sum((0, 1)), (s * dx * dy).sum((0, 1)), (s * dy * dy).sum((0, 1))]
        d_conics[lo:hi] += torch.stack([-0.5 * moments[0], -moments[1], -0.5 * moments[2]], 1)
        d_colors[lo:hi] += torch.einsum("hwn,hwc->nc", w / total, grad)
        d_opacities[lo:hi] += (g * along).sum((0, 1))
    if form != "conic":
        d_conics = _to_cholesky(means, shapes, colors, weights, d_conics)
    return d_means, d_conics, d_colors, means.new_zeros(0) if opacities is None else d_opacities


def _to_cholesky(means, shapes, colors, opacities, d_conics):
    """dSigma = -conic dConic conic and Sigma = L L^T; a Gaussian that is felt nowhere has no gradient."""
    conics, valid = _conics(means, shapes, colors, opacities, "cholesky")
    l1, l2, l3 = torch.where(valid[:, None], shapes, 0).unbind(1)

    def symmetric(a, b, c):
        return torch.stack([torch.stack([a, b], -1), torch.stack([b, c], -1)], -2)

    conic = symmetric(*conics.unbind(1))
    d_conic = symmetric(d_conics[:, 0], 0.5 * d_conics[:, 1], d_conics[:, 2])
    d_sigma = -conic @ d_conic @ conic
    return 2 * torch.stack([
        d_sigma[:, 0, 0] * l1 + d_sigma[:, 0, 1] * l2,
        d_sigma[:, 0, 1] * l1 + d_sigma[:, 1, 1] * l2,
        d_sigma[:, 1, 1] * l3,
    ], 1)  # fmt: skip
