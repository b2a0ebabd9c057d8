"""Renderers of layers, volumes and particles as modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from vidkernels import _check, functional

__all__ = ["InverseLBS", "LayeredVolumeRenderer", "MPIRenderer", "PointRayRenderer", "VolumeRenderer"]

Field = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class MPIRenderer(nn.Module):
    """Multiplane images at fixed disparities in a target view; see functional.render_mpi.

    Args:
        planes: number of planes D.
        near, far: depth of the first and last plane; disparities lie evenly between.
    Example:
        >>> renderer = MPIRenderer(4, near=1.0, far=10.0)
        >>> k = torch.tensor([[8.0, 0, 4], [0, 8, 4], [0, 0, 1]])
        >>> renderer(torch.rand(2, 4, 8, 8, 4), k, k, torch.eye(4))[0].shape
        torch.Size([2, 8, 8, 3])
    """

    def __init__(self, planes: int, near: float, far: float):
        super().__init__()
        if not (planes >= 1 and 0 < near < far):
            _check.fail("MPIRenderer", "expected planes >= 1 and 0 < near < far.", planes=planes, near=near, far=far)
        self.register_buffer("disparities", torch.linspace(1 / near, 1 / far, planes))

    def forward(
        self,
        planes: torch.Tensor,
        k_source: torch.Tensor,
        k_target: torch.Tensor,
        pose: torch.Tensor,
        size: tuple[int, int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, D, H, W, C + 1] -> image [B, H', W', C], weights [B, H', W', D], transmittance [B, H', W']."""
        return functional.render_mpi(planes, self.disparities, k_source, k_target, pose, size)


