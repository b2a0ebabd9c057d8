"""Grounding from narrations: transport picks the frames that show a sentence, its words say where (Chen et al. 2024).

Of a long window only few frames show what is narrated. A transport plan between frames and words, whose words all have
the same mass, keeps a word that fits every frame from claiming them all; the U frames with the most plan-weighted
similarity train the local branch.
    global   clip feature against sentence feature, InfoNCE: when
    local    each word's best region in the chosen frames, averaged, InfoNCE over the sentences: where
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels.functional.clustering.sinkhorn import sinkhorn
from vidkernels.functional.tokens.frames import top_k_frames
from vidkernels.models import FrameEmbed, VideoViTConfig, VideoViTEncoder

from .._card import Card

CARD = Card(
    title="What, when, and where? -- Self-Supervised Spatio-Temporal Grounding in Untrimmed Multi-Action Videos from "
    "Narrated Instructions",
    arxiv="2303.16990",
    year=2024,
    family="clustering",
    ops=("sinkhorn", "top_k_frames", "embed_visible_tubes"),
    fidelity="partial",
    differs="the choice of frames is the paper's; towers are small and trained in place, words are token ids, and the "
    "GroundingYouTube benchmark is not part of it. Tested is the choice of frames; that both branches together find "
    "when and where better than either alone is not measured.",
)


@dataclass(frozen=True)
class Config:
    """`chosen`: U frames for the local branch; `epsilon`: of the transport; `temperature`: of both losses."""

    encoder: VideoViTConfig = field(default_factory=VideoViTConfig.base)
    patch: int = 16
    vocabulary: int = 30522
    chosen: int = 8
    epsilon: float = 0.1
    iterations: int = 50
    temperature: float = 0.07
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def tiny(cls) -> Config:
        """For tests: two layers of width 64, two frames chosen."""
        return cls(VideoViTConfig.tiny(), patch=8, vocabulary=32, chosen=2)


def frame_scores(frames: Tensor, words: Tensor, epsilon: float = 0.1, iterations: int = 50) -> Tensor:
    """How well each frame shows the sentence: [B, T] of unit frames [B, T, D] and unit words [B, W, D].

    sum_w P S T, where P is the transport plan of the similarities S with uniform frames and words.
    """
    similarity = torch.einsum("btd,bwd->btw", frames, words)
    plan = sinkhorn(similarity, epsilon, iterations, scale="plan", gradient=None)
    return (plan * similarity).sum(2) * frames.shape[1]


class NarratedGrounding(nn.Module):
    """When and where a sentence happens in a clip, learned from pairs alone.

    Args:     config: sizes, `NarratedGrounding.Config.tiny()` or your own.
    Shape:    clips [B, T, H, W, 3] uint8, H and W multiples of the patch, T at least `chosen`; words [B, W] token ids.
    Source:   Chen et al. 2024, arXiv 2303.16990, section 3.
    Example:
        >>> import torch
        >>> model = NarratedGrounding(NarratedGrounding.Config.tiny())
        >>> when, where = model(torch.zeros(2, 4, 16, 16, 3, dtype=torch.uint8), torch.tensor([[1, 2], [3, 4]]))
        >>> when.shape, where.shape
        (torch.Size([2, 4]), torch.Size([2, 4, 2, 2]))
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config, width = config, config.encoder.width
        self.embed = FrameEmbed(width, config.patch, config.mean, config.std)
        self.encoder = VideoViTEncoder(config.encoder)
        self.word = nn.Embedding(config.vocabulary, width)
        self.sentence = nn.Linear(width, width)
        self.clip = nn.Linear(width, width)

    def regions(self, clip: Tensor) -> Tensor:
        """Features of each frame's patches: [B, T, h, w, D]."""
        x = self.encoder(self.embed(clip).flatten(0, 1))
        return x.view(*clip.shape[:2], *self.embed.places(clip), -1)

    def chosen(self, regions: Tensor, words: Tensor) -> Tensor:
        """The U frames, in order, of features [B, T, h, w, D] for word features [B, W, D]: [B, U] int64."""
        frames = F.normalize(regions.detach().mean((2, 3)), dim=-1)
        score = frame_scores(frames, F.normalize(words.detach(), dim=-1), self.config.epsilon, self.config.iterations)
        return top_k_frames(score, self.config.chosen)

    def forward(self, clip: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """When: similarity of each frame to the sentence [B, T]; where: of each patch to its words, [B, T, h, w]."""
        regions, tokens = self.regions(clip), self.word(words)
        sentence = F.normalize(self.sentence(tokens.mean(1)), dim=-1)
        when = torch.einsum("btd,bd->bt", F.normalize(self.clip(regions.mean((2, 3))), dim=-1), sentence)
        unit, tokens = F.normalize(regions, dim=-1), F.normalize(tokens, dim=-1)
        return when, torch.einsum("bthwd,bnd->bthwn", unit, tokens).mean(-1)

    def training_step(
        self, clip: Tensor, generator: torch.Generator | None = None, *, words: Tensor | None = None
    ) -> dict[str, Tensor]:
        """InfoNCE of clips and sentences, and of chosen regions and words, added.

        Args:     words: [B, W] token ids. None: a made-up pair of words per clip, for trying the loop.
        """
        if words is None:
            words = (torch.arange(2 * len(clip), device=clip.device) % self.config.vocabulary).view(-1, 2)
        regions, tokens = self.regions(clip), self.word(words)
        pairs = torch.arange(len(clip), device=clip.device)
        sentence = F.normalize(self.sentence(tokens.mean(1)), dim=-1)
        whole = F.normalize(self.clip(regions.mean((1, 2, 3))), dim=-1) @ sentence.T
        index = self.chosen(regions, tokens)
        few = regions.flatten(2, 3).gather(
            1, index[..., None, None].expand(-1, -1, regions[0, 0, ..., 0].numel(), regions.shape[4])
        )
        few, tokens = F.normalize(few.flatten(1, 2), dim=-1), F.normalize(tokens, dim=-1)
        part = torch.einsum("apd,bwd->abwp", few, tokens).amax(3).mean(2)
        losses = [
            (
                F.cross_entropy(s / self.config.temperature, pairs)
                + F.cross_entropy(s.T / self.config.temperature, pairs)
            )
            / 2
            for s in (whole, part)
        ]
        return {"loss": losses[0] + losses[1], "global": losses[0].detach(), "local": losses[1].detach()}
