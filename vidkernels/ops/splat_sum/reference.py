"""splat_sum in plain torch: every Gaussian at every pixel, a few Gaussians at a time."""

from __future__ import annotations

from itertools import pairwise

import torch

_ELEMENTS = 1 << 22  # pixels times Gaussians held at once


def _conics(shapes, form):
    """[N, 3] inverse covariance (a, b, c), and which Gaussians have one."""
    if form == "conic":
        a, b, c = shapes.unbind(1)
        valid = (a > 0) & (c > 0) & (a * c - b * b > 0)
        return shapes, valid & shapes.isfinite().all(1)
    l1, l2, l3 = shapes.unbind(1)
    determinant = (l1 * l3) ** 2
    conics = torch.stack([l2 * l2 + l3 * l3, -l1 * l2, l1 * l1], 1) / determinant[:, None]
    return conics, conics.isfinite().all(1) & (determinant > 0)


def _weights(means, shapes, opacities, form, height, width, pixel_center):
    """Yields (rows, window, dx, dy, conics, w, g) for groups of Gaussians: the window of the image that holds their
    supports, w = opacity * g there, 0 outside the support."""
    conics, valid = _conics(shapes, form)
    valid = valid & means.isfinite().all(1)
    opacities = means.new_ones(means.shape[0]) if opacities is None else opacities
    valid = valid & opacities.isfinite()
    y, x = (torch.arange(n, dtype=means.dtype, device=means.device) + pixel_center for n in (height, width))
    for rows, (top, bottom, left, right) in _groups(means, conics, valid, opacities, height, width):
        keep = valid[rows, None, None]
        a, b, c = (torch.where(keep, conics[rows, k, None, None], 0) for k in range(3))
        centre = torch.where(valid[rows, None], means[rows], 0)
        dx, dy = x[left:right] - centre[:, 0, None, None], y[top:bottom, None] - centre[:, 1, None, None]
        g = torch.exp(-(0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy))
        w = torch.where(keep, opacities[rows, None, None], 0) * g
        inside = w >= 1 / 255
        yield rows, (slice(top, bottom), slice(left, right)), dx, dy, (a, b, c), w * inside, g * inside


def _groups(means, conics, valid, opacities, height, width):
    """Rows and a window for each group; everything at once where that is little, else neighbours together."""
    count = means.shape[0]
    if count * height * width <= _ELEMENTS:
        yield slice(0, count), (0, height, 0, width)
        return
    a, b, c = conics.unbind(1)
    reach = 2 * torch.log((255 * opacities).clamp(min=1)) / (a * c - b * b)
    half = torch.stack([(reach * c).sqrt(), (reach * a).sqrt()], 1) + 2
    size = torch.tensor([width, height], dtype=means.dtype, device=means.device)
    zero = torch.zeros_like(size)
    low = torch.where(valid[:, None], means - half, zero).clamp(min=zero, max=size).floor().long()
    high = torch.where(valid[:, None], means + half, zero).clamp(min=zero, max=size).ceil().long()
    order = ((low[:, 1] // 32) * (width // 32 + 2) + low[:, 0] // 32).argsort(stable=True)
    start = 0
    while start < count:
        step = 256
        while True:  # fewer at once where they are large
            rows = order[start : start + step]
            left, top = low[rows].amin(0).tolist()
            right, bottom = high[rows].amax(0).tolist()
            if step == 1 or rows.shape[0] * (right - left) * (bottom - top) <= _ELEMENTS:
                break
            step //= 2
        if right > left and bottom > top:
            yield rows, (top, bottom, left, right)
        start += step


def _images(offsets, count):
    bounds = [0, count] if offsets is None else offsets.tolist()
    return [slice(lo, hi) for lo, hi in pairwise(bounds)]


def _part(tensor, rows):
    return None if tensor is None else tensor[rows]


def splat_sum(means, shapes, colors, opacities, background, offsets, height, width, pixel_center, form):
    images = []
    for b, part in enumerate(_images(offsets, means.shape[0])):
        if background is None:
            image = means.new_zeros(height, width, colors.shape[1])
        else:
            image = background[b if background.shape[0] > 1 else 0].expand(height, width, -1).clone()
        for rows, window, *_, w, _g in _weights(
            means[part], shapes[part], _part(opacities, part), form, height, width, pixel_center
        ):
            image[window] += torch.einsum("nhw,nc->hwc", w, colors[part][rows])
        images.append(image)
    return torch.stack(images) if images else means.new_zeros(0, height, width, colors.shape[1])


def splat_sum_backward(
    grad_image, means, shapes, colors, opacities, background, offsets, height, width, pixel_center, form
):
    d_means, d_conics, d_colors = torch.zeros_like(means), torch.zeros_like(shapes), torch.zeros_like(colors)
    d_opacities = means.new_zeros(0) if opacities is None else torch.zeros_like(opacities)
    for b, part in enumerate(_images(offsets, means.shape[0])):
        for rows, window, dx, dy, (a, bb, c), w, g in _weights(
            means[part], shapes[part], _part(opacities, part), form, height, width, pixel_center
        ):
            grad = grad_image[b][window]
            t = torch.einsum("hwc,nc->nhw", grad, colors[part][rows])
            s = w * t
            d_colors[part][rows] = torch.einsum("nhw,hwc->nc", w, grad)
            d_means[part][rows] = torch.stack([(s * (a * dx + bb * dy)).sum((1, 2)),
                                               (s * (bb * dx + c * dy)).sum((1, 2))], 1)  # fmt: skip
            d_conics[part][rows] = torch.stack([-0.5 * (s * dx * dx).sum((1, 2)), -(s * dx * dy).sum((1, 2)),
                                                -0.5 * (s * dy * dy).sum((1, 2))], 1)  # fmt: skip
            if opacities is not None:
                d_opacities[part][rows] = (g * t).sum((1, 2))
    if background is None:
        d_background = means.new_zeros(0, colors.shape[1])
    else:
        d_background = grad_image.sum((0, 1, 2) if background.shape[0] == 1 else (1, 2)).reshape(background.shape)
    d_shapes = d_conics if form == "conic" else _to_cholesky(shapes, d_conics)
    return d_means, d_shapes, d_colors, d_opacities, d_background


def _to_cholesky(shapes, d_conics):
    """dSigma = -conic dConic conic and Sigma = L L^T; a Gaussian without a conic has no gradient."""
    conics, valid = _conics(shapes, "cholesky")
    conics = torch.where(valid[:, None], conics, 0)
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
