"""Visual Particle Dynamics: a particle simulator learned from RGB-D video alone (Whitney et al. 2023).

An encoder gives every pixel a feature and depth puts it into space: the first two frames become two sets of particles.
A hierarchical graph network predicts how the particles go on; a ray renderer turns any set into an image from any
camera. Nothing but the pixels of the rolled out frames is supervised.

Particles talk through abstract nodes. These are the mean particles of the occupied cells of a fixed grid, so the nodes
of one object do not depend on whether another one, farther away than the radius, exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels import functional as vkf
from vidkernels import nn as vknn

from .._card import Card

CARD = Card(
    title="Learning 3D Particle-based Simulators from RGB-D Videos",
    arxiv="2312.05359",
    year=2023,
    family="splatting",
    ops=("composite", "nearest_points", "farthest_points", "unproject_depth", "render_rays"),
    fidelity="simplified",
    differs="a small U-Net; abstract nodes are means of grid cells; the renderer blends per-particle densities within "
    "a radius instead of one network over all neighbours.",
)


@dataclass(frozen=True)
class Config:
    """Sizes, in the scene's unit of length: `cell` of the node grid, `reach` of messages, `radius` of a particle,
    `step` that things move in a frame.
    """

    features: int = 16
    width: int = 128
    messages: int = 10
    particles: int = 4096
    neighbors: int = 8
    cell: float = 0.5
    reach: float = 1.0
    radius: float = 0.15
    step: float = 0.1
    near: float = 0.5
    far: float = 6.0
    samples: int = 64
    rays: int = 1024
    rollout: int = 6

    @classmethod
    def tiny(cls) -> Config:
        """For tests: 160 particles, two message steps, rollouts of 5."""
        return cls(features=4, width=32, messages=2, particles=160, neighbors=4, cell=0.6, reach=0.7, radius=0.25,
                   step=0.03, near=2.5, far=5.5, samples=20, rays=128, rollout=5)  # fmt: skip


class _Encoder(nn.Module):
    """A U-Net of one step down and up: [N, 4, H, W] -> [N, F, H, W]."""

    def __init__(self, width: int, features: int):
        super().__init__()
        self.first = nn.Conv2d(4, width, 3, padding=1)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.last = nn.Conv2d(width, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = F.silu(self.first(x))
        coarse = F.interpolate(F.silu(self.down(fine)), fine.shape[2:])
        return self.last(F.silu(self.up(torch.cat([fine, coarse], 1))))


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, outputs))


class _Dynamics(nn.Module):
    """Particles -> nodes, messages between nodes, nodes -> particles: what changes in one frame."""

    def __init__(self, config: Config):
        super().__init__()
        self.config, width, features = config, config.width, config.features + 3
        self.gather = _mlp(features + 4, width, width)
        self.node = _mlp(2 * width + 9, width, width)
        self.edges = nn.ModuleList(_mlp(2 * width + 3, width, width) for _ in range(config.messages))
        self.update = nn.ModuleList(_mlp(2 * width, width, width) for _ in range(config.messages))
        self.spread = _mlp(width + features + 3, width, features + 3)
        # A new model lets everything go on as it moved.
        nn.init.zeros_(self.spread[-1].weight), nn.init.zeros_(self.spread[-1].bias)
        self.likeness = nn.Parameter(torch.tensor(3.0))

    def nodes(self, positions: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        cells = (positions / self.config.cell).floor().long()
        _, member = cells.unique(dim=0, return_inverse=True)
        count = int(member.max()) + 1
        return _mean(positions, member, count), _mean(features, member, count)

    def forward(self, before: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(positions [N, 3], features [N, F + 3]) one frame ago and now -> `now`'s particles one frame on.

        The two sets need not correspond: how far the matter around a node moved is the difference of the two means,
        in which particles count as far as their colour is like the node's.
        """
        reach = self.config.reach
        anchor, kind = self.nodes(now[0].detach(), now[1])
        seen, middle = [], []
        for age, (positions, features) in enumerate((before, now)):
            node, particle = (torch.cdist(anchor, positions.detach()) < reach).nonzero(as_tuple=True)
            offset = positions[particle] - anchor[node]
            flag = torch.full_like(offset[:, :1], float(age))
            message = self.gather(torch.cat([features[particle], offset / reach, flag], 1))
            unlike = (features[particle, :3] - kind[node, :3]).square().sum(1, keepdim=True)
            like = torch.exp(-self.likeness * unlike) + 1e-6
            seen.append(_mean(message, node, len(anchor), like))
            middle.append(_mean(offset, node, len(anchor), like))
        drift = middle[1] - middle[0]
        h = self.node(torch.cat([*seen, anchor, anchor + middle[1], drift / self.config.step], 1))
        k = min(self.config.neighbors + 1, len(anchor))
        distance, index = vkf.nearest_points(anchor, anchor, k)
        to, slot = ((distance < reach) & (distance > 0)).nonzero(as_tuple=True)
        source = index[to, slot]
        offset = (anchor[source] - anchor[to]) / reach
        for edge, update in zip(self.edges, self.update):
            message = edge(torch.cat([h[to], h[source], offset], 1))
            h = h + update(torch.cat([h, _mean(message, to, len(h))], 1))
        positions, features = now
        owner = vkf.nearest_points(positions.detach(), anchor, 1)[1][:, 0]
        offset = (positions - anchor[owner]) / reach
        change = self.spread(torch.cat([h[owner], features, offset], 1))
        return positions + drift[owner] + self.config.step * change[:, :3], features + 0.1 * change[:, 3:]


