"""splat_alpha in plain torch: one Gaussian after another, each on the window of pixels that its support fits in."""

from __future__ import annotations

import itertools

import torch

_LEAST = 1 / 255  # an alpha below is skipped
_MOST = 0.99  # an alpha above is cut, and passes no gradient
_OPAQUE = 1e-4  # a pixel is finished before its transmittance falls to this


def _conics(means, shapes, opacities, form):
    """[N, 3] inverse covariances (a, b, c), and [N, 2] half sizes of the supports, -1 where nothing is felt."""
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
    power = torch.log(255 * opacities)
    half = torch.stack([torch.sqrt(2 * power * xx), torch.sqrt(2 * power * yy)], 1)
    valid = valid & (power >= 0) & (determinant < 1e30) & (half < 1e9).all(1) & (means.abs() < 1e9).all(1)
    return torch.stack([a, b, c], 1), torch.where(valid[:, None], half, -1.0)


def _order(depths, bounds):
    parts = [torch.sort(depths[lo:hi], stable=True).indices + lo for lo, hi in bounds]
    return torch.cat(parts).int() if parts else depths.new_zeros(0, dtype=torch.int32)


def _bounds(offsets, count):
    edges = [0, count] if offsets is None else offsets.tolist()
    return list(itertools.pairwise(edges))


def _windows(means, half, height, width, pixel_center):
    """Rows and columns [y0, y1) x [x0, x1) that hold each support, as a list; a pixel to spare on every side."""
    low = torch.where(half < 0, 0.0, (means - half - pixel_center).floor() - 1)
    high = torch.where(half < 0, 0.0, (means + half - pixel_center).ceil() + 2)
    edge = torch.tensor([width, height], dtype=means.dtype, device=means.device)
    low, high = torch.minimum(low.clamp(min=0), edge).long(), torch.minimum(high.clamp(min=0), edge).long()
    return torch.cat([low, high], 1).tolist()


class _Splats:
    """The Gaussians' weights and how each one changes the transmittance `light` of its window."""

    def __init__(self, means, shapes, colors, opacities, height, width, pixel_center, form):
        conics, half = _conics(means, shapes, opacities, form)
        half = torch.where(colors.isfinite().all(1)[:, None], half, -1.0)
        self.felt = half[:, 0] >= 0
        self.conics = torch.where(self.felt[:, None], conics, 0)
        self.windows = _windows(means, half, height, width, pixel_center)
        self.means, self.conic_rows, self.opacities = means, self.conics.tolist(), opacities.tolist()
        self.centres = means.tolist()
        self.y, self.x = (
            torch.arange(n, dtype=means.dtype, device=means.device) + pixel_center for n in (height, width)
        )

    def visit(self, i, light, finished):
        """None if Gaussian i reaches no pixel, else (window, dx, dy, raw alpha, alpha, which pixels it adds to)."""
        x0, y0, x1, y1 = self.windows[i]
        if x0 >= x1 or y0 >= y1:
            return None
        window = slice(y0, y1), slice(x0, x1)
        a, b, c = self.conic_rows[i]
        dx, dy = (self.x[x0:x1] - self.centres[i][0])[None], (self.y[y0:y1] - self.centres[i][1])[:, None]
        raw = self.opacities[i] * torch.exp(-(0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy))
        alpha = raw.clamp(max=_MOST)
        open_ = (raw >= _LEAST) & ~finished[window]
        ends = open_ & (light[window] * (1 - alpha) <= _OPAQUE)
        finished[window] |= ends
        return window, dx, dy, raw, alpha, open_ & ~ends


def splat_alpha(
    means, shapes, colors, opacities, depths, background, offsets, height, width, pixel_center, form, absgrad=None
):
    bounds = _bounds(offsets, means.shape[0])
    order = _order(depths, bounds)
    splats = _Splats(means, shapes, colors, opacities, height, width, pixel_center, form)
    images = means.new_zeros(len(bounds), height, width, colors.shape[1])
    alphas = means.new_zeros(len(bounds), height, width)
    rows = order.tolist()
    for b, (lo, hi) in enumerate(bounds):
        light = means.new_ones(height, width)
        finished = torch.zeros_like(light, dtype=torch.bool)
        for i in rows[lo:hi]:
            seen = splats.visit(i, light, finished)
            if seen is None:
                continue
            window, _, _, _, alpha, adds = seen
            alpha = torch.where(adds, alpha, 0)
            images[b][window] += (light[window] * alpha)[..., None] * colors[i]
            light[window] *= 1 - alpha
        if background is not None:
            images[b] += light[..., None] * _row(background, b)
        alphas[b] = 1 - light
    return images, alphas, order


