"""HBI: words and frames as players of a game; what they gain together teaches which belong together (Jin et al. 2023).

A clip and a text are compared by weighted max-pool late interaction at three levels: frames and words (entity),
clusters of them by density peaks (action), clusters of clusters (event). At each level the Banzhaf interaction of every
word with every frame says how much the pair adds to the similarity beyond what each adds alone. A small network
predicts it, and its softmax is the target of the word-frame similarities. InfoNCE at each level trains both encoders,
and the entity level teaches the two others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels.functional.tokens.banzhaf import late_interaction_banzhaf, late_interaction_value
from vidkernels.models import FrameEmbed, VideoViTConfig, VideoViTEncoder
from vidkernels.nn.tokens.banzhaf import BanzhafInteraction
from vidkernels.nn.tokens.density import DPCKNNMerging

from .._card import Card

CARD = Card(
    title="Video-Text as Game Players: Hierarchical Banzhaf Interaction for Cross-Modal Representation Learning",
    arxiv="2303.14369",
    year=2023,
    family="tokens",
    ops=("late_interaction_banzhaf", "late_interaction_value", "dpc_knn_cluster", "embed_visible_tubes"),
    fidelity="simplified",
    differs="small encoders that see one frame and one word at a time instead of CLIP; the predictor learns the exact "
    "interaction, not samples of it; merged tokens pass no attention of their own. On coloured squares with captions "
    "InfoNCE alone grounds words as well: that the game's loss helps is not shown.",
)


@dataclass(frozen=True)
class Config:
    """`share`: tokens that the next level keeps; `interaction`, `distillation`: weights of these losses."""

    encoder: VideoViTConfig = field(default_factory=VideoViTConfig.small)
    patch: int = 16
    vocabulary: int = 49408
    share: float = 0.5
    neighbors: int = 3
    temperature: float = 0.05
    interaction: float = 0.1
    distillation: float = 1.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def tiny(cls) -> Config:
        """For tests: one layer of width 32, patches of 8 x 8, 24 words."""
        return cls(VideoViTConfig(width=32, depth=1, heads=2), patch=8, vocabulary=24)


class _Level(nn.Module):
    """Weights of frames and words, and the predictor of their interaction."""

    def __init__(self, width: int):
        super().__init__()
        self.word = nn.Linear(width, 1)
        self.frame = nn.Linear(width, 1)
        self.predictor = BanzhafInteraction(width, 2)

    def weights(self, words: Tensor, there: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        row = self.word(words)[..., 0].masked_fill(~there, -1e4).softmax(1) * there
        return row, self.frame(frames)[..., 0].softmax(1)


class HBI(nn.Module):
    """Text-video dual encoder with hierarchical Banzhaf interaction.

    Args:     config: sizes, `HBI.Config.tiny()` or your own.
    Shape:    clips are [B, T, H, W, 3] uint8, H and W multiples of the patch; words [B, L] int64, 0 = padding.
    Source:   Jin et al. 2023, arXiv 2303.14369.
    Example:
        >>> import torch
        >>> model = HBI(HBI.Config.tiny())
        >>> clip = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8)
        >>> model.training_step(clip, words=torch.tensor([[3, 5, 0], [7, 1, 2]]))["loss"].shape
        torch.Size([])
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config, width = config, config.encoder.width
        self.embed = FrameEmbed(width, config.patch, config.mean, config.std)
        self.video = VideoViTEncoder(config.encoder)
        self.words = nn.Embedding(config.vocabulary, width)
        self.text = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.levels = nn.ModuleList(_Level(width) for _ in range(3))
        self.merge_words = nn.ModuleList(DPCKNNMerging(width, config.share, k=config.neighbors) for _ in range(2))
        self.merge_frames = nn.ModuleList(DPCKNNMerging(width, config.share, k=config.neighbors) for _ in range(2))

    def frames(self, clip: Tensor) -> Tensor:
        """One feature per frame, [B, T, D]; every frame is encoded alone."""
        return self.video(self.embed(clip).flatten(0, 1)).mean(1).unflatten(0, clip.shape[:2])

    def tokens(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Features of words [B, L, D], every word encoded alone, and which are words."""
        return self.text(self.words(words)), words > 0

    def hierarchy(self, clip: Tensor, words: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Words [B, L, D], which are there [B, L], frames [B, T, D]: at the entity, action and event level."""
        frames, (text, there) = self.frames(clip), self.tokens(words)
        out = [(text, there, frames)]
        for merge_words, merge_frames in zip(self.merge_words, self.merge_frames):
            text, size, _ = merge_words(text, there)
            frames, _, _ = merge_frames(frames)
            there = size > 0
            out.append((text, there, frames))
        return out

    @staticmethod
    def cosines(text: Tensor, frames: Tensor) -> Tensor:
        """[B, L, D] and [B, T, D] -> [B, L, T]."""
        return F.normalize(text, dim=2) @ F.normalize(frames, dim=2).mT

    def similarity(self, level: int, text: Tensor, there: Tensor, frames: Tensor) -> Tensor:
        """Late interaction of every text with every clip of the batch: [texts, clips]."""
        row, column = self.levels[level].weights(text, there, frames)
        batch, clips = len(text), len(frames)
        s = torch.einsum("bld,ctd->bclt", F.normalize(text, dim=2), F.normalize(frames, dim=2)).flatten(0, 1)
        value = late_interaction_value(
            s, row.repeat_interleave(clips, 0), column.repeat(batch, 1), row_mask=there.repeat_interleave(clips, 0)
        )
        return value.view(batch, clips)

    def interaction_losses(self, level: int, text: Tensor, there: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """How far the predictor is from the matching pairs' interaction, and their similarities from the prediction."""
        s = self.cosines(text, frames)
        row, column = self.levels[level].weights(text, there, frames)
        # With even weights the interaction of a perfect pair among strangers becomes 1, however many tokens there are.
        count = there.sum(1).clamp(min=1)
        scale = (2 * count * s.shape[2] / (count + s.shape[2]))[:, None, None]
        exact = scale * late_interaction_banzhaf(s, row, column, row_mask=there).detach()
        predicted = self.levels[level].predictor(s.detach(), there)
        known = ((predicted - exact).square() * there[:, :, None]).sum() / (there.sum() * s.shape[2]).clamp(min=1)
        target, temperature = predicted.detach() / self.config.temperature, self.config.temperature
        by_word = F.kl_div((s / temperature).log_softmax(2), target.softmax(2), reduction="none").sum(2)
        hidden = (~there)[:, :, None]
        closeness = (s / temperature).masked_fill(hidden, -1e4).log_softmax(1)
        by_frame = F.kl_div(closeness, target.masked_fill(hidden, -1e4).softmax(1), reduction="none").sum(1)
        return known, (by_word * there).sum() / there.sum().clamp(min=1) + by_frame.mean()

    def training_step(
        self, clip: Tensor, generator: torch.Generator | None = None, *, words: Tensor | None = None
    ) -> dict[str, Tensor]:
        """InfoNCE at three levels, interaction losses and distillation; other clips of the batch are the negatives.

        Args:     words: [B, L] int64, 0 = padding. None: a caption of the frames' strongest colours, words 1, 2 and 3.
        """
        if words is None:
            words = 1 + clip.float().mean((2, 3)).argmax(2)
        config, device = self.config, clip.device
        same = torch.arange(len(clip), device=device)
        contrast = interaction = distillation = torch.zeros((), device=device)
        teacher = None
        for level, (text, there, frames) in enumerate(self.hierarchy(clip, words)):
            logits = self.similarity(level, text, there, frames) / config.temperature
            contrast = contrast + (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 6
            known, taught = self.interaction_losses(level, text, there, frames)
            interaction = interaction + (known + config.interaction * taught) / 3
            if teacher is None:
                teacher = logits.detach()
            else:
                for mine, theirs in ((logits, teacher), (logits.T, teacher.T)):
                    apart = F.kl_div(mine.log_softmax(1), theirs.softmax(1), reduction="batchmean")
                    distillation = distillation + apart / 4
        loss = contrast + interaction + config.distillation * distillation
        return {"loss": loss, "contrast": contrast.detach(), "interaction": interaction.detach()}

    def forward(self, clip: Tensor, generator: torch.Generator | None = None, **text: Tensor) -> dict[str, Tensor]:
        # What DistributedDataParallel calls.
        return self.training_step(clip, generator, **text)
