"""AV-HuBERT: name the hidden unit of masked moments of speech, seen and heard (Shi et al. 2022).

Frames of the mouth and of the sound are encoded apart, put side by side and read by a transformer. The targets are
clusters: first of the sound's features, then, with more clusters, of the network's own features, whose context has
averaged the noise away. Spans of either stream are hidden; a span of pictures is replaced by another one of the same
clip rather than by a mark, so that only the sense tells it. Now and then a whole stream is dropped, so that one network
serves lips with sound, lips alone and sound alone.

    labels = first.clusters(sound); first.training_step(clips, audio=sound, labels=labels) ...; in a new network,
    labels = second.clusters(first.features(clips, sound)); second.training_step(...) ...; and so on
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels.functional.clustering.kmeans import kmeans
from vidkernels.models import VideoViTConfig, VideoViTEncoder, sequence_positions
from vidkernels.models.conv_frames import FrameEncoder, as_frames

from .._card import Card

CARD = Card(
    title="Learning Audio-Visual Speech Representation by Masked Multimodal Cluster Prediction",
    arxiv="2201.02184",
    year=2022,
    family="clustering",
    ops=("kmeans",),
    fidelity="simplified",
    differs="a small convolutional frame encoder instead of a 3D stem and ResNet-18; sin-cos positions instead of a "
    "convolution; a linear classifier instead of cosines with code vectors; hidden spans of a clip are all filled "
    "from one offset. In the test's set-up the clusters improve from round 1 to 2 with every seed tried, from 2 to 3 "
    "with two of four.",
)

_POOL = 2  # cells a side that are left of a picture


@dataclass(frozen=True)
class Config:
    """`audio`: channels of a frame of sound. `hide_video`, `hide_audio`: share of frames in hidden spans of about
    `span_video`, `span_audio` frames. `drop`: how often one stream is missing; `drop_audio`: how often it is the sound.
    `unmasked`: weight of the frames that can be seen. `layer`: whose output is clustered in later rounds.
    """

    encoder: VideoViTConfig = field(default_factory=VideoViTConfig.base)
    clusters: int = 100
    audio: int = 104
    width: int = 64
    downs: int = 4
    hide_video: float = 0.3
    span_video: int = 5
    hide_audio: float = 0.8
    span_audio: int = 10
    drop: float = 0.5
    drop_audio: float = 0.5
    unmasked: float = 0.0
    layer: int = 9
    iterations: int = 30

    @classmethod
    def tiny(cls) -> Config:
        """For tests: two layers of width 64, eight clusters of eight channels of sound."""
        return cls(VideoViTConfig.tiny(), clusters=8, audio=8, width=16, downs=2, span_video=3, hide_audio=0.5,
                   span_audio=3, layer=2)  # fmt: skip


class AVHuBERT(nn.Module):
    """Two streams, one transformer, and a classifier of clusters.

    Args:     config: sizes, `AVHuBERT.Config.tiny()` or your own.
    Shape:    clips are [B, T, H, W, 3] uint8, H and W multiples of 2^downs; sound is [B, T, config.audio], in step with
              the frames (the paper stacks four filterbank frames for each of the picture).
    Source:   Shi et al. 2022, arXiv 2201.02184.
    Example:
        >>> import torch
        >>> model = AVHuBERT(AVHuBERT.Config.tiny())
        >>> clip = torch.randint(0, 256, (2, 6, 16, 16, 3), dtype=torch.uint8)
        >>> model.features(clip, torch.randn(2, 6, 8)).shape, model.features(clip, None).shape
        (torch.Size([2, 6, 64]), torch.Size([2, 6, 64]))
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config, width = config, config.encoder.width
        self.video = FrameEncoder(config.width, width=config.width, downs=config.downs, blocks=1)
        self.from_video = nn.Linear(_POOL**2 * config.width, width // 2)
        self.from_audio = nn.Linear(config.audio, width // 2)
        self.hidden = nn.Parameter(torch.empty(width // 2).uniform_())  # in the place of masked sound
        self.norm = nn.LayerNorm(width)
        self.encoder = VideoViTEncoder(config.encoder)
        self.head = nn.Linear(width, config.clusters)

    def _streams(self, clip: Tensor, audio: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pictures and sound, [B, T, C / 2] each; no sound is 0."""
        grid = F.adaptive_avg_pool2d(F.silu(self.video(as_frames(clip))), _POOL)
        video = self.from_video(grid.flatten(1)).unflatten(0, clip.shape[:2])
        if audio is None:
            # By way of the layer, so that its weights have a gradient, if of zero, in every process.
            return video, 0 * self.from_audio(video.new_zeros(*clip.shape[:2], self.config.audio))
        return video, self.from_audio(audio)

    def _layers(self, video: Tensor, audio: Tensor) -> list[Tensor]:
        """Output of each layer, [B, T, C], the last one normalised."""
        x = self.norm(torch.cat([video, audio], 2))
        x = x + sequence_positions(x.shape[1], x.shape[2]).to(x)
        found = []
        for block in self.encoder.blocks:
            x = block(x)
            found.append(x)
        return [*found[:-1], self.encoder.norm(x)]

    def features(self, clip: Tensor, audio: Tensor | None, *, see: bool = True) -> Tensor:
        """Output [B, T, C] of layer `config.layer`, nothing hidden. No sound: lips alone; not `see`: sound alone."""
        video, sound = self._streams(clip, audio)
        return self._layers(video if see else torch.zeros_like(video), sound)[self.config.layer - 1]

    def clusters(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """k-means of any features [B, T, D]: labels [B, T], `config.clusters` of them."""
        flat = features.flatten(0, 1)
        k = min(self.config.clusters, len(flat))
        index = kmeans(flat, k, iterations=self.config.iterations, generator=generator).index
        return index.unflatten(0, features.shape[:2])

    def training_step(
        self,
        clip: Tensor,
        generator: torch.Generator | None = None,
        *,
        audio: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Cross-entropy of the clusters at hidden frames (and, by `unmasked`, at the others).

        Args:     audio: [B, T, config.audio]; None: there is none.
                  labels: [B, T] int64; None: clusters of this batch's own sound, or of its pixels.
        """
        config = self.config
        batch, frames = clip.shape[:2]
        video, sound = self._streams(clip, audio)
        if labels is None:
            plain = F.adaptive_avg_pool2d(as_frames(clip), 4).flatten(1).unflatten(0, (batch, frames))
            labels = self.clusters(plain if audio is None else audio, generator)
        device = clip.device if generator is None else generator.device

        def draw(*size: int) -> Tensor:
            return torch.rand(size, generator=generator, device=device).to(clip.device)

        hide_video = _spans(draw(batch, frames), config.hide_video, config.span_video)
        hide_audio = _spans(draw(batch, frames), config.hide_audio, config.span_audio)
        # Substitution: frames from elsewhere in the clip, in their order.
        away = (1 + draw(batch, 1) * (frames - 1)).long()
        other = (torch.arange(frames, device=clip.device) + away) % frames
        other = video.gather(1, other[..., None].expand_as(video))
        video = torch.where(hide_video[..., None], other, video)
        sound = torch.where(hide_audio[..., None], self.hidden, sound)
        dropped, which = draw(batch, 1, 1) < config.drop, draw(batch, 1, 1) < config.drop_audio
        if audio is not None:
            video, sound = video * ~(dropped & ~which), sound * ~(dropped & which)
        logits = self.head(self._layers(video, sound)[-1])
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(batch, frames)
        weight = torch.where(hide_video | hide_audio, 1.0, config.unmasked)
        return {"loss": (weight * loss).sum() / weight.sum().clamp(min=1)}

    def forward(self, clip: Tensor, generator: torch.Generator | None = None, **given: Tensor) -> dict[str, Tensor]:
        # What DistributedDataParallel calls.
        return self.training_step(clip, generator, **given)


def _spans(draw: Tensor, share: float, length: int) -> Tensor:
    """Frames [B, T] in spans of `length` that begin where a uniform draw is small; on average `share` of all."""
    chance = 1 - (1 - share) ** (1 / length)
    starts = (draw < chance).float()
    return F.max_pool1d(F.pad(starts, (length - 1, 0))[:, None], length, 1)[:, 0] > 0