def _row(background, b):
    return background if background.dim() == 1 else background[b if background.shape[0] > 1 else 0]


def splat_alpha_backward(
    grad_image, grad_alpha, image, alpha, order, means, shapes, colors, opacities, background, offsets, pixel_center,
    form, absgrad,
):  # fmt: skip
    _, height, width, _ = grad_image.shape
    splats = _Splats(means, shapes, colors, opacities, height, width, pixel_center, form)
    d_means, d_conics, d_colors = torch.zeros_like(means), torch.zeros_like(shapes), torch.zeros_like(colors)
    d_opacities = torch.zeros_like(opacities)
    d_background = means.new_zeros(0) if background is None else torch.zeros_like(background)
    absolute = means.new_zeros(means.shape[0] if absgrad else 0, 2)
    rows = order.tolist()
    for b, (lo, hi) in enumerate(_bounds(offsets, means.shape[0])):
        g = grad_image[b]
        final = 1 - alpha[b]
        # What comes after the Gaussian at hand, seen through g; all of it before the first one.
        rest = (g * image[b]).sum(-1) - (0 if grad_alpha is None else grad_alpha[b] * final)
        light = means.new_ones(height, width)
        finished = torch.zeros_like(light, dtype=torch.bool)
        for i in rows[lo:hi]:
            seen = splats.visit(i, light, finished)
            if seen is None:
                continue
            window, dx, dy, raw, alpha_i, adds = seen
            alpha_i = torch.where(adds, alpha_i, 0)
            through = light[window] * alpha_i
            along = g[window] @ colors[i]
            rest[window] -= through * along
            d_alpha = light[window] * along - rest[window] / (1 - alpha_i)
            s = torch.where(adds & (raw <= _MOST), alpha_i * d_alpha, 0)
            light[window] *= 1 - alpha_i
            a, b_, c = splats.conic_rows[i]
            move_x, move_y = s * (a * dx + b_ * dy), s * (b_ * dx + c * dy)
            d_means[i] = torch.stack([move_x.sum(), move_y.sum()])
            if absgrad:
                absolute[i] = torch.stack([move_x.abs().sum(), move_y.abs().sum()])
            moments = [(s * dx * dx).sum(), (s * dx * dy).sum(), (s * dy * dy).sum()]
            d_conics[i] = torch.stack([-0.5 * moments[0], -moments[1], -0.5 * moments[2]])
            d_colors[i] = torch.einsum("hw,hwc->c", through, g[window])
            d_opacities[i] = s.sum() / opacities[i]
        if background is not None:
            _row(d_background, b).add_((light[..., None] * g).sum((0, 1)))
    d_shapes = d_conics if form == "conic" else _to_cholesky(splats, shapes, d_conics)
    return d_means, d_shapes, d_colors, d_opacities, d_background, absolute


def _to_cholesky(splats, shapes, d_conics):
    """dSigma = -conic dConic conic and Sigma = L L^T; a Gaussian that is felt nowhere has no gradient."""
    l1, l2, l3 = torch.where(splats.felt[:, None], shapes, 0).unbind(1)

    def symmetric(a, b, c):
        return torch.stack([torch.stack([a, b], -1), torch.stack([b, c], -1)], -2)

    conic = symmetric(*splats.conics.unbind(1))
    d_conic = symmetric(d_conics[:, 0], 0.5 * d_conics[:, 1], d_conics[:, 2])
    d_sigma = -conic @ d_conic @ conic
    return 2 * torch.stack([
        d_sigma[:, 0, 0] * l1 + d_sigma[:, 0, 1] * l2,
        d_sigma[:, 0, 1] * l1 + d_sigma[:, 1, 1] * l2,
        d_sigma[:, 1, 1] * l3,
    ], 1)  # fmt: skip
