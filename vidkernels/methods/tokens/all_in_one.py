"""All in One: one transformer over text and frames, in which tokens roll from frame to frame (Wang et al. 2022).

Every frame is a sequence of its own: the text's tokens and the frame's patches. Before each layer's attention a share
of every frame's patch tokens moves to the next frame (cyclically, nothing is computed for it), so after L layers a
frame has heard from L others; the text's tokens are averaged over the frames after each layer.
Losses: does the text belong to the clip (matching), and which words are masked (MLM).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels.functional.tokens.roll import token_roll
from vidkernels.models import FrameEmbed, VideoViTConfig, VideoViTEncoder

from .._card import Card

CARD = Card(
    title="All in One: Exploring Unified Video-Language Pre-training",
    arxiv="2203.07303",
    year=2022,
    family="tokens",
    ops=("token_roll", "embed_visible_tubes"),
    fidelity="simplified",
    differs="no contrastive loss for retrieval, templated captions instead of WebVid, no start from image weights.",
)

CLASS, MASK = 0, 1


@dataclass(frozen=True)
class Config:
    """`roll`: share of a frame's tokens that travel (0: the frames stay apart). Words 0 and 1 are class and mask."""

    encoder: VideoViTConfig = field(default_factory=VideoViTConfig.base)
    patch: int = 16
    roll: float = 0.25
    vocabulary: int = 30522
    words: int = 40
    mask_ratio: float = 0.15
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def tiny(cls) -> Config:
        """For tests: two layers of width 64, 16 words, sentences of up to eight."""
        return cls(VideoViTConfig.tiny(), patch=8, vocabulary=16, words=8)


class AllInOne(nn.Module):
    """Text and video in one transformer.

    Args:     config: sizes, `AllInOne.Config.tiny()` or your own.
    Shape:    clips [B, T, H, W, 3] uint8, H and W multiples of the patch; text [B, L] token ids, L <= words - 1 (a
              class token is put in front). No position says which frame a token is in: order is known by rolling.
    Source:   Wang et al. 2022, arXiv 2203.07303, sections 3.1 and 3.2.
    Example:
        >>> import torch
        >>> model = AllInOne(AllInOne.Config.tiny())
        >>> text, video = model(torch.zeros(2, 3, 16, 16, 3, dtype=torch.uint8), torch.tensor([[2, 3], [4, 5]]))
        >>> text.shape, video.shape
        (torch.Size([2, 3, 64]), torch.Size([2, 3, 4, 64]))
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config, width = config, config.encoder.width
        self.embed = FrameEmbed(width, config.patch, config.mean, config.std)
        self.word = nn.Embedding(config.vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(config.words, width))
        self.encoder = VideoViTEncoder(config.encoder)
        self.matching = nn.Linear(width, 2)
        self.reading = nn.Linear(width, config.vocabulary)

    def forward(self, clip: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the class token and the text [B, 1 + L, D] and of the patches [B, T, N, D]."""
        batch = clip.shape[0]
        if text.shape[0] != batch or text.shape[1] >= self.config.words:
            raise ValueError(
                f"AllInOne: expected `text` [{batch}, L] with L < {self.config.words}, got {list(text.shape)}.\n"
                "HINT: cut the text, or raise `words`."
            )
        text = torch.cat([text.new_full((batch, 1), CLASS), text], 1)
        words = self.word(text) + self.place[: text.shape[1]]
        return self.mixed(words, self.embed(clip))

    def mixed(self, words: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """The layers: words [B, L, D] and patches [B, T, N, D], the frames one by one, the words in all of them."""
        time, length = patches.shape[1], words.shape[1]
        for block in self.encoder.blocks:
            patches = token_roll(patches, self.config.roll)
            sequence = torch.cat([words[:, None].expand(-1, time, -1, -1), patches], 2)
            sequence = block(sequence.flatten(0, 1)).unflatten(0, (-1, time))
            words, patches = sequence[:, :, :length].mean(1), sequence[:, :, length:]
        return self.encoder.norm(words), self.encoder.norm(patches)

    def training_step(
        self, clip: Tensor, generator: torch.Generator | None = None, *, text: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Matching and masked words, added.

        Args:     text: [B, L] token ids from 2 on. None: the strongest colour of each frame, as a caption.
        """
        if text is None:
            text = 2 + clip.float().mean((2, 3)).argmax(2)
        device = None if generator is None else generator.device
        batch = len(clip)
        swapped = (torch.rand(batch, generator=generator, device=device) < 0.5).to(text.device)
        swapped &= (text != text.roll(1, 0)).any(1)  # a neighbour's equal caption is no wrong one
        shown = torch.where(swapped[:, None], text.roll(1, 0), text)
        matching = F.cross_entropy(self.matching(self(clip, shown)[0][:, 0]), (~swapped).long())
        hidden = (torch.rand(text.shape, generator=generator, device=device) < self.config.mask_ratio).to(text.device)
        hidden[:, 0] |= ~hidden.any(1)
        guess = self.reading(self(clip, text.masked_fill(hidden, MASK))[0][:, 1:])
        reading = F.cross_entropy(guess.flatten(0, 1), text.masked_fill(~hidden, -100).flatten())
        return {"loss": matching + reading, "matching": matching.detach(), "mlm": reading.detach()}
