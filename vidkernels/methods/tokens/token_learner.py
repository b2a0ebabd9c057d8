"""TokenLearner in a video transformer: after a few layers a handful of tokens per frame go on (Ryoo et al. 2021).

Tubes are embedded and pass the first layers as a full grid. TokenLearner then makes S tokens of every frame's grid, and
the remaining layers run on S tokens per frame: their attention costs (S / (H W))^2 of what it did. Optionally
TokenFuser puts the result back on the grid before the last layers, for dense tasks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels.models import VideoViTConfig, VideoViTEncoder, grid_positions
from vidkernels.nn.masking.embed import VisibleTubeEmbed
from vidkernels.nn.tokens.learner import TokenFuser, TokenLearner

from .._card import Card

CARD = Card(
    title="TokenLearner: What Can 8 Learned Tokens Do for Images and Videos?",
    arxiv="2106.11297",
    year=2021,
    family="tokens",
    ops=("pool_tokens", "fuse_tokens", "embed_visible_tubes"),
    fidelity="simplified",
    differs="a plain ViT with sin-cos positions per axis instead of ViViT and Bottleneck Transformers.",
)


@dataclass(frozen=True)
class Config:
    """`insert`: layers before TokenLearner; `fuse`: layers before TokenFuser (None: none), `insert` < `fuse`."""

    encoder: VideoViTConfig = field(default_factory=VideoViTConfig.base)
    tube: tuple[int, int, int] = (2, 16, 16)
    tokens: int = 8
    insert: int = 6
    fuse: int | None = None
    form: str = "v1.1"
    classes: int = 400
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        last = self.encoder.depth if self.fuse is None else self.fuse
        if not 0 <= self.insert < last <= self.encoder.depth:
            raise ValueError(
                "TokenLearnerViT: expected 0 <= `insert` < `fuse` <= depth.\n"
                f"  insert : {self.insert}\n  fuse   : {self.fuse}\n  depth  : {self.encoder.depth}\n"
                "HINT: the paper inserts TokenLearner in the middle."
            )

    @classmethod
    def tiny(cls) -> Config:
        """For tests: two layers of width 64, tubes of 2 x 8 x 8, four classes."""
        return cls(VideoViTConfig.tiny(), tube=(2, 8, 8), insert=1, classes=4)


class TokenLearnerViT(nn.Module):
    """Video classifier whose later layers see S learned tokens per frame.

    Args:     config: sizes, `TokenLearnerViT.Config.tiny()` or your own.
    Shape:    clips are [B, T, H, W, 3] uint8; T, H, W any multiples of `config.tube`.
    Source:   Ryoo et al. 2021, arXiv 2106.11297.
    Example:
        >>> import torch
        >>> model = TokenLearnerViT(TokenLearnerViT.Config.tiny())
        >>> model(torch.zeros(2, 4, 16, 16, 3, dtype=torch.uint8)).shape
        torch.Size([2, 4])
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config, width = config, config.encoder.width
        self.embed = VisibleTubeEmbed(
            dim=width, tube=config.tube, grid=None, mean=config.mean, std=config.std, position=None
        )
        self.encoder = VideoViTEncoder(config.encoder)
        self.learner = TokenLearner(width, config.tokens, form=config.form)
        self.fuser = None if config.fuse is None else TokenFuser(width, config.tokens)
        self.head = nn.Linear(width, config.classes)

    def grid(self, clip: Tensor) -> tuple[int, int, int]:
        """Tokens along time, height and width of a clip."""
        size, tube = tuple(clip.shape[1:4]), self.config.tube
        fits = clip.dim() == 5 and clip.shape[4] == 3 and clip.dtype is torch.uint8
        if not fits or any(length < step or length % step for length, step in zip(size, tube)):
            raise ValueError(
                "TokenLearnerViT: expected `clip` [B, T, H, W, 3] uint8 of multiples of the tube, got "
                f"{list(clip.shape)} {str(clip.dtype).removeprefix('torch.')}.\n  tube : {list(tube)}\n"
                "HINT: crop, pad or resample the clip."
            )
        return tuple(length // step for length, step in zip(size, tube))

    def _early(self, clip: Tensor) -> Tensor:
        """The grid that TokenLearner sees: [B, t, h, w, C]."""
        grid = self.grid(clip)
        x = self.embed(clip) + grid_positions(grid, self.config.encoder.width).to(clip.device)
        for block in self.encoder.blocks[: self.config.insert]:
            x = block(x)
        return x.unflatten(1, grid)

    def maps(self, clip: Tensor) -> Tensor:
        """Where each learned token looks: [B, t, S, h, w]."""
        x = self._early(clip)
        return self.learner.maps(x).unflatten(-1, x.shape[2:4])

    def features(self, clip: Tensor) -> Tensor:
        """Tokens after the last layer: [B, t * S, C], or [B, t * h * w, C] with a TokenFuser."""
        grid = self._early(clip)
        config, frames = self.config, grid.shape[1]
        x = self.learner(grid).flatten(1, 2)
        last = config.encoder.depth if config.fuse is None else config.fuse
        for block in self.encoder.blocks[config.insert : last]:
            x = block(x)
        if self.fuser is not None:
            x = self.fuser(x.unflatten(1, (frames, -1)), grid).flatten(1, 3)
            for block in self.encoder.blocks[last:]:
                x = block(x)
        return self.encoder.norm(x)

    def forward(self, clip: Tensor) -> Tensor:
        """Class logits [B, classes]."""
        return self.head(self.features(clip).mean(1))

    def attention_cost(self, clip: Tensor) -> tuple[int, int]:
        """Multiply-adds of one clip's attention products from TokenLearner to TokenFuser (or the end), and what they
        would be on the full grid."""
        config, grid = self.config, self.grid(clip)
        layers = (config.encoder.depth if config.fuse is None else config.fuse) - config.insert
        few, all_of_them = grid[0] * config.tokens, math.prod(grid)
        return tuple(2 * layers * n * n * config.encoder.width for n in (few, all_of_them))

    def training_step(
        self, clip: Tensor, generator: torch.Generator | None = None, *, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cross-entropy of the classes.

        Args:     labels: [B] int64. None: the arrow of time; clips drawn from `generator` are played backwards, and the
                  first two classes say which.
        """
        if labels is None:
            draw = torch.rand(len(clip), generator=generator, device=None if generator is None else generator.device)
            labels = (draw < 0.5).long().to(clip.device)
            clip = torch.where(labels.view(-1, 1, 1, 1, 1) == 1, clip.flip(1), clip)
        return {"loss": F.cross_entropy(self(clip), labels)}
