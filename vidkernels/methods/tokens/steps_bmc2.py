"""STEPs: key steps of unlabelled procedures, by bootstrapped contrast over time and cues (Shah et al. 2023).

A light temporal transformer per cue embeds the frozen features of every frame. Frames are positives if they are close
in time, or if their frozen features are no farther apart than those of frames close in time are on average: a step that
comes back minutes later is a positive, too. One margin loss over all pairs of frames, within cues and across them,
shares these positives. Key steps are k-means clusters over the frames of all videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels.functional.clustering.kmeans import kmeans
from vidkernels.models import VideoViTConfig, VideoViTEncoder, sequence_positions

from .._card import Card

CARD = Card(
    title="STEPs: Self-Supervised Key Step Extraction and Localization from Unlabeled Procedural Videos",
    arxiv="2301.00794",
    year=2023,
    family="tokens",
    ops=("kmeans",),
    fidelity="simplified",
    differs="positives come from the first cue's features; without given cues, grids of mean colour and of frame "
    "differences stand in for I3D and RAFT features; the loss is a mean over pairs. Tested on synthetic "
    "procedures with an offset per video only: there k-means after subtracting each video's mean has an F1 of 0.93, "
    "more than one cue learns (0.78) and less than two do (1.00).",
)


@dataclass(frozen=True)
class Config:
    """`cues`: channels of each cue; `window`: sigma in frames; `margin`: of the pairs that are not positives;
    `steps`: clusters; `spread`: frames that count as one unit of time in the loss (None: the whole clip)."""

    cues: tuple[int, ...] = (1024, 1024)
    encoder: VideoViTConfig = field(default_factory=lambda: VideoViTConfig(width=256, depth=2, heads=4))
    dim: int = 128
    window: int = 30
    margin: float = 2.0
    steps: int = 7
    spread: float | None = None

    @classmethod
    def tiny(cls) -> Config:
        """For tests: two cues that are computed from the clip, width 32, one layer, 16 channels out."""
        return cls(cues=(48, 48), encoder=VideoViTConfig(32, 1, 2), dim=16, window=8, steps=6)


def _cues(clip: Tensor) -> list[Tensor]:
    """Mean colour and mean absolute difference to the frame before on a 4 x 4 grid: two of [B, T, 48]."""
    if clip.dtype is not torch.uint8 or clip.dim() != 5 or clip.shape[4] != 3 or clip.shape[1] < 2:
        raise ValueError(
            f"STEPs: expected `clip` [B, T, H, W, 3] of uint8, T >= 2, got {list(clip.shape)} {clip.dtype}.\n"
            "HINT: hand over your own features as `cues`."
        )
    x = clip.float() / 127.5 - 1
    change = (x - torch.cat([x[:, :1], x[:, :-1]], 1)).abs()
    grids = (F.adaptive_avg_pool2d(c.flatten(0, 1).permute(0, 3, 1, 2), 4) for c in (x, change))
    return [grid.flatten(1).unflatten(0, clip.shape[:2]) for grid in grids]


class _CueEncoder(nn.Module):
    """[B, T, F] -> [B, T, D]."""

    def __init__(self, channels: int, config: Config):
        super().__init__()
        self.embed = nn.Linear(channels, config.encoder.width)
        self.encoder = VideoViTEncoder(config.encoder)
        self.out = nn.Linear(config.encoder.width, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        positions = sequence_positions(h.shape[1], h.shape[2]).to(h)
        return self.out(self.encoder(h + 0.1 * positions))


class STEPs(nn.Module):
    """Temporal encoders of several cues, the bootstrapped contrast and the sampler of key steps.

    Args:     config: sizes, `STEPs.Config.tiny()` or your own.
    Shape:    clips [B, T, H, W, 3] uint8, or cues: a sequence of [B, T, F_c] with `config.cues` channels.
    Source:   Shah et al. 2023, arXiv 2301.00794.
    Example:
        >>> model = STEPs(STEPs.Config.tiny())
        >>> model([torch.randn(2, 20, 48), torch.randn(2, 20, 48)]).shape  # both cues side by side
        torch.Size([2, 20, 32])
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleList(_CueEncoder(channels, config) for channels in config.cues)

    def embeddings(self, cues: Sequence[Tensor]) -> list[Tensor]:
        """One [B, T, D] of every cue."""
        if tuple(cue.shape[-1] for cue in cues) != self.config.cues:
            raise ValueError(
                f"STEPs: expected cues with {self.config.cues} channels, got "
                f"{[list(cue.shape) for cue in cues]}.\nHINT: set `Config.cues`."
            )
        return [encoder(cue) for encoder, cue in zip(self.encoders, cues)]

    def forward(self, cues: Sequence[Tensor]) -> Tensor:
        """What is clustered: the cues' embeddings side by side, [B, T, cues * D]."""
        return torch.cat(self.embeddings(cues), 2)

    def positives(self, features: Tensor, *, bootstrap: bool = True) -> Tensor:
        """Pairs of frames that should be close, [B, T, T] bool, from frozen features [B, T, F].

        Row i: frames within the window around i and, with `bootstrap`, those no farther from frame i than the mean over
        that window. Depends on no weight: compute it once for a video.
        """
        at = torch.arange(features.shape[1], device=features.device)
        near = (at[:, None] - at).abs() <= self.config.window
        if not bootstrap:
            return near.expand(len(features), -1, -1)
        distance = torch.cdist(features, features)
        others = near & ~torch.eye(len(at), dtype=torch.bool, device=features.device)
        mean = (distance * others).sum(2, keepdim=True) / others.sum(1).clamp(min=1)[:, None]
        return near | (distance < mean)

    def contrast(self, first: Tensor, second: Tensor, positive: Tensor) -> Tensor:
        """Margin loss over all pairs of frames of two cues [B, T, D]: with d their distance and t their gap in time,
        positives cost d / (1 + t^2) and others (1 + t^2) max(0, margin - d)."""
        at = torch.arange(first.shape[1], device=first.device)
        gap = (at[:, None] - at) / (self.config.spread or len(at))
        weight = 1 + gap.square()
        # The square root has no gradient at 0, where the pairs of a frame with itself are.
        square = (first[:, :, None] - second[:, None]).square().sum(3)
        distance = square.clamp(min=1e-8).sqrt()
        return torch.where(positive, distance / weight, weight * F.relu(self.config.margin - distance)).mean()

    @torch.no_grad()
    def key_steps(
        self, videos: Sequence[Sequence[Tensor]], generator: torch.Generator | None = None, *, iterations: int = 50
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Clusters over all videos, and for each run of frames of one cluster the frame nearest to the centre.

        Args:     videos: the cues [T, F_c] of each; lengths may differ.
        Returns:  index, of each video [T] int64: the cluster of every frame.
                  frames, of each video [runs] int64: its key frames, ascending.
        """
        z = [self([cue[None] for cue in video])[0] for video in videos]
        return sample_key_steps(z, self.config.steps, generator, iterations=iterations)

    def training_step(
        self,
        clip: Tensor | None,
        generator: torch.Generator | None = None,
        *,
        cues: Sequence[Tensor] | None = None,
        positive: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The contrast summed over all pairs of cues. Nothing is drawn from `generator`.

        Args:     cues: frozen features; None: colour and motion of `clip`, which is not read otherwise.
                  positive: [B, T, T] bool; None: `self.positives` of the first cue.
        """
        cues = _cues(clip) if cues is None else cues
        positive = self.positives(cues[0]) if positive is None else positive
        z = self.embeddings(cues)
        return {"loss": torch.stack([self.contrast(a, b, positive) for a in z for b in z]).sum()}


def sample_key_steps(
    embeddings: Sequence[Tensor], steps: int, generator: torch.Generator | None = None, *, iterations: int = 50
) -> tuple[list[Tensor], list[Tensor]]:
    """`STEPs.key_steps` for any frame embeddings, of each video [T, D]."""
    found = kmeans(torch.cat(list(embeddings)), steps, iterations=iterations, generator=generator)
    clusters = list(found.index.split([len(z) for z in embeddings]))
    frames = []
    for z, index in zip(embeddings, clusters):
        _, length = index.unique_consecutive(return_counts=True)
        away = (z - found.centres[index]).square().sum(1)
        start = length.cumsum(0) - length
        frames.append(torch.stack([s + away[s : s + n].argmin() for s, n in zip(start.tolist(), length.tolist())]))
    return clusters, frames
