"""Which Gaussians reach which tiles of an image."""

from __future__ import annotations

import math

import torch

from vidkernels import _check

__all__ = ["isect_offset_encode", "isect_tiles"]


def _reach(conics: torch.Tensor, opacities: torch.Tensor, radii: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Half width and height of alpha >= 1/255, and the bound of sigma on it; -1 where nothing is reached."""
    a, b, c = conics.unbind(-1)
    bound = (255 * opacities.clamp(min=0)).log()
    determinant = a * c - b * b
    half = (2 * bound[..., None] * torch.stack((c, a), -1) / determinant[..., None]).sqrt()
    alive = (radii > 0).all(-1) & (bound >= 0) & (determinant > 0) & half.isfinite().all(-1)
    return torch.where(alive[..., None], half, -1.0), bound


def _least_sigma(dx0, dx1, dy0, dy1, conics):
    """The least sigma on the rectangle [dx0, dx1] x [dy0, dy1] around the centre: 0 inside, else on an edge."""
    a, b, c = conics.unbind(-1)
    inside = (dx0 <= 0) & (dx1 >= 0) & (dy0 <= 0) & (dy1 >= 0)
    least = torch.where(inside, 0.0, math.inf)
    for x in (dx0, dx1):
        y = (-b * x / c).clamp(dy0, dy1)
        least = torch.minimum(least, 0.5 * (a * x * x + c * y * y) + b * x * y)
    for y in (dy0, dy1):
        x = (-b * y / a).clamp(dx0, dx1)
        least = torch.minimum(least, 0.5 * (a * x * x + c * y * y) + b * x * y)
    return least


@torch.no_grad()
def isect_tiles(
    means2d: torch.Tensor,
    radii: torch.Tensor,
    depths: torch.Tensor,
    tile_size: int,
    tile_width: int,
    tile_height: int,
    sort: bool = True,
    *,
    conics: torch.Tensor | None = None,
    opacities: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """List, tile by tile and near to far, the Gaussians that reach it.

    Without conics a Gaussian reaches the tiles that its box of radii overlaps; with conics and opacities those that
    have a point between their outermost pixel centres where opacity * exp(-sigma) >= 1/255: exact.
    Convention: tiles run row by row; pixel (i, j) has its centre at (i + 0.5, j + 0.5). A key is
    (image, tile, depth) in bits: depth as float32 in the low 32, tile in the next floor(log2(tiles)) + 1.
    Args:
        means2d: [..., N, 2]. radii: [..., N, 2], integers, 0 = not there. depths: [..., N], not negative. The leading
            axes count images.
        tile_size: in pixels. tile_width, tile_height: of the image, in tiles.
        sort: by key; else by Gaussian.
        conics, opacities: [..., N, 3] and [..., N], both or none.
    Returns:
        tiles_per_gauss: [..., N], int32. isect_ids: [M], int64, the keys. flatten_ids: [M], int32, indices into the
        flattened [..., N]. M depends on the data, so this function waits for the device and does not compile into one
        graph. Not differentiable.
    Raises:
        ValueError: shapes that do not fit, only one of conics and opacities, keys that need more than 63 bits.
    Backends: plain torch. Deterministic: yes (a stable sort).
    Source: Kerbl et al. 2023, arXiv 2308.04079, section 6; exact test: minimum of a convex quadratic on a rectangle.
    Example:
        >>> mean, radius = torch.tensor([[16.0, 8.0]]), torch.tensor([[4, 4]])
        >>> per, ids, flat = isect_tiles(mean, radius, torch.ones(1), 16, 2, 1)
        >>> per.tolist(), (ids >> 32).tolist()
        ([2], [0, 1])
    """
    name = "isect_tiles"
    lead = means2d.shape[:-1]
    if means2d.shape[-1:] != (2,) or radii.shape != means2d.shape or depths.shape != lead:
        _check.fail(name, "expected `means2d` and `radii` of shape [..., N, 2] and `depths` of shape [..., N].",
                    means2d=means2d, radii=radii, depths=depths)  # fmt: skip
    exact = conics is not None
    if exact != (opacities is not None) or (exact and (conics.shape != (*lead, 3) or opacities.shape != lead)):
        _check.fail(name, "expected `conics` of shape [..., N, 3] and `opacities` of shape [..., N], or neither.",
                    means2d=means2d, conics=conics, opacities=opacities)  # fmt: skip
    count, tiles = lead[-1], tile_width * tile_height
    images = math.prod(lead[:-1])
    tile_bits = tiles.bit_length()
    if 32 + tile_bits + images.bit_length() > 63:
        _check.fail(name, "the keys of so many images and tiles need more than 63 bits.", images=images, tiles=tiles)
    means, radii = means2d.reshape(-1, 2), radii.reshape(-1, 2)
    if exact:
        conics, opacities = conics.reshape(-1, 3), opacities.reshape(-1)
        half, bound = _reach(conics, opacities, radii)
    else:
        half = torch.where((radii > 0).all(-1, keepdim=True), radii.to(means.dtype), -1.0)
    size = torch.tensor((tile_width, tile_height), device=means.device)
    low = ((means - half) / tile_size).floor().clamp(min=0).minimum(size).long()
    high = ((means + half) / tile_size).ceil().clamp(min=0).minimum(size).long()
    span = torch.where(half >= 0, (high - low).clamp(min=0), 0)
    candidates = span[:, 0] * span[:, 1]
    owner = torch.repeat_interleave(candidates)
    rank = torch.arange(owner.shape[0], device=means.device) - (candidates.cumsum(0) - candidates)[owner]
    wide = span[owner, 0]
    tile_x, tile_y = low[owner, 0] + rank % wide, low[owner, 1] + rank // wide
    if exact:
        corner = torch.stack((tile_x, tile_y), -1) * tile_size - means[owner]
        first, last = corner + 0.5, corner + (tile_size - 0.5)
        sigma = _least_sigma(first[:, 0], last[:, 0], first[:, 1], last[:, 1], conics[owner])
        keep = sigma <= bound[owner]
        owner, tile_x, tile_y = owner[keep], tile_x[keep], tile_y[keep]
    bits = depths.reshape(-1).float().contiguous().view(torch.int32).long() & 0xFFFFFFFF
    image = owner // max(1, count)
    keys = ((image << tile_bits | tile_y * tile_width + tile_x) << 32) | bits[owner]
    if sort:
        keys, order = keys.sort(stable=True)
        owner_sorted = owner[order]
    else:
        owner_sorted = owner
    per = torch.bincount(owner, minlength=means.shape[0]).int().reshape(lead)
    return per, keys, owner_sorted.int()


@torch.no_grad()
def isect_offset_encode(isect_ids: torch.Tensor, n_images: int, tile_width: int, tile_height: int) -> torch.Tensor:
    """Where each tile's part of the sorted keys of `isect_tiles` begins.

    Args:
        isect_ids: [M], int64, sorted.
        n_images, tile_width, tile_height: as they were there.
    Returns:
        offsets: [n_images, tile_height, tile_width], int32; the part ends where the next tile's begins. Not
        differentiable.
    Raises:
        ValueError: keys that are not [M] of int64.
    Backends: plain torch. Deterministic: yes.
    Source: Kerbl et al. 2023, arXiv 2308.04079, section 6.
    Example:
        >>> isect_offset_encode(torch.tensor([0, 1 << 32, 1 << 32]), 1, 3, 1).tolist()
        [[[0, 1, 3]]]
    """
    if isect_ids.dim() != 1 or isect_ids.dtype is not torch.int64:
        _check.fail("isect_offset_encode", "expected `isect_ids` of shape [M], int64.", isect_ids=isect_ids)
    tiles = tile_width * tile_height
    image = torch.arange(n_images, device=isect_ids.device)[:, None] << tiles.bit_length()
    wanted = (image | torch.arange(tiles, device=isect_ids.device)) << 32
    offsets = torch.searchsorted(isect_ids, wanted.reshape(-1))
    return offsets.int().reshape(n_images, tile_height, tile_width)
