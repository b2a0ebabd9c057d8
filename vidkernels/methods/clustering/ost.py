"""OST: videos are told apart by optimal transport between their frames and a bank of sentences (Chen et al. 2024).

Every class has N spatial descriptors (what is to be seen) and N temporal ones (what happens, step by step). For each
class and kind the cosine similarities of T frames and N sentences go through Sinkhorn, whose plan says which frame
answers which sentence; the class's score is the similarity under that plan, averaged over the two kinds.

    P = argmin <P, 1 - S> - epsilon H(P), rows sum to 1 / T, columns to 1 / N;   score = <P, S>
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels.functional.clustering.sinkhorn import sinkhorn
from vidkernels.models import FrameEmbed, VideoViTConfig, VideoViTEncoder

from .._card import Card

CARD = Card(
    title="OST: Refining Text Knowledge with Optimal Spatio-Temporal Descriptor for General Video Recognition",
    arxiv="2312.00096",
    year=2024,
    family="clustering",
    ops=("sinkhorn", "embed_visible_tubes"),
    fidelity="simplified",
    differs="small towers trained in place instead of CLIP, descriptors are token ids, not sentences by GPT-3.5.",
)


@dataclass(frozen=True)
class Config:
    """`descriptors`: N of each kind; `words`: tokens of a sentence; `epsilon`: of the transport."""

    encoder: VideoViTConfig = field(default_factory=VideoViTConfig.base)
    patch: int = 16
    classes: int = 400
    descriptors: int = 4
    vocabulary: int = 49408
    words: int = 16
    epsilon: float = 0.1
    iterations: int = 100
    temperature: float = 0.07
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def tiny(cls) -> Config:
        """For tests: two layers of width 64, three classes, 24 words."""
        return cls(VideoViTConfig.tiny(), patch=8, classes=3, vocabulary=24, words=3)


def descriptor_plan(frames: Tensor, sentences: Tensor, epsilon: float = 0.1, iterations: int = 100) -> Tensor:
    """The transport plans [B, C, T, N] of unit frames [B, T, D] and unit sentences [C, N, D]; each adds up to 1."""
    similarity = torch.einsum("btd,cnd->bctn", frames, sentences)
    plan = sinkhorn(similarity.flatten(0, 1), epsilon, iterations, scale="plan", gradient=None)
    return plan.view_as(similarity)


def descriptor_score(frames: Tensor, sentences: Tensor, epsilon: float = 0.1, iterations: int = 100) -> Tensor:
    """<P, S> of every video and class: [B, C]. The plan is a constant for the gradient, as in the paper."""
    similarity = torch.einsum("btd,cnd->bctn", frames, sentences)
    return (descriptor_plan(frames, sentences, epsilon, iterations) * similarity).sum((2, 3))


class OST(nn.Module):
    """Frames, sentences, and the transport between them.

    Args:     config: sizes, `OST.Config.tiny()` or your own.
    Shape:    clips [B, T, H, W, 3] uint8 with H and W multiples of the patch; `spatial` and `temporal` hold token ids
              [C, N, words], to be set by `set_descriptors`.
    Source:   Chen et al. 2024, arXiv 2312.00096, section 3.
    Example:
        >>> import torch
        >>> model = OST(OST.Config.tiny())
        >>> model(torch.zeros(2, 4, 16, 16, 3, dtype=torch.uint8)).shape
        torch.Size([2, 3])
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config, width = config, config.encoder.width
        self.embed = FrameEmbed(width, config.patch, config.mean, config.std)
        self.encoder = VideoViTEncoder(config.encoder)
        self.word = nn.Embedding(config.vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(config.words, width))
        self.reader = VideoViTEncoder(VideoViTConfig(width, 1, config.encoder.heads))
        ids = torch.arange(2 * config.classes * config.descriptors * config.words) % config.vocabulary
        ids = ids.view(2, config.classes, config.descriptors, config.words)
        self.register_buffer("spatial", ids[0].clone())
        self.register_buffer("temporal", ids[1].clone())

    def set_descriptors(self, spatial: Tensor, temporal: Tensor) -> None:
        """Token ids [C, N, words] of the sentences; other classes than in training are zero-shot recognition."""
        for name, ids in (("spatial", spatial), ("temporal", temporal)):
            if ids.dim() != 3 or ids.shape[2] != self.config.words or ids.shape[0] != spatial.shape[0]:
                raise ValueError(
                    f"OST: expected `{name}` [C, N, {self.config.words}] of token ids, got {list(ids.shape)}."
                )
        device = self.spatial.device
        self.spatial, self.temporal = spatial.to(device), temporal.to(device)

    def frames(self, clip: Tensor) -> Tensor:
        """Unit features of each frame alone: [B, T, D]."""
        batch, time = clip.shape[:2]
        x = self.embed(clip).flatten(0, 1)
        return F.normalize(self.encoder(x).mean(1), dim=-1).view(batch, time, -1)

    def sentences(self, ids: Tensor) -> Tensor:
        """Unit features of sentences [C, N, words]: [C, N, D]."""
        x = self.reader((self.word(ids) + self.place).flatten(0, 1)).mean(1)
        return F.normalize(x, dim=-1).view(*ids.shape[:2], -1)

    def forward(self, clip: Tensor) -> Tensor:
        """The score of each class, in [-1, 1]: [B, C]."""
        frames, config = self.frames(clip), self.config
        kinds = [
            descriptor_score(frames, self.sentences(ids), config.epsilon, config.iterations)
            for ids in (self.spatial, self.temporal)
        ]
        return (kinds[0] + kinds[1]) / 2

    def training_step(
        self, clip: Tensor, generator: torch.Generator | None = None, *, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cross-entropy of score / temperature.

        Args:     labels: [B] int64. None: which colour channel is strongest, for trying the loop.
        """
        if labels is None:
            labels = clip.float().mean((1, 2, 3)).argmax(1) % self.config.classes
        return {"loss": F.cross_entropy(self(clip) / self.config.temperature, labels)}
