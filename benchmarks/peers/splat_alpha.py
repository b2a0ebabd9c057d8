"""2D Gaussians composited front to back, as people write it in torch: tile by tile, all Gaussians of a tile at once.

`usual` is the shape of the tutorials' rasterisers: sort, cut the image into tiles, weights [pixels, Gaussians] and a
cumulative product along the Gaussians. `compiled` is the same with torch.compile around the tile.
"""

from __future__ import annotations

import itertools

import torch

_LEAST, _MOST, _OPAQUE = 1 / 255, 0.99, 1e-4
_TILE = 32


def _conics(shapes, form):
    if form == "conic":
        return shapes
    l1, l2, l3 = shapes.unbind(1)
    return torch.stack([l2 * l2 + l3 * l3, -l1 * l2, l1 * l1], 1) / ((l1 * l3) ** 2)[:, None]


def _tile(x, y, means, conics, opacities, colors):
    """Colour [pixels, C] and transmittance [pixels] of one tile; Gaussians come front to back."""
    dx = (x[None, :, None] - means[:, 0]).expand(y.shape[0], -1, -1).flatten(0, 1)
    dy = (y[:, None, None] - means[:, 1]).expand(-1, x.shape[0], -1).flatten(0, 1)
    a, b, c = conics.unbind(1)
    alpha = opacities * torch.exp(-(0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy))
    alpha = torch.where(alpha >= _LEAST, alpha.clamp(max=_MOST), 0)
    after = torch.cumprod(1 - alpha, 1)
    # The one that would make a pixel opaque is left out, and all behind it.
    kept = after > _OPAQUE
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    left = torch.where(kept, 1 - alpha, 1).prod(1)
    return torch.where(kept, before * alpha, 0) @ colors, left


def _render(tile, means, shapes, colors, opacities, depths, background, offsets, height, width, pixel_center, form, _):
    bounds = [0, means.shape[0]] if offsets is None else offsets.tolist()
    images, alphas = [], []
    for image, (lo, hi) in enumerate(itertools.pairwise(bounds)):
        order = lo + torch.sort(depths[lo:hi], stable=True).indices
        centre, conics = means[order], _conics(shapes[order], form)
        opacity, color = opacities[order], colors[order]
        with torch.no_grad():
            reach = 2 * torch.log((opacity / _LEAST).clamp(min=1))
            a, b, c = conics.unbind(1)
            half = torch.stack([(reach * c / (a * c - b * b)).sqrt(), (reach * a / (a * c - b * b)).sqrt()], 1) + 1
            low, high = centre - half, centre + half
        picture, light = [], []
        for top in range(0, height, _TILE):
            bottom = min(top + _TILE, height)
            row = ((high[:, 1] >= top) & (low[:, 1] <= bottom)).nonzero()[:, 0]
            y = torch.arange(top, bottom, device=means.device) + pixel_center
            pieces = []
            for left in range(0, width, _TILE):
                right = min(left + _TILE, width)
                some = row[(high[row, 0] >= left) & (low[row, 0] <= right)]
                x = torch.arange(left, right, device=means.device) + pixel_center
                painted, rest = tile(x, y, centre[some], conics[some], opacity[some], color[some])
                pieces.append((painted.view(len(y), len(x), -1), rest.view(len(y), len(x))))
            picture.append(torch.cat([p for p, _ in pieces], 1))
            light.append(torch.cat([r for _, r in pieces], 1))
        picture, light = torch.cat(picture), torch.cat(light)
        if background is not None:
            row = background if background.dim() == 1 else background[image if background.shape[0] > 1 else 0]
            picture = picture + light[..., None] * row
        images.append(picture)
        alphas.append(1 - light)
    return torch.stack(images), torch.stack(alphas), None


_SOME, _MANY = 1_000, 10_000  # Gaussians; beyond, minutes with and without gradients


def usual(*args):
    most = _SOME if args[0].requires_grad else _MANY
    return (lambda: _render(_tile, *args)) if len(args[0]) <= most else None


def compiled(*args):
    if len(args[0]) > _SOME:
        return None
    tile = torch.compile(_tile, dynamic=True)
    return lambda: _render(tile, *args)


PEERS = {"splat_alpha": {"usual": usual, "compiled": compiled}}
