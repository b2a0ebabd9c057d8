"""HOSNeRF: a person, the objects they handle and the scene as two radiance fields in one (Liu et al. 2023).

Layer one is the person with what they hold, in the rest pose of a tree of bones: a sample of the observed space is
pulled back by inverse linear blend skinning and a small pose-dependent offset. An object hangs on an extra bone of the
hand. Layer two is the scene, in contracted space. Both are conditioned on a learned code of the state the objects are
in, chosen by the interval of time: "on the table", "in the hand". The samples of both layers are sorted by depth and
composited as one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels import functional as vkf
from vidkernels import nn as vknn

from .._card import Card

CARD = Card(
    title="HOSNeRF: Dynamic Human-Object-Scene Neural Radiance Fields from a Single Video",
    arxiv="2304.12281",
    year=2023,
    family="splatting",
    ops=("composite", "inverse_skinning", "bone_transforms", "contract", "merge_samples"),
    fidelity="simplified",
    differs="plain positional encoding instead of cones; no perceptual and no cycle loss; bones come from "
    "the caller instead of a fitted body model; poses are not refined.",
)


@dataclass(frozen=True)
class Config:
    """The skeleton in its rest pose and the sizes of the two fields.

    `heads`, `tails`: where each bone begins and ends; `parents`: -1 for a root; `bounds`: the box around them.
    `changes`: frames at which an object changes its state; the code of frame t is the number of changes <= t.
    `person_range`, `scene_range`: (near, far) of the samples of each layer. `scale`: length that contraction keeps.
    """

    heads: tuple[tuple[float, float, float], ...]
    tails: tuple[tuple[float, float, float], ...]
    parents: tuple[int, ...]
    bounds: tuple[tuple[float, float, float], tuple[float, float, float]]
    changes: tuple[int, ...] = ()
    person_range: tuple[float, float] = (1.0, 4.0)
    scene_range: tuple[float, float] = (0.5, 8.0)
    scale: float = 4.0
    bone_width: float = 0.15
    code: int = 64
    width: int = 256
    depth: int = 8
    octaves: int = 10
    samples: int = 128
    rays: int = 4096
    opacity: float = 0.001

    @classmethod
    def tiny(cls) -> Config:
        """For tests: an upper and a lower arm and an object in the hand, one change at frame 2."""
        return cls(
            heads=((-0.8, 0.0, 3.0), (-0.1, 0.0, 3.0), (0.7, 0.0, 3.0)),
            tails=((-0.1, 0.0, 3.0), (0.6, 0.0, 3.0), (0.8, 0.0, 3.0)),
            parents=(-1, 0, 1),
            bounds=((-1.2, -0.6, 2.4), (1.3, 0.6, 3.6)),
            changes=(2,), person_range=(2.0, 4.0), scene_range=(1.5, 6.5), code=8, width=48, depth=3, octaves=4,
            samples=32, rays=256,
        )  # fmt: skip


class _RadianceField(nn.Module):
    """Position and state code -> density and colour."""

    def __init__(self, config: Config):
        super().__init__()
        width, self.octaves = config.width, config.octaves
        layers: list[nn.Module] = [nn.Linear(3 + 6 * config.octaves + config.code, width), nn.SiLU()]
        for _ in range(config.depth - 1):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, 4))
        self.codes = nn.Parameter(0.1 * torch.randn(len(config.changes) + 1, config.code))

    def forward(self, points: Tensor, state: int) -> tuple[Tensor, Tensor]:
        angles = points[..., None, :] * (2.0 ** torch.arange(self.octaves, device=points.device) * math.pi / 2)[:, None]
        waves = torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)
        code = self.codes[state].expand(*points.shape[:-1], -1)
        out = self.net(torch.cat([points, waves, code], -1))
        return 10 * F.softplus(out[..., 0] - 2), torch.sigmoid(out[..., 1:])


class HOSNeRF(nn.Module):
    """Person with objects, and scene, fitted to one video with known cameras and bone poses.

    Args:     config: sizes and skeleton, `HOSNeRF.Config.tiny()` or your own.
    Shape:    clips are [B, T, H, W, 3] uint8, all of one scene; poses [T, 4, 4] world from camera; rotations
              [T, K, 3, 3] of the bones, translation [T, 3] of the root.
    Source:   Liu et al. 2023, arXiv 2304.12281.
    Example:
        >>> import torch
        >>> model = HOSNeRF(HOSNeRF.Config.tiny())
        >>> clip = torch.randint(0, 256, (1, 4, 16, 16, 3), dtype=torch.uint8)
        >>> model.training_step(clip, torch.Generator().manual_seed(0))["loss"].shape
        torch.Size([])
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.register_buffer("joints", torch.tensor(config.heads))
        self.skin = vknn.InverseLBS(
            self.joints, torch.tensor(config.tails), torch.tensor(config.bounds), width=config.bone_width
        )
        self.person, self.scene = _RadianceField(config), _RadianceField(config)
        bones = len(config.parents)
        self.sway = nn.Sequential(nn.Linear(3 + 9 * bones, config.width), nn.SiLU(), nn.Linear(config.width, 3))
        nn.init.zeros_(self.sway[-1].weight), nn.init.zeros_(self.sway[-1].bias)
        self.renderer = vknn.LayeredVolumeRenderer(
            [vknn.VolumeRenderer(*bounds, config.samples) for bounds in (config.person_range, config.scene_range)]
        )

    def state_of(self, frame: int) -> int:
        """Number of the state that the objects are in at a frame."""
        return sum(frame >= change for change in self.config.changes)

    def fields(self, rotations: Tensor, translation: Tensor, state: int) -> Sequence:
        """Both layers at one moment, as fields of observed space."""
        motion = vkf.bone_transforms(self.joints, self.config.parents, rotations, translation)
        pose = rotations.reshape(1, -1)

        def person(points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
            flat = points.reshape(-1, 3)
            rest, likelihood = self.skin(flat, motion)
            density, color = flat.new_zeros(len(flat)), torch.zeros_like(flat)
            near = (likelihood > 0.02).nonzero()[:, 0]  # most of space is far from every bone
            rest = rest[near]
            rest = rest + 0.1 * torch.tanh(self.sway(torch.cat([rest, pose.expand(len(rest), -1)], 1)))
            found, paint = self.person(rest - self.joints[0], state)
            density = density.index_copy(0, near, found * likelihood[near])
            color = color.index_copy(0, near, paint)
            return density.view(points.shape[:2]), color.view(points.shape)

        def scene(points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
            return self.scene(vkf.contract(points / self.config.scale), state)

        return person, scene

    def render(
        self, origins: Tensor, directions: Tensor, rotations: Tensor, translation: Tensor, state: int,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Rays [R, 3] at one moment: colour [R, 3], weights [R, 2 S], and how much of it is the person [R]."""
        out, weights, _, order = self.renderer(
            self.fields(rotations, translation, state), origins, directions, generator
        )
        return out, weights, (weights * (order < self.config.samples)).sum(1)

    def training_step(
        self,
        clip: Tensor,
        generator: torch.Generator | None = None,
        *,
        k: Tensor | None = None,
        poses: Tensor | None = None,
        rotations: Tensor | None = None,
        translation: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Random rays of one random frame of each state against their pixels.

        Args:     k: [3, 3]; None: a normal lens. poses: [T, 4, 4]; None: the origin. rotations: [T, K, 3, 3] and
                  translation: [T, 3]; None: the rest pose.
        """
        if clip.dtype is not torch.uint8 or clip.dim() != 5 or clip.shape[-1] != 3:
            raise ValueError(
                f"HOSNeRF: expected `clip` [B, T, H, W, 3] of uint8, got {list(clip.shape)} {clip.dtype}.\n"
                "HINT: one video needs a batch axis: clip.unsqueeze(0)."
            )
        frames, height, width = clip.shape[1:4]
        if k is None:
            k = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], device=clip.device)
        if poses is None:
            poses = torch.eye(4, device=clip.device).expand(frames, 4, 4)
        if rotations is None:
            rotations = torch.eye(3, device=clip.device).expand(frames, len(self.joints), 3, 3)
        if translation is None:
            translation = torch.zeros(frames, 3, device=clip.device)
        edges = [0, *(min(change, frames) for change in self.config.changes), frames]
        spans = [(a, b) for a, b in pairwise(edges) if a < b]
        losses = []
        for begin, end in spans:
            b = int(torch.randint(len(clip), (), generator=generator, device=clip.device))
            t = int(torch.randint(begin, end, (), generator=generator, device=clip.device))
            origins, directions = (r.reshape(-1, 3) for r in vkf.pixel_rays(k, poses[t], (height, width)))
            pick = torch.randint(
                height * width, (self.config.rays // len(spans),), generator=generator, device=clip.device
            )
            target = clip[b, t].reshape(-1, 3)[pick].float() / 255
            image, _, person = self.render(
                origins[pick], directions[pick], rotations[t], translation[t], self.state_of(t), generator
            )
            share = person.clamp(1e-4, 1 - 1e-4)  # of a pixel: person or scene, rarely both
            entropy = -(share * share.log() + (1 - share) * (1 - share).log()).mean()
            losses.append((image - target).square().mean() + self.config.opacity * entropy)
        return {"loss": torch.stack(losses).mean()}

    def forward(self, clip: Tensor, generator: torch.Generator | None = None, **scene: Tensor) -> dict[str, Tensor]:
        # What DistributedDataParallel calls.
        return self.training_step(clip, generator, **scene)

    @torch.no_grad()
    def image(
        self, k: Tensor, pose: Tensor, size: tuple[int, int], rotations: Tensor, translation: Tensor, state: int
    ) -> Tensor:
        """One moment from any camera, objects in any state: [H, W, 3] in 0..1."""
        origins, directions = (r.reshape(-1, 3) for r in vkf.pixel_rays(k, pose, size))
        parts = [
            self.render(o, d, rotations, translation, state)[0]
            for o, d in zip(origins.split(self.config.rays), directions.split(self.config.rays))
        ]
        return torch.cat(parts).view(*size, 3)
