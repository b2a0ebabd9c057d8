"""Volume rendering along rays, and where to put the samples."""

from __future__ import annotations

import torch

from vidkernels import _check
from vidkernels.functional.splatting.composite import alpha_from_density, composite

__all__ = ["contract", "importance_samples", "merge_samples", "pixel_rays", "render_rays", "stratified_samples"]


def pixel_rays(k: torch.Tensor, pose: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """One ray through the centre of each pixel.

    Convention: x right, y down, z forward; pixel (i, j) has its centre at (i + 0.5, j + 0.5). Directions have z = 1 in
        the camera, so that a distance along the ray is a depth.
    Args:
        k: [3, 3], intrinsics in pixels.
        pose: [4, 4], world coordinates from camera coordinates.
        size: (height, width).
    Returns:
        origins, directions: [H, W, 3] each, in world coordinates. Differentiable.
    Raises:
        RuntimeError: from torch, for shapes that do not broadcast.
    Backends: reference (plain torch). Deterministic: yes.
    Source: the pinhole camera.
    Example:
        >>> k = torch.tensor([[2.0, 0, 1], [0, 2, 1], [0, 0, 1]])
        >>> pixel_rays(k, torch.eye(4), (2, 2))[1][0, 1].tolist()
        [0.25, -0.25, 1.0]
    """
    if k.shape != (3, 3) or pose.shape != (4, 4):
        _check.fail("pixel_rays", "expected `k` of shape [3, 3] and `pose` of shape [4, 4].", k=k, pose=pose)
    y, x = torch.meshgrid(*(torch.arange(n, device=k.device, dtype=k.dtype) + 0.5 for n in size), indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], -1)
    directions = pixels @ torch.linalg.inv(k).mT @ pose[:3, :3].mT
    return pose[:3, 3].expand_as(directions), directions