def _mean(rows: Tensor, to: Tensor, count: int, weight: Tensor | None = None) -> Tensor:
    """Means of the rows that share a target; 0 where there are none."""
    weight = torch.ones_like(rows[:, :1]) if weight is None else weight
    total = rows.new_zeros(count, rows.shape[1]).index_add(0, to, weight * rows)
    return total / rows.new_zeros(count, 1).index_add(0, to, weight).clamp(min=1e-9)


class VPD(nn.Module):
    """Encoder, particle dynamics and ray renderer, trained on rollouts in pixels.

    Args:     config: sizes, `VPD.Config.tiny()` or your own.
    Shape:    one scene is rgb [T, V, H, W, 3] uint8 with depth [T, V, H, W] (z in the camera, inf: nothing there), seen
              by V cameras with intrinsics k [3, 3] and poses [V, 4, 4] (world from camera).
    Source:   Whitney et al. 2023, arXiv 2312.05359.
    Example:
        >>> import torch
        >>> model = VPD(VPD.Config.tiny())
        >>> clip = torch.randint(0, 256, (1, 4, 16, 16, 3), dtype=torch.uint8)
        >>> model.training_step(clip, torch.Generator().manual_seed(0))["loss"].shape
        torch.Size([])
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config.width // 2, config.features)
        self.dynamics = _Dynamics(config)
        self.renderer = vknn.PointRayRenderer(config.features + 3, config.radius, config.near, config.far,
                                              config.samples, hidden=config.width)  # fmt: skip

    def encode(self, rgb: Tensor, depth: Tensor, k: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
        """One moment seen by V cameras, [V, H, W, 3] uint8 and [V, H, W]: particles ([N, 3], [N, 3 + F]).

        A particle's feature begins with the colour of its pixel. Where there are too many, farthest point sampling
        keeps `config.particles` of them.
        """
        color = rgb.float() / 255
        there = depth.isfinite()
        plain = torch.where(there, depth, torch.zeros_like(depth))
        inputs = torch.cat([color, (plain / self.config.far)[..., None]], 3).permute(0, 3, 1, 2)
        features = torch.cat([color, self.encoder(inputs).permute(0, 2, 3, 1)], 3)
        points = torch.stack([vkf.unproject_depth(d, k, pose) for d, pose in zip(plain, poses)])
        points, features = points[there], features[there]
        if len(points) > self.config.particles:
            keep = vkf.farthest_points(points, self.config.particles)
            points, features = points[keep], features[keep]
        return points, features

    def rollout(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], steps: int) -> list:
        """Particles of the `steps` frames after two given ones."""
        states = [first, second]
        for _ in range(steps):
            states.append(self.dynamics(states[-2], states[-1]) if len(states[-1][0]) else states[-1])
        return states[2:]

    def render(self, state: tuple[Tensor, Tensor], k: Tensor, pose: Tensor, size: tuple[int, int]) -> Tensor:
        """Particles as an image [H, W, 3] in 0..1 before black."""
        origins, directions = (r.reshape(-1, 3) for r in vkf.pixel_rays(k, pose, size))
        return self.renderer(*state, origins, directions)[0].view(*size, 3)

    def scene_loss(
        self, rgb: Tensor, depth: Tensor, k: Tensor, poses: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Encode frames 0 and 1, roll out, compare random rays of every frame, half of them where something is seen."""
        steps = min(self.config.rollout, len(rgb) - 2)
        first, second = (self.encode(rgb[t], depth[t], k, poses) for t in (0, 1))
        states = [second, *self.rollout(first, second, steps)]
        rays = [vkf.pixel_rays(k, pose, tuple(rgb.shape[2:4])) for pose in poses]
        origins, directions = (torch.stack(r).reshape(-1, 3) for r in zip(*rays))
        total = rgb.new_zeros((), dtype=torch.float32)
        for t, state in enumerate(states, 1):
            flat = rgb[t].reshape(-1, 3)
            busy = (depth[t] < torch.inf).reshape(-1).float() + 0.02
            some = torch.multinomial(busy, self.config.rays // 2, replacement=True, generator=generator)
            any_ray = torch.randint(len(flat), (self.config.rays // 2,), generator=generator, device=rgb.device)
            pick = torch.cat([some, any_ray])
            image = self.renderer(*state, origins[pick], directions[pick], generator)[0]
            total = total + (image - flat[pick].float() / 255).square().mean()
        return total / len(states)

    def training_step(
        self,
        clip: Tensor,
        generator: torch.Generator | None = None,
        *,
        depth: Tensor | None = None,
        k: Tensor | None = None,
        poses: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Rollout loss of [B, T, H, W, 3] clips of one camera, or [B, T, V, H, W, 3] of several.

        Args:     depth: [B, T, (V,) H, W]; None: a flat scene in the middle of the range.
                  k: [3, 3]; poses: [V, 4, 4]. None: one normal lens at the origin.
        """
        if clip.dtype is not torch.uint8 or clip.dim() not in (5, 6) or clip.shape[1] < 3:
            raise ValueError(
                f"VPD: expected `clip` [B, T, (V,) H, W, 3] of uint8, T >= 3, got {list(clip.shape)} {clip.dtype}.\n"
                "HINT: two frames are seen, at least one is predicted."
            )
        if depth is None:
            depth = torch.full(clip.shape[:-1], (self.config.near + self.config.far) / 2, device=clip.device)
        if clip.dim() == 5:
            clip, depth = clip[:, :, None], depth[:, :, None]
        height, width = clip.shape[3:5]
        if k is None:
            k = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], device=clip.device)
        if poses is None:
            poses = torch.eye(4, device=clip.device).expand(clip.shape[2], 4, 4)
        losses = [self.scene_loss(c, d, k, poses, generator) for c, d in zip(clip, depth)]
        return {"loss": torch.stack(losses).mean()}

    def forward(self, clip: Tensor, generator: torch.Generator | None = None, **scene: Tensor) -> dict[str, Tensor]:
        # What DistributedDataParallel calls.
        return self.training_step(clip, generator, **scene)
