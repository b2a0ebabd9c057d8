"""2D Gaussians added up into an image, as people write it in torch.

`usual` paints a window around every Gaussian, many Gaussians at a time, and scatters the windows into the image.
`tiles` cuts the image into tiles and multiplies, for each, the weights of the Gaussians that reach it with their
colours; `tiles, compiled` is the same under torch.compile. Every pixel with every Gaussian, the plainest code of all,
would take minutes a frame at the sizes that are timed, so it is not in the table.
"""

from __future__ import annotations

import itertools
import math

import torch

_LEAST = 1 / 255
_CHUNK = 1 << 22  # window pixels at once
_TILE = 32


def _prepare(means, shapes, opacities, form):
    """Conics, opacities, and half the side of the box around each support (which needs no gradient)."""
    if form == "conic":
        a, b, c = shapes.unbind(1)
    else:
        l1, l2, l3 = shapes.unbind(1)
        square = (l1 * l3) ** 2
        a, b, c = (l2 * l2 + l3 * l3) / square, -l1 * l2 / square, l1 * l1 / square
    opacities = means.new_ones(means.shape[0]) if opacities is None else opacities
    with torch.no_grad():
        reach = 2 * torch.log((opacities / _LEAST).clamp(min=1))
        determinant = a * c - b * b
        half = torch.stack([(reach * c / determinant).sqrt(), (reach * a / determinant).sqrt()], 1)
    return torch.stack([a, b, c], 1), opacities, half


def _weights(dx, dy, conics, opacities):
    """Weights of Gaussians at offsets: everything broadcasts, the Gaussians' axis is first."""
    a, b, c = (conics[:, k].view(-1, *[1] * (dx.dim() - 1)) for k in range(3))
    w = opacities.view(-1, *[1] * (dx.dim() - 1)) * torch.exp(-(0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy))
    return torch.where(w >= _LEAST, w, 0)


def _start(means, colors, background, image, height, width):
    if background is None:
        return means.new_zeros(height * width, colors.shape[1])
    return background[image if background.shape[0] > 1 else 0].expand(height * width, -1).clone()


def _each_image(render, means, shapes, colors, opacities, background, offsets, height, width, pixel_center, form):
    bounds = [0, means.shape[0]] if offsets is None else offsets.tolist()
    images = []
    for image, (lo, hi) in enumerate(itertools.pairwise(bounds)):
        some = None if opacities is None else opacities[lo:hi]
        conics, some, half = _prepare(means[lo:hi], shapes[lo:hi], some, form)
        start = _start(means, colors, background, image, height, width)
        images.append(render(start, means[lo:hi], conics, colors[lo:hi], some, half, height, width, pixel_center))
    return torch.stack(images).reshape(-1, height, width, colors.shape[1])


def _windows(out, means, conics, colors, opacities, half, height, width, pixel_center):
    order = half.amax(1).argsort()  # windows of one chunk have one size, so neighbours in size share it
    at, count = 0, means.shape[0]
    while at < count:
        side = 1
        take = min(count - at, 4096)
        while True:
            side = 2 * math.ceil(half[order[at + take - 1]].max().item()) + 3
            if take == 1 or take * side * side <= _CHUNK:
                break
            take //= 2
        chosen = order[at : at + take]
        at += take
        reach = torch.arange(side, device=means.device) - side // 2
        middle = means[chosen].detach().floor().long()
        x, y = middle[:, 0, None] + reach, middle[:, 1, None] + reach
        dx = (x + pixel_center - means[chosen, 0, None])[:, None, :]
        dy = (y + pixel_center - means[chosen, 1, None])[:, :, None]
        w = _weights(dx, dy, conics[chosen], opacities[chosen])
        inside = ((x >= 0) & (x < width))[:, None, :] & ((y >= 0) & (y < height))[:, :, None]
        place = (y.clamp(0, height - 1)[:, :, None] * width + x.clamp(0, width - 1)[:, None, :]).flatten()
        painted = torch.where(inside, w, 0)[..., None] * colors[chosen, None, None]
        out.index_add_(0, place, painted.flatten(0, 2))
    return out


def _tile(dx, dy, conics, opacities, colors):
    return _weights(dx, dy, conics, opacities).flatten(1).t() @ colors


def _tiles(out, means, conics, colors, opacities, half, height, width, pixel_center, *, tile=_tile):
    with torch.no_grad():
        low, high = means - half - 1, means + half + 1
    out = out.view(height, width, -1)
    rows = []
    for top in range(0, height, _TILE):
        bottom = min(top + _TILE, height)
        row = ((high[:, 1] >= top) & (low[:, 1] <= bottom)).nonzero()[:, 0]
        y = torch.arange(top, bottom, device=means.device) + pixel_center
        columns = []
        for left in range(0, width, _TILE):
            right = min(left + _TILE, width)
            some = row[(high[row, 0] >= left) & (low[row, 0] <= right)]
            x = torch.arange(left, right, device=means.device) + pixel_center
            dx, dy = x - means[some, 0, None, None], y[:, None] - means[some, 1, None, None]
            piece = tile(dx, dy, conics[some], opacities[some], colors[some])
            columns.append(piece.view(bottom - top, right - left, -1))
        rows.append(torch.cat(columns, 1))
    return (out + torch.cat(rows)).flatten(0, 1)


_MANY = 10_000  # Gaussians; beyond, the usual code takes minutes


def usual(*args):
    return (lambda: _each_image(_windows, *args)) if len(args[0]) <= _MANY else None


def tiles(*args):
    return lambda: _each_image(_tiles, *args)


def compiled(*args):
    if len(args[0]) > _MANY:
        return None
    tile = torch.compile(_tile, dynamic=True)
    return lambda: _each_image(lambda *rest: _tiles(*rest, tile=tile), *args)


PEERS = {"splat_sum": {"usual": usual, "tiles": tiles, "tiles, compiled": compiled}}
