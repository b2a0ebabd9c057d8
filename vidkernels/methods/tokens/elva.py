"""ELVA: a language model that reads patches without a vision encoder and merges them on the way (Li et al. 2025).

Patches of every frame go straight into the layers, before the text. Tokens merge inside them, in time first: at the
layers `halve` each token joins the one at its place in the next frame, so a still scene shrinks to one frame; at the
layer `alike` the most similar pairs anywhere follow. Attention adds log(size), so that a merged token weighs as much
as those it stands for, and a still clip is understood exactly as without merging.
Losses: the caption's next words; optionally the cosine to a frozen teacher's features at every patch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels.functional.tokens.attention import proportional_attention
from vidkernels.functional.tokens.merging import bipartite_soft_matching, merge_tokens, unmerge_tokens
from vidkernels.functional.tokens.plan import MergePlan
from vidkernels.models import FrameEmbed, VideoViTConfig

from .._card import Card

CARD = Card(
    title="Breaking the Encoder Barrier for Seamless Video-Language Understanding",
    arxiv="2503.18422",
    year=2025,
    family="tokens",
    ops=("bipartite_soft_matching", "merge_tokens", "unmerge_tokens", "proportional_attention", "embed_visible_tubes"),
    fidelity="partial",
    differs="a small model from scratch; patches see each other in both directions, words see all patches "
    "and the words before them; no separator tokens, no hybrid resolution, no contrast of frames. What merging costs "
    "in caption loss is not measured.",
)


@dataclass(frozen=True)
class Config:
    """`halve`: layers in which pairs of frames merge; `alike`: (layer, share of the tokens that then merge) or None."""

    layers: VideoViTConfig = field(default_factory=VideoViTConfig.base)
    patch: int = 16
    vocabulary: int = 30522
    words: int = 64
    halve: tuple[int, ...] = (2, 4)
    alike: tuple[int, float] | None = (6, 0.25)
    teacher_width: int | None = None
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        steps = [*self.halve, *([] if self.alike is None else [self.alike[0]])]
        if steps != sorted(set(steps)) or any(not 0 <= k < self.layers.depth for k in steps):
            raise ValueError(
                f"Elva: expected growing layers below {self.layers.depth} in `halve` and `alike`, got {steps}."
            )

    @classmethod
    def tiny(cls) -> Config:
        """For tests: three layers of width 64; frames merge in the first two."""
        return cls(VideoViTConfig(64, 3, 2), patch=8, vocabulary=16, words=8, halve=(0, 1), alike=None)


class _Layer(nn.Module):
    def __init__(self, config: VideoViTConfig):
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.heads = config.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def attend(self, x: Tensor, size: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x after attention, and the keys averaged over heads."""
        split = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = proportional_attention(*split.unbind(0), size, attn_mask=mask)
        return x + self.proj(out.transpose(1, 2).flatten(2)), split[1].mean(1)

    def feed(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Elva(nn.Module):
    """Patches and words in one transformer, with fewer and fewer patches.

    Args:     config: sizes, `Elva.Config.tiny()` or your own.
    Shape:    clips [B, T, H, W, 3] uint8, H and W multiples of the patch, T of 2 ** len(halve); text [B, L] token ids.
    Source:   Li et al. 2025, arXiv 2503.18422, section 3.
    Example:
        >>> import torch
        >>> model = Elva(Elva.Config.tiny())
        >>> patches, words, plan, size = model(torch.zeros(1, 4, 16, 16, 3, dtype=torch.uint8), torch.tensor([[2, 3]]))
        >>> patches.shape, words.shape, plan.count
        (torch.Size([1, 4, 64]), torch.Size([1, 2, 64]), 4)
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config, width = config, config.layers.width
        self.embed = FrameEmbed(width, config.patch, config.mean, config.std)
        self.word = nn.Embedding(config.vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(config.words, width))
        self.layers = nn.ModuleList(_Layer(config.layers) for _ in range(config.layers.depth))
        self.norm = nn.LayerNorm(width)
        self.guide = None if config.teacher_width is None else nn.Linear(width, config.teacher_width)

    def forward(self, clip: Tensor, text: Tensor, merging: bool = True) -> tuple[Tensor, Tensor, MergePlan, Tensor]:
        """Features of the merged patches [B, M, D] and the words [B, L, D], which patch became which, and the sizes."""
        batch, frames = clip.shape[:2]
        if frames % 2 ** len(self.config.halve) or text.shape[1] > self.config.words:
            raise ValueError(
                f"Elva: expected a multiple of {2 ** len(self.config.halve)} frames and at most {self.config.words} "
                f"words, got {frames} and {text.shape[1]}.\nHINT: pad the clip by its last frame, cut the text."
            )
        height, width = self.embed.places(clip)
        x = self.embed(clip).flatten(1, 2)
        words = self.word(text) + self.place[: text.shape[1]]
        plan = MergePlan.identity(batch, x.shape[1], clip.device)
        size = torch.ones(x.shape[:2], device=clip.device)
        for k, layer in enumerate(self.layers):
            count = x.shape[1]
            joined = torch.cat([x, words], 1)
            sizes = torch.cat([size, size.new_ones(words.shape[:2])], 1)
            joined, key = layer.attend(joined, sizes, self._mask(count, words.shape[1], clip.device))
            x, words = joined[:, :count], joined[:, count:]
            step = self._matching(k, key[:, :count], (frames, height, width)) if merging else None
            if step is not None:
                x, size = merge_tokens(x, step, size)
                plan = plan.then(step)
                frames = frames // 2 if k in self.config.halve else frames
            joined = layer.feed(torch.cat([x, words], 1))
            x, words = joined[:, : x.shape[1]], joined[:, x.shape[1] :]
        return self.norm(x), self.norm(words), plan, size

    def _mask(self, patches: int, words: int, device: torch.device) -> Tensor:
        """Patches look at patches, words at patches and the words up to themselves."""
        mask = torch.ones(patches + words, patches + words, dtype=torch.bool, device=device).tril()
        mask[:patches, :patches] = True
        return mask

    def _matching(self, layer: int, key: Tensor, grid: tuple[int, int, int]) -> MergePlan | None:
        count = key.shape[1]
        if layer in self.config.halve:
            return bipartite_soft_matching(key.detach(), count // 2, pairing="temporal", grid=grid)
        if self.config.alike is not None and layer == self.config.alike[0]:
            return bipartite_soft_matching(key.detach(), int(self.config.alike[1] * count))
        return None

    def training_step(
        self,
        clip: Tensor,
        generator: torch.Generator | None = None,
        *,
        text: Tensor | None = None,
        teacher: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Next words, and the cosine to a teacher.

        Args:     text: [B, L] ids, the first a start token. None: the strongest colour of each frame, as a caption.
                  teacher: [B, T * h * w, teacher_width] features of a frozen encoder, if the config has that width.
        """
        if text is None:
            text = F.pad(2 + clip.float().mean((2, 3)).argmax(2), (1, 0))
        patches, words, plan, _ = self(clip, text[:, :-1])
        caption = F.cross_entropy((words @ self.word.weight.T).flatten(0, 1), text[:, 1:].flatten())
        if self.guide is None:
            return {"loss": caption}
        guided = 1 - F.cosine_similarity(self.guide(unmerge_tokens(patches, plan)), teacher, dim=2).mean()
        return {"loss": caption + guided, "caption": caption.detach(), "guidance": guided.detach()}
