"""Plain video transformers: an encoder over visible tokens and the light decoder of masked pretraining.

The encoder never sees masked tokens: the caller embeds the visible tubes (`vk.nn.VisibleTubeEmbed`) and
hands over `[B, Nv, D]`, so one encoder serves any clip length, frame size and masking scheme.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels.functional.tokens.attention import proportional_attention
from vidkernels.nn.tokens.merging import TokenMerging

# The papers' code uses 1e-6 where torch's default is 1e-5; the difference shows in equality tests.
_NORM_EPS = 1e-6
# Tokens up to which bfloat16 attention on a CPU is faster written out than fused.
_SHORT = 512


@dataclass(frozen=True)
class VideoViTConfig:
    """Size of one transformer stack: `width` channels, `depth` blocks, `heads` attention heads."""

    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1 or self.width % self.heads or self.width % 2:
            raise ValueError(
                "VideoViTConfig: expected an even `width` divisible by `heads`, and `depth` >= 1.\n"
                f"  width : {self.width}\n  depth : {self.depth}\n  heads : {self.heads}\n"
                "HINT: the usual choice is 64 channels per head, e.g. width=384, heads=6."
            )

    @classmethod
    def tiny(cls) -> VideoViTConfig:
        """Width 64, for tests."""
        return cls(width=64, depth=2, heads=2)

    @classmethod
    def small(cls) -> VideoViTConfig:
        """ViT-S."""
        return cls(width=384, depth=12, heads=6)

    @classmethod
    def base(cls) -> VideoViTConfig:
        """ViT-B."""
        return cls(width=768, depth=12, heads=12)


class _Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)). [B, N, D] -> [B, N, D].

    Tokens merge between the two where a TokenMerging is given, and come out fewer.
    """

    def __init__(self, config: VideoViTConfig):
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def attention(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The branch and its keys [B, heads, N, D / heads]; `size` as in proportional_attention."""
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, D / heads]
        out = _attend(query, key, value, size)
        return self.proj(out.transpose(1, 2).reshape(batch, length, width)), key

    def forward(self, x: Tensor, merging: TokenMerging | None = None, layer: int = 0) -> Tensor:
        size = merging.size(layer) if merging is not None and merging.proportional else None
        branch, key = self.attention(self.norm1(x), size)
        x = x + branch
        if merging is not None:
            x = merging(x, key.mean(1), layer)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def _attend(query: Tensor, key: Tensor, value: Tensor, size: Tensor | None) -> Tensor:
    """softmax(query key^T / sqrt(d) + log(size)) value, each [B, heads, N, d]; no size is 1 everywhere."""
    if query.device.type == "cpu" and query.dtype is torch.bfloat16 and query.shape[2] <= _SHORT:
        # torch's fused backward is several times slower here than the matrices written out.
        weight = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3)
        if size is not None:
            weight = weight.float() + size.log()[:, None, None, :]
        return weight.softmax(dim=3).to(value.dtype) @ value
    return proportional_attention(query, key, value, size)


def _init_linear(module: nn.Module) -> None:
    # Xavier for the matrices, as in MAE and VideoMAE; LayerNorm keeps torch's ones and zeros.
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class VideoViTEncoder(nn.Module):
    """Transformer encoder over already embedded tokens: `depth` pre-norm blocks and a final LayerNorm.

    Args:     config: size of the stack.
              merging: nn.TokenMerging(r, depth) lets tokens merge on the way; also settable later as `merging`.
    Shape:    tokens [B, Nv, D] with the positions already added -> [B, Nv, D]. Any Nv. With `merging`, as many tokens
              as it leaves; `merging.unmerge(tokens)` gives all of them back.
    Source:   Dosovitskiy et al. 2020, arXiv 2010.11929; differs: no class token, no head.
    Example:
        >>> import torch
        >>> encoder = VideoViTEncoder(VideoViTConfig.tiny())
        >>> encoder(torch.zeros(2, 10, 64)).shape
        torch.Size([2, 10, 64])
        >>> encoder.merging = TokenMerging(0.5, depth=2)
        >>> encoder(torch.randn(2, 10, 64)).shape
        torch.Size([2, 5, 64])
    """

    def __init__(self, config: VideoViTConfig, merging: TokenMerging | None = None):
        super().__init__()
        self.config = config
        self.merging = merging
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.apply(_init_linear)

    def forward(self, tokens: Tensor) -> Tensor:
        for layer, block in enumerate(self.blocks):
            tokens = block(tokens, self.merging, layer)
        return self.norm(tokens)


class MaskedVideoDecoder(nn.Module):
    """Light decoder of masked pretraining: from encoded visible tokens to pixels of the masked tubes.

    Projects the visible tokens to the decoder's width, appends one mask token per masked position, adds the
    positions, runs the blocks, and sends only the masked tokens through the head. The sequence is ordered
    [visible, masked] as in VideoMAE, so "only masked" is a slice.

    Args:     config: size of the stack.
              encoder_width: channels of the encoded tokens.
              outputs: numbers predicted per masked tube, e.g. 2 * 16 * 16 * 3 = 1536.
    Shape:    visible [B, Nv, De], visible_index [B, Nv] int32, masked_index [B, Nm] int32,
              positions [N, D] -> [B, Nm, outputs].
    Source:   Tong et al. 2022, arXiv 2203.12602, section 3; He et al. 2021, arXiv 2111.06377.
    Example:
        >>> import torch
        >>> decoder = MaskedVideoDecoder(VideoViTConfig.tiny(), encoder_width=32, outputs=96)
        >>> seen = torch.tensor([[0, 2]], dtype=torch.int32)
        >>> hidden = torch.tensor([[1, 3, 4]], dtype=torch.int32)
        >>> decoder(torch.zeros(1, 2, 32), seen, hidden, torch.zeros(5, 64)).shape
        torch.Size([1, 3, 96])
    """

    def __init__(self, config: VideoViTConfig, *, encoder_width: int, outputs: int):
        super().__init__()
        self.config = config
        self.embed = nn.Linear(encoder_width, config.width, bias=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.head = nn.Linear(config.width, outputs)
        self.apply(_init_linear)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def forward(self, visible: Tensor, visible_index: Tensor, masked_index: Tensor, positions: Tensor) -> Tensor:
        seen = self.embed(visible) + F.embedding(visible_index, positions)
        hidden = self.mask_token + F.embedding(masked_index, positions)
        tokens = torch.cat([seen, hidden], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, -masked_index.shape[1] :]))


def _sinusoid(position: Tensor, pairs: int, *, interleaved: bool) -> Tensor:
    """[N] positions -> [N, 2 * pairs] sines and cosines at `pairs` geometric frequencies, in float64."""
    frequency = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / max(pairs, 1))
    angle = position.double().unsqueeze(1) * frequency
    parts = (angle.sin(), angle.cos())
    return torch.stack(parts, dim=2).flatten(1) if interleaved else torch.cat(parts, dim=1)


def sequence_positions(length: int, width: int) -> Tensor:
    """Fixed position table of the flattened token index n, as VideoMAE's released code uses it.

    table[n, 2i] = sin(n / 10000^(2i/width)), table[n, 2i + 1] = cos(the same).

    Args:     length: number of tokens N (t * h * w).
              width: channels, even.
    Returns:  table: [N, width] float32. Not differentiable (a constant).
    Raises:   ValueError: width is odd.
    Source:   Vaswani et al. 2017, arXiv 1706.03762, section 3.5.
    Example:
        >>> sequence_positions(3, 4)[0].tolist()
        [0.0, 1.0, 0.0, 1.0]
    """
    _require_even("sequence_positions", width)
    return _sinusoid(torch.arange(length), width // 2, interleaved=True).float()


def grid_positions(grid: tuple[int, int, int], width: int) -> Tensor:
    """Fixed sin-cos position table of a (t, h, w) token grid; every axis gets its own channels.

    Row n = (t * H + h) * W + w holds [sines, cosines] of t, then of h, then of w. The width // 2 frequency
    pairs are shared evenly; what does not divide by three goes to w, then to h.

    Args:     grid: tokens along time, height and width; any sizes, 1 included.
              width: channels, even.
    Returns:  table: [t * h * w, width] float32. Not differentiable (a constant).
    Raises:   ValueError: width is odd.
    Source:   Vaswani et al. 2017, arXiv 1706.03762, section 3.5; per axis as in He et al. 2021,
              arXiv 2111.06377.
    Example:
        >>> grid_positions((2, 3, 5), 64).shape
        torch.Size([30, 64])
    """
    _require_even("grid_positions", width)
    pairs = width // 2
    shares = (pairs // 3, (pairs + 1) // 3, (pairs + 2) // 3)
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    parts = [_sinusoid(axis.flatten(), share, interleaved=False) for axis, share in zip(axes, shares)]
    return torch.cat(parts, dim=1).float()


def _require_even(name: str, width: int) -> None:
    if width % 2:
        raise ValueError(
            f"{name}: expected an even `width` (sines and cosines come in pairs), got {width}.\nHINT: use {width + 1}."
        )
