"""IM-Portrait: video diffusion that paints a multiplane image for every frame (Li et al. 2025).

A denoiser looks at noisy frames and a reference image and predicts, for each frame, D fronto-parallel RGBA planes;
what is compared with the clean frame is their rendering (x0-prediction). To learn depth from one camera per moment, a
step chooses at random in which camera the planes stand: in the frame's own, where they are composited as they are, or
in that of the reference, where each is warped to the frame by its homography first. Only the second tells the planes
apart; only the first is free of resampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidkernels import functional as vkf
from vidkernels import nn as vknn

from .._card import Card

CARD = Card(
    title="IM-Portrait: Learning 3D-aware Video Diffusion for Photorealistic Talking Heads from Monocular Videos",
    arxiv="2504.19165",
    year=2025,
    family="splatting",
    ops=("composite", "render_mpi"),
    fidelity="simplified",
    differs="pixels instead of video latents; a small convolutional denoiser trained from scratch; camera poses for "
    "face-model control maps; a penalty on the entropy of a pixel's plane weights; DDIM in a few steps.",
)
SPACES = ("target", "reference")


@dataclass(frozen=True)
class Config:
    """Sizes. `spaces`: where the planes of a training step may stand; one of two drawn with equal chances.
    `sharpness`: weight of the entropy of a pixel's plane weights in the loss.
    """

    planes: int = 32
    near: float = 1.0
    far: float = 20.0
    width: int = 96
    depth: int = 8
    spaces: tuple[str, ...] = SPACES
    sharpness: float = 0.05

    def __post_init__(self) -> None:
        if not self.spaces or set(self.spaces) - set(SPACES):
            raise ValueError(
                f"IMPortrait: expected `spaces` out of {SPACES}, got {self.spaces!r}.\nHINT: the paper draws from both."
            )

    @classmethod
    def tiny(cls) -> Config:
        """For tests: four planes, three blocks of width 24."""
        return cls(planes=4, near=1.5, far=4.0, width=24, depth=3)


class _Block(nn.Module):
    """Space within a frame, then the frame with its neighbours, modulated by what is known about the frame."""

    def __init__(self, width: int, known: int):
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.space = nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Conv2d(3 * width, width, 1)
        self.film = nn.Linear(known, 2 * width)

    def forward(self, x: Tensor, known: Tensor, frames: int) -> Tensor:
        """x: [B * T, C, H, W]; known: [B * T, K]."""
        scale, shift = self.film(known)[..., None, None].chunk(2, 1)
        y = nn.functional.silu(self.space(self.norm(x) * (1 + scale) + shift))
        clip = y.unflatten(0, (-1, frames))
        before = torch.cat([clip[:, :1], clip[:, :-1]], 1).flatten(0, 1)
        after = torch.cat([clip[:, 1:], clip[:, -1:]], 1).flatten(0, 1)
        return x + self.time(torch.cat([before, y, after], 1))


class IMPortrait(nn.Module):
    """Diffusion over video whose output is a multiplane image per frame.

    Args:     config: sizes, `IMPortrait.Config.tiny()` or your own.
    Shape:    clips are [B, T, H, W, 3] uint8; poses [B, T, 4, 4] take the reference camera's coordinates to those of
              frame t; one k [3, 3] in pixels for all.
    Source:   Li et al. 2025, arXiv 2504.19165.
    Example:
        >>> import torch
        >>> model = IMPortrait(IMPortrait.Config.tiny())
        >>> clip = torch.randint(0, 256, (1, 3, 16, 16, 3), dtype=torch.uint8)
        >>> model.training_step(clip, torch.Generator().manual_seed(0))["loss"].shape
        torch.Size([])
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        width = config.width
        self.renderer = vknn.MPIRenderer(config.planes, config.near, config.far)
        self.known = nn.Sequential(nn.Linear(2 + 12, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.stem = nn.Conv2d(6, width, 5, padding=2)
        self.blocks = nn.ModuleList(_Block(width, width) for _ in range(config.depth))
        self.head = nn.Conv2d(width, 4 * config.planes, 3, padding=1)

    # -- the denoiser ------------------------------------------------------------------------------------------------
    def planes(self, noisy: Tensor, level: Tensor, reference: Tensor, poses: Tensor, space: str) -> Tensor:
        """Planes of every frame, near to far: [B, T, D, H, W, 4] in 0..1.

        Args:     noisy: [B, T, H, W, 3] in about -1..1; level: [B], 0 = clean, 1 = noise; reference: [B, H, W, 3]
                  in -1..1; poses: [B, T, 4, 4]; space: "target" or "reference".
        """
        batch, frames, height, width, _ = noisy.shape
        flag = torch.full((batch, frames, 1), float(space == "reference"), device=noisy.device)
        motion = (poses - torch.eye(4, device=poses.device))[:, :, :3].reshape(batch, frames, 12)
        known = self.known(torch.cat([level.view(-1, 1, 1).expand(-1, frames, 1), flag, motion], 2)).flatten(0, 1)
        seen = reference[:, None].expand_as(noisy)
        x = self.stem(torch.cat([noisy, seen], 4).flatten(0, 1).permute(0, 3, 1, 2))
        for block in self.blocks:
            x = block(x, known, frames)
        out = self.head(nn.functional.silu(x)).view(batch, frames, self.config.planes, 4, height, width)
        color, alpha = out.permute(0, 1, 2, 4, 5, 3).split((3, 1), 5)
        # Colours are learned as what the reference image lacks.
        return torch.sigmoid(torch.cat([color + 2 * seen[:, :, None], alpha], 5))

    def render(self, planes: Tensor, k: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
        """Each frame's planes in the camera `poses` away: image [B, T, H, W, 3] in 0..1, weights [B, T, H, W, D]."""
        lead = planes.shape[:2]
        image, weights, _ = self.renderer(planes.flatten(0, 1), k, k, poses.flatten(0, 1))
        return image.unflatten(0, lead), weights.unflatten(0, lead)

    def compose(self, planes: Tensor, k: Tensor, poses: Tensor, space: str) -> tuple[Tensor, Tensor]:
        """The frames that the planes stand for, and the weights of the planes."""
        if space == "reference":
            return self.render(planes, k, poses)
        flat = planes.permute(0, 1, 3, 4, 2, 5)  # in the frame's own camera nothing is warped
        return vkf.composite(flat[..., :3], flat[..., 3])[:2]

    # -- diffusion ---------------------------------------------------------------------------------------------------
    def training_step(
        self,
        clip: Tensor,
        generator: torch.Generator | None = None,
        *,
        poses: Tensor | None = None,
        k: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Noise, predict planes, render, compare. Without poses the camera stands still.

        Args:     reference: [B, H, W, 3] uint8; None: the first frame.
        Returns:  loss: scalar; weights: mean weight of each plane [D], to watch them spread.
        """
        frames, first = self._normalised(clip), clip[:, 0] if reference is None else reference
        poses, k = self._cameras(clip, poses, k)
        batch = clip.shape[0]
        level = torch.rand(batch, generator=generator, device=clip.device)
        noise = torch.randn(frames.shape, generator=generator, device=clip.device)
        draw = int(torch.randint(len(self.config.spaces), (), generator=generator, device=clip.device))
        space = self.config.spaces[draw]
        signal, sigma = self._schedule(level)
        planes = self.planes(signal * frames + sigma * noise, level, self._normalised(first), poses, space)
        image, weights = self.compose(planes, k, poses, space)
        # x0-prediction weighted by the signal-to-noise ratio, truncated at 5 and never below 1.
        weight = (signal / sigma.clamp(min=1e-4)).square().clamp(1, 5)
        error = (image * 2 - 1 - frames).square() + 0.1 * (image * 2 - 1 - frames).abs()
        # A pixel shows one surface: without this nothing keeps it from being spread over all planes.
        share = weights / weights.sum(-1, keepdim=True).clamp(min=1e-4)
        entropy = -(share * share.clamp(min=1e-6).log()).sum(-1).mean()
        loss = (weight * error).mean() + self.config.sharpness * entropy
        return {"loss": loss, "weights": weights.detach().flatten(0, 3).mean(0)}

    def forward(self, clip: Tensor, generator: torch.Generator | None = None, **cameras: Tensor) -> dict[str, Tensor]:
        # What DistributedDataParallel calls.
        return self.training_step(clip, generator, **cameras)

    @torch.no_grad()
    def sample(
        self,
        reference: Tensor,
        poses: Tensor,
        k: Tensor,
        *,
        space: str = "reference",
        steps: int = 4,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Planes drawn by DDIM from noise, to be rendered in any camera: [B, T, D, H, W, 4].

        Args:     reference: [B, H, W, 3] uint8; poses: [B, T, 4, 4]; k: [3, 3]; steps: of the sampler.
        """
        clean = self._normalised(reference)
        shape = (*poses.shape[:2], *clean.shape[1:])
        x = torch.randn(shape, generator=generator, device=clean.device)
        for i in range(steps):
            level, after = (torch.full((shape[0],), 1 - j / steps, device=clean.device) for j in (i, i + 1))
            planes = self.planes(x, level, clean, poses, space)
            x0 = self.compose(planes, k, poses, space)[0] * 2 - 1
            (signal, sigma), (next_signal, next_sigma) = self._schedule(level), self._schedule(after)
            x = next_signal * x0 + next_sigma * (x - signal * x0) / sigma
        return planes

    @staticmethod
    def _schedule(level: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine: signal and noise of [B] levels, ready to broadcast."""
        angle = (level * (math.pi / 2)).view(-1, 1, 1, 1, 1)
        return angle.cos(), angle.sin().clamp(min=1e-4)

    @staticmethod
    def _normalised(clip: Tensor) -> Tensor:
        if clip.dtype is not torch.uint8 or clip.shape[-1] != 3:
            raise ValueError(
                f"IMPortrait: expected frames [..., H, W, 3] of uint8, got {list(clip.shape)} {clip.dtype}.\n"
                "HINT: pass raw frames."
            )
        return clip.float() / 127.5 - 1

    @staticmethod
    def _cameras(clip: Tensor, poses: Tensor | None, k: Tensor | None) -> tuple[Tensor, Tensor]:
        height, width = clip.shape[2:4]
        if poses is None:
            poses = torch.eye(4, device=clip.device).expand(*clip.shape[:2], 4, 4)
        if k is None:  # a normal lens
            size = float(max(height, width))
            k = torch.tensor([[size, 0, width / 2], [0, size, height / 2], [0, 0, 1]], device=clip.device)
        return poses, k