class VolumeRenderer(nn.Module):
    """Sample a field along rays and composite; optionally twice, the second time where the first found something.

    A field is any callable (points [R, S, 3], directions [R, S, 3]) -> (density [R, S], color [R, S, C]). Samples are
    jittered in training mode only.

    Args:
        near, far: range of the rays.
        samples: intervals per ray.
        importance: intervals of the second rendering; 0: none. The first one then runs without gradient.
    Example:
        >>> renderer = VolumeRenderer(near=0.0, far=2.0, samples=8, importance=8)
        >>> fog = lambda points, directions: (torch.ones(points.shape[:2]), points)
        >>> out, weights, left, t = renderer(fog, torch.zeros(5, 3), torch.ones(5, 3))
        >>> out.shape, t.shape
        (torch.Size([5, 3]), torch.Size([5, 9]))
    """

    def __init__(self, near: float, far: float, samples: int, importance: int = 0):
        super().__init__()
        self.near, self.far, self.samples, self.importance = near, far, samples, importance

    def sample(
        self, field: Field, origins: torch.Tensor, directions: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """density [R, S], color [R, S, C] and interval ends t [R, S + 1], before compositing."""
        jitter = self.training
        t = functional.stratified_samples(
            self.near, self.far, origins.shape[0], self.samples, generator, jitter=jitter, device=origins.device
        ).to(origins.dtype)
        if self.importance:
            with torch.no_grad():
                _, weights, _ = functional.render_rays(*_at(field, origins, directions, t), t)
            # The surface may as well begin in the interval before the one whose middle met it: spread the weights
            # to their neighbours (Barron et al. 2021, arXiv 2103.13415, eq. 18).
            peak = torch.nn.functional.max_pool1d(weights, 2, 1, 1)
            spread = (peak[:, 1:] + peak[:, :-1]) / 2
            t = functional.importance_samples(t, spread, self.importance, generator, jitter=jitter)
        return *_at(field, origins, directions, t), t

    def forward(
        self,
        field: Field,
        origins: torch.Tensor,
        directions: torch.Tensor,
        generator: torch.Generator | None = None,
        background: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rays [R, 3] -> out [R, C], weights [R, S], transmittance [R], t [R, S + 1]."""
        density, color, t = self.sample(field, origins, directions, generator)
        return *functional.render_rays(density, color, t, background), t


class LayeredVolumeRenderer(nn.Module):
    """Several fields, each sampled in its own way, composited as one: samples are merged by depth.

    Every layer keeps its own interval lengths, so optical depth adds up where layers overlap.

    Args:
        layers: one VolumeRenderer per layer, which says how that layer is sampled.
    Example:
        >>> parts = [vk.nn.VolumeRenderer(0.0, 1.0, 4), vk.nn.VolumeRenderer(0.5, 9.0, 8)]
        >>> renderer = LayeredVolumeRenderer(parts)
        >>> fog = lambda points, directions: (torch.ones(points.shape[:2]), points)
        >>> out, weights, left, order = renderer([fog, fog], torch.zeros(5, 3), torch.ones(5, 3))
        >>> weights.shape
        torch.Size([5, 12])
    """

    def __init__(self, layers: Sequence[VolumeRenderer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self,
        fields: Sequence[Field],
        origins: torch.Tensor,
        directions: torch.Tensor,
        generator: torch.Generator | None = None,
        background: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rays [R, 3] -> out [R, C], weights [R, S'], transmittance [R], and `order` of merge_samples [R, S']."""
        if len(fields) != len(self.layers):
            _check.fail("LayeredVolumeRenderer", f"expected one field per layer, {len(self.layers)}.", got=len(fields))
        parts = []
        for layer, field in zip(self.layers, fields):
            density, color, t = layer.sample(field, origins, directions, generator)
            alpha = functional.alpha_from_density(density, t.diff(dim=-1))
            parts.append((color, alpha, (t[:, 1:] + t[:, :-1]) / 2))
        values, alpha, order = functional.merge_samples(parts)
        return *functional.composite(values, alpha, background), order


class PointRayRenderer(nn.Module):
    """Particles with features seen along rays: an MLP looks at the nearest particles of each sample.

    For each of the k particles nearest a sample and within `radius`: MLP(feature, offset / radius) -> density, colour,
    blended with the weight (1 - distance^2 / radius^2)^2. A sample that no particle reaches is empty, so removing a
    particle changes nothing beyond its radius.

    Args:
        features: width of a particle's feature.
        radius: how far a particle reaches.
        near, far, samples: as VolumeRenderer.
        k: particles per sample.
        hidden: width of the MLP.
        channels: C of the result.
    Example:
        >>> renderer = PointRayRenderer(8, radius=0.5, near=0.0, far=2.0, samples=8)
        >>> out, _, left, _ = renderer(torch.randn(20, 3), torch.randn(20, 8), torch.zeros(5, 3), torch.ones(5, 3))
        >>> out.shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int,
        radius: float,
        near: float,
        far: float,
        samples: int,
        *,
        k: int = 4,
        hidden: int = 32,
        channels: int = 3,
    ):
        super().__init__()
        self.radius, self.k, self.channels = radius, k, channels
        self.rays = VolumeRenderer(near, far, samples)
        self.mlp = nn.Sequential(
            nn.Linear(features + 3, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, 1 + channels),
        )  # fmt: skip

    def field(self, positions: torch.Tensor, features: torch.Tensor) -> Field:
        """The particles as a field; density per radius of length."""

        def look(points: torch.Tensor, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            flat = points.reshape(-1, 3)
            density = flat.new_zeros(flat.shape[0])
            color = flat.new_zeros(flat.shape[0], self.channels)
            k = min(self.k, positions.shape[0])
            if k:
                # Most samples are empty: only the others are worth a search for k neighbours.
                with torch.no_grad():
                    busy = (functional.nearest_points(flat, positions, 1)[0][:, 0] < self.radius).nonzero()[:, 0]
                    distance, index = functional.nearest_points(flat[busy], positions, k)
                    row, slot = (distance < self.radius).nonzero(as_tuple=True)
                    place, particle = busy[row], index[row, slot]
                offset = (flat[place] - positions[particle]) / self.radius
                seen = self.mlp(torch.cat([features[particle], offset], 1))
                nearness = (1 - offset.square().sum(1)).clamp(min=0).square()
                mass = nearness * nn.functional.softplus(seen[:, 0])
                density = density.index_add(0, place, mass)
                color = color.index_add(0, place, mass[:, None] * torch.sigmoid(seen[:, 1:]))
                color = color / density.clamp(min=1e-6)[:, None]
            return density.view(points.shape[:2]) / self.radius, color.view(*points.shape[:2], self.channels)

        return look

    def forward(
        self,
        positions: torch.Tensor,
        features: torch.Tensor,
        origins: torch.Tensor,
        directions: torch.Tensor,
        generator: torch.Generator | None = None,
        background: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Particles [N, 3], [N, F] and rays [R, 3] -> out [R, C], weights [R, S], transmittance [R], t [R, S + 1]."""
        return self.rays(self.field(positions, features), origins, directions, generator, background)


class InverseLBS(nn.Module):
    """Inverse linear blend skinning with a learned weight volume; see functional.inverse_skinning.

    The volume starts as a Gaussian around each bone and is a softmax over the bones and an "elsewhere" channel.

    Args:
        heads, tails: [K, 3], the segment that each bone is in the rest pose.
        bounds: [2, 3], corners of the rest-pose box.
        resolution: cells per axis.
        width: standard deviation of the Gaussians.
    Example:
        >>> heads, tails = torch.tensor([[0.0, 0, 0]]), torch.tensor([[0.0, 1, 0]])
        >>> skin = InverseLBS(heads, tails, torch.tensor([[-1.0, -1, -1], [1, 2, 1]]), resolution=8)
        >>> rest, likelihood = skin(torch.tensor([[0.0, 0.5, 0.0]]), torch.eye(4)[None])
        >>> torch.allclose(rest, torch.tensor([[0.0, 0.5, 0.0]]), atol=1e-6)
        True
    """

    def __init__(
        self,
        heads: torch.Tensor,
        tails: torch.Tensor,
        bounds: torch.Tensor,
        *,
        resolution: int = 16,
        width: float = 0.2,
    ):
        super().__init__()
        axes = [torch.linspace(float(a), float(b), resolution) for a, b in zip(bounds[0], bounds[1])]
        z, y, x = torch.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
        cells = torch.stack([x, y, z], -1)
        along = (tails - heads)[:, None, None, None]
        offset = cells - heads[:, None, None, None]
        part = (offset * along).sum(-1) / along.square().sum(-1).clamp(min=1e-12)
        away = (offset - part.clamp(0, 1)[..., None] * along).square().sum(-1)
        logits = -away / (2 * width**2)
        # "Elsewhere" wins beyond two widths of every bone.
        self.logits = nn.Parameter(torch.cat([logits, torch.full_like(logits[:1], -2.0)]).float())
        self.register_buffer("bounds", bounds.float())

    def forward(self, points: torch.Tensor, transforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Observed points [N, 3], transforms [K, 4, 4] -> rest points [N, 3], likelihood [N]."""
        return functional.inverse_skinning(points, transforms, self.logits.softmax(0)[:-1], self.bounds)


def _at(
    field: Field, origins: torch.Tensor, directions: torch.Tensor, t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A field at the middles of the intervals."""
    middle = (t[:, 1:] + t[:, :-1]) / 2
    points = origins[:, None] + middle[..., None] * directions[:, None]
    return field(points, directions[:, None].expand_as(points))