def stratified_samples(
    near: torch.Tensor | float,
    far: torch.Tensor | float,
    rays: int,
    count: int,
    generator: torch.Generator | None = None,
    *,
    jitter: bool = True,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Ends of `count` intervals per ray: an even division of [near, far] whose inner ends are moved at random.

    Args:
        near, far: numbers or [R].
        rays, count: R and S.
        generator: of the jitter.
        jitter: False for the even division itself (rendering after training).
        device: of the result; None: that of `near`.
    Returns:
        t: [R, S + 1], ascending, from near to far. Not differentiable in the draw.
    Raises:
        RuntimeError: from torch, for shapes that do not broadcast.
    Backends: reference (plain torch). Deterministic: yes.
    Source: Mildenhall et al. 2020, arXiv 2003.08934, eq. 2; differs: interval ends are drawn, the first and last stay.
    Example:
        >>> stratified_samples(0.0, 1.0, 1, 4, jitter=False).tolist()
        [[0.0, 0.25, 0.5, 0.75, 1.0]]
    """
    near, far = (torch.as_tensor(v, dtype=torch.float32, device=device) for v in (near, far))
    place = torch.arange(count + 1, device=near.device, dtype=torch.float32).expand(rays, -1).clone()
    if jitter and count > 1:
        place[:, 1:-1] += torch.rand(rays, count - 1, generator=generator, device=near.device) - 0.5
    near, far = (v.reshape(-1, 1) for v in (near, far))
    return near + (far - near) * (place / count)


def importance_samples(
    t: torch.Tensor,
    weights: torch.Tensor,
    count: int,
    generator: torch.Generator | None = None,
    *,
    jitter: bool = True,
    floor: float = 1e-3,
) -> torch.Tensor:
    """Interval ends drawn where a first rendering found weight: inverse transform of the piecewise constant density.

    Args:
        t: [R, S + 1], ascending interval ends.
        weights: [R, S], from `composite`; detached here.
        count: number of intervals wanted.
        generator: of the jitter.
        jitter: draw inside equal parts of [0, 1] instead of taking their ends.
        floor: part of the mass that is spread evenly, so that every place stays reachable.
    Returns:
        t: [R, count + 1], ascending, the first and last end kept. Not differentiable.
    Raises:
        ValueError: shapes that do not fit.
    Backends: reference (plain torch). Deterministic: yes.
    Source: Mildenhall et al. 2020, arXiv 2003.08934, section 5.2.
    Example:
        >>> t = torch.tensor([[0.0, 1.0, 2.0]])
        >>> importance_samples(t, torch.tensor([[1.0, 0.0]]), 4, jitter=False, floor=0.0).tolist()
        [[0.0, 0.25, 0.5, 0.75, 2.0]]
    """
    rays, samples = weights.shape
    if t.shape != (rays, samples + 1):
        _check.fail("importance_samples", "expected `t` of shape [R, S + 1] and `weights` of shape [R, S].",
                    t=t, weights=weights)  # fmt: skip
    with torch.no_grad():
        mass = weights.detach()
        total = mass.sum(1, keepdim=True)
        even = torch.full_like(mass, 1 / samples)
        mass = torch.where(total > 1e-12, (1 - floor) * mass / total.clamp(min=1e-12) + floor * even, even)
        below = torch.nn.functional.pad(mass.cumsum(1), (1, 0))
        below = below / below[:, -1:]
        u = torch.arange(count + 1, device=t.device, dtype=t.dtype).expand(rays, -1).clone()
        if jitter and count > 1:
            u[:, 1:-1] += torch.rand(rays, count - 1, generator=generator, device=t.device, dtype=t.dtype) - 0.5
        u = u / count
        right = torch.searchsorted(below, u.contiguous(), right=True).clamp(1, samples)
        b0, b1 = below.gather(1, right - 1), below.gather(1, right)
        t0, t1 = t.gather(1, right - 1), t.gather(1, right)
        drawn = t0 + (t1 - t0) * ((u - b0) / (b1 - b0).clamp(min=1e-12)).clamp(0, 1)
        drawn[:, 0], drawn[:, -1] = t[:, 0], t[:, -1]
        return drawn.sort(1).values


def render_rays(
    density: torch.Tensor,
    color: torch.Tensor,
    t: torch.Tensor,
    background: torch.Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Volume rendering: density and colour, constant inside each interval, seen along rays.

    alpha_s = 1 - exp(-density_s (t_{s+1} - t_s)), then `composite`.
    Args:
        density: [..., S], not negative, per unit of t.
        color: [..., S, C], colours or features.
        t: [..., S + 1], ascending interval ends.
        background: [C] or [..., C], what lies behind the last interval.
        backend: of `composite`; None chooses.
    Returns:
        out: [..., C], weights: [..., S], transmittance: [...]. Differentiable in everything.
    Raises:
        ValueError: shapes that do not fit.
    Backends: those of `composite`.
    Source: Mildenhall et al. 2020, arXiv 2003.08934, eq. 3.
    Example:
        >>> density = torch.full((1, 50), 0.7)
        >>> _, _, left = render_rays(density, torch.ones(1, 50, 1), torch.linspace(0, 2, 51)[None])
        >>> torch.allclose(left, torch.tensor(-0.7 * 2).exp())
        True
    """
    if t.shape[-1] != density.shape[-1] + 1 or t.shape[:-1] != density.shape[:-1]:
        _check.fail("render_rays", "expected `t` of shape [..., S + 1], the ends of the intervals of `density`.",
                    density=density, t=t)  # fmt: skip
    return composite(color, alpha_from_density(density, t.diff(dim=-1)), background, backend=backend)


def merge_samples(
    layers: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put the samples of several layers of one scene in order of depth, ready for `composite`.

    Args:
        layers: (values [..., S, C], alpha [..., S], depth [..., S]) each; S may differ. Equal depths keep this order.
    Returns:
        values: [..., S', C], alpha: [..., S'], order: [..., S'] int64, the place of each sample in the concatenation.
            Differentiable in values and alpha.
    Raises:
        RuntimeError: from torch, for shapes that do not broadcast.
    Backends: reference (plain torch). Deterministic: yes.
    Source: Liu et al. 2023, arXiv 2304.12281.
    Example:
        >>> near = torch.tensor([[1.0]]), torch.tensor([0.5]), torch.tensor([1.0])
        >>> far = torch.tensor([[10.0]]), torch.tensor([1.0]), torch.tensor([2.0])
        >>> vk.functional.composite(*merge_samples([far, near])[:2])[0].tolist()
        [5.5]
    """
    values, alpha, depth = (torch.cat(parts, axis) for parts, axis in zip(zip(*layers), (-2, -1, -1)))
    order = depth.argsort(dim=-1, stable=True)
    return values.gather(-2, order[..., None].expand_as(values)), alpha.gather(-1, order), order


def contract(x: torch.Tensor) -> torch.Tensor:
    """Map all of space into a ball of radius 2: the identity inside the unit ball, (2 - 1/|x|) x/|x| outside.

    Args:
        x: [..., 3].
    Returns:
        contracted: [..., 3]. Differentiable.
    Raises:
        RuntimeError: from torch, for shapes that do not broadcast.
    Backends: reference (plain torch). Deterministic: yes.
    Source: Barron et al. 2022, arXiv 2111.12077, eq. 10.
    Example:
        >>> contract(torch.tensor([[0.5, 0, 0], [4.0, 0, 0]])).tolist()
        [[0.5, 0.0, 0.0], [1.75, 0.0, 0.0]]
    """
    length = x.norm(dim=-1, keepdim=True).clamp(min=1.0)
    return (2 - 1 / length) * (x / length)
