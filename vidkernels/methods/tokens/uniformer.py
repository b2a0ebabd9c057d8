"""UniFormer: neighbours mix by learned weights in early stages, later all attend to all (Li et al. 2022).

A block is x + position(x), then x + relation(norm(x)), then x + mlp(norm(x)); position is a depthwise 3x3x3
convolution.
    local    relation of a token to each place of its 5x5x5 neighbourhood is one learned number per channel, whatever
             the tokens hold: a depthwise convolution between two pointwise ones; batch norm
    global   self-attention over all tokens of the clip; layer norm
Four stages, each begun by a strided convolution; two local and two global ones are the paper's hybrid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels.functional.tokens.attention import proportional_attention

from .._card import Card

CARD = Card(
    title="UniFormer: Unified Transformer for Efficient Spatiotemporal Representation Learning",
    arxiv="2201.04676",
    year=2022,
    family="tokens",
    ops=("proportional_attention",),
    fidelity="simplified",
    differs="no start from ImageNet weights, no drop path; the first convolution strides 2 x 4 x 4 in one layer.",
)


@dataclass(frozen=True)
class Config:
    """Per stage: `widths`, `depths`, `kinds` ("local" or "global"); `head`: channels per attention head."""

    widths: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (3, 4, 8, 3)
    kinds: tuple[str, ...] = ("local", "local", "global", "global")
    neighbourhood: int = 5
    head: int = 64
    mlp_ratio: int = 4
    classes: int = 400

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.depths) == len(self.kinds) or set(self.kinds) - {"local", "global"}:
            raise ValueError('UniFormer: expected `widths`, `depths` and `kinds` ("local", "global") of one length.')

    @classmethod
    def tiny(cls) -> Config:
        """For tests: three stages of one block, the last one global."""
        return cls((16, 32, 32), (1, 1, 1), ("local", "local", "global"), head=16, mlp_ratio=2, classes=4)

    def all_global(self) -> Config:
        """The same sizes with attention everywhere: what the hybrid is compared with."""
        return replace(self, kinds=("global",) * len(self.kinds))


class _LocalRelation(nn.Module):
    """out = W_out (A * (W_in x)), A one number per channel and offset. x: [B, C, T, H, W]."""

    def __init__(self, width: int, neighbourhood: int):
        super().__init__()
        self.into = nn.Conv3d(width, width, 1)
        self.affinity = nn.Conv3d(width, width, neighbourhood, padding=neighbourhood // 2, groups=width)
        self.out = nn.Conv3d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.affinity(self.into(x)))


class _GlobalRelation(nn.Module):
    """Self-attention over all T H W tokens. x: [B, C, T, H, W]."""

    def __init__(self, width: int, head: int):
        super().__init__()
        self.head = head
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        split = self.qkv(tokens).unflatten(2, (3, -1, self.head)).permute(2, 0, 3, 1, 4)
        out = proportional_attention(*split.unbind(0)).transpose(1, 2).flatten(2)
        return self.proj(out).transpose(1, 2).view_as(x)


class _ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _Block(nn.Module):
    """Position, relation, mlp; each added to what came."""

    def __init__(self, width: int, kind: str, config: Config):
        super().__init__()
        norm = nn.BatchNorm3d if kind == "local" else _ChannelNorm
        self.position = nn.Conv3d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2 = norm(width), norm(width)
        local = kind == "local"
        self.relation = _LocalRelation(width, config.neighbourhood) if local else _GlobalRelation(width, config.head)
        self.up = nn.Conv3d(width, config.mlp_ratio * width, 1)
        self.down = nn.Conv3d(config.mlp_ratio * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(x)
        x = x + self.relation(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class UniFormer(nn.Module):
    """Video classifier of local and global stages.

    Args:     config: sizes, `UniFormer.Config.tiny()` or your own.
    Shape:    clips are [B, T, H, W, 3] uint8; T a multiple of 2, H and W of 32 (with four stages).
    Source:   Li et al. 2022, arXiv 2201.04676, section 3.
    Example:
        >>> import torch
        >>> model = UniFormer(UniFormer.Config.tiny())
        >>> model(torch.zeros(2, 4, 32, 32, 3, dtype=torch.uint8)).shape
        torch.Size([2, 4])
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList()
        before = 3
        for stage, (width, depth, kind) in enumerate(zip(config.widths, config.depths, config.kinds, strict=True)):
            stride = (2, 4, 4) if stage == 0 else (1, 2, 2)
            blocks = [_Block(width, kind, config) for _ in range(depth)]
            self.stages.append(
                nn.Sequential(nn.Conv3d(before, width, stride, stride=stride), _ChannelNorm(width), *blocks)
            )
            before = width
        self.norm = nn.LayerNorm(before)
        self.head = nn.Linear(before, config.classes)

    def forward(self, clip: Tensor) -> Tensor:
        """Class logits [B, classes]."""
        step = 4 * 2 ** (len(self.stages) - 1)
        if clip.dim() != 5 or clip.shape[1] % 2 or clip.shape[2] % step or clip.shape[3] % step:
            raise ValueError(
                f"UniFormer: expected `clip` [B, T, H, W, 3], T a multiple of 2, H and W of {step}, got "
                f"{list(clip.shape)}.\nHINT: crop, pad or resample the clip."
            )
        x = clip.movedim(4, 1).to(self.head.weight.dtype) / 127.5 - 1
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x.mean((2, 3, 4))))

    def multiply_adds(self, frames: int, height: int, width: int) -> int:
        """Of one clip, by what every layer multiplies; norms, activations and softmax left out."""
        total, before = 0, 3
        tokens, config = frames * height * width, self.config
        for stage, (c, depth, kind) in enumerate(zip(config.widths, config.depths, config.kinds, strict=True)):
            stride = 32 if stage == 0 else 4
            tokens //= stride
            block = 27 * c + 2 * config.mlp_ratio * c * c
            block += config.neighbourhood**3 * c + 2 * c * c if kind == "local" else 4 * c * c + 2 * tokens * c
            total += tokens * (stride * before * c + depth * block)
            before = c
        return total

    def training_step(
        self, clip: Tensor, generator: torch.Generator | None = None, *, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cross-entropy of the classes.

        Args:     labels: [B] int64. None: the arrow of time; clips drawn from `generator` are played backwards.
        """
        if labels is None:
            draw = torch.rand(len(clip), generator=generator, device=None if generator is None else generator.device)
            labels = (draw < 0.5).long().to(clip.device)
            clip = torch.where(labels.view(-1, 1, 1, 1, 1) == 1, clip.flip(1), clip)
        return {"loss": F.cross_entropy(self(clip), labels)}
