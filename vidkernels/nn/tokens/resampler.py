"""Perceiver resampler: any number of tokens in, a fixed number out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels import _check

__all__ = ["Resampler"]


class _Layer(nn.Module):
    """queries += cross attention to [tokens, queries]; queries += feed-forward."""

    def __init__(self, dim: int, heads: int, head_dim: int, hidden: int):
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.norm_tokens, self.norm_queries = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query = nn.Linear(dim, inner, bias=False)
        self.key_value = nn.Linear(dim, 2 * inner, bias=False)
        self.proj = nn.Linear(inner, dim, bias=False)
        self.feed = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden, bias=False), nn.GELU(), nn.Linear(hidden, dim, bias=False)
        )

    def forward(self, queries: Tensor, tokens: Tensor, may_look: Tensor | None) -> Tensor:
        own = self.norm_queries(queries)
        seen = torch.cat([self.norm_tokens(tokens), own], 1)
        query = self.query(own).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(seen).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=may_look)
        queries = queries + self.proj(out.transpose(1, 2).flatten(2))
        return queries + self.feed(queries)


class Resampler(nn.Module):
    """Learned queries that read a clip's tokens by cross attention: `queries` tokens whatever the length of the clip.

    Args:
        dim: width of a token.
        queries: learned queries, so many tokens come out.
        depth: layers, each cross attention and feed-forward.
        heads: attention heads.
        head_dim: channels of a head.
        mlp_ratio: hidden width of the feed-forward over `dim`.
        max_frames: size of the table of time embeddings; None for none.
    Shape: tokens [B, T, N, D] (or [B, N, D] for one frame), padding [B, T, N] (or [B, N], or [B, T]) bool, True = not
        there -> [B, queries, D].
    Source: Alayrac et al. 2022, arXiv 2204.14198, section 3.1.1 and appendix A.1.1; differs: key padding.
    Example:
        >>> resampler = Resampler(32, queries=4, depth=1, heads=2, head_dim=16, max_frames=8)
        >>> resampler(torch.randn(2, 5, 9, 32)).shape
        torch.Size([2, 4, 32])
    """

    def __init__(
        self,
        dim: int,
        *,
        queries: int = 64,
        depth: int = 6,
        heads: int = 8,
        head_dim: int = 64,
        mlp_ratio: float = 4.0,
        max_frames: int | None = None,
    ):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, dim))
        self.time = None if max_frames is None else nn.Parameter(torch.randn(max_frames, 1, dim))
        self.layers = nn.ModuleList(_Layer(dim, heads, head_dim, int(dim * mlp_ratio)) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        if tokens.dim() == 3:
            tokens = tokens.unsqueeze(1)
            padding = padding if padding is None else padding.unsqueeze(1)
        _check.is_tensor("Resampler", "tokens", tokens, "[B, T, N, D]")
        batch, frames, count, _ = tokens.shape
        if self.time is not None:
            if frames > self.time.shape[0]:
                _check.fail("Resampler", f"expected at most max_frames = {self.time.shape[0]} frames.", tokens=tokens)
            tokens = tokens + self.time[:frames]
        queries = self.queries.expand(batch, -1, -1)
        may_look = None
        if padding is not None:
            if padding.dim() == 2:
                padding = padding.unsqueeze(2)
            if padding.dtype is not torch.bool or padding.shape not in ((batch, frames, count), (batch, frames, 1)):
                _check.fail("Resampler", "expected `padding` bool of shape [B, T, N] or [B, T], True = not there.",
                            tokens=tokens, padding=padding)  # fmt: skip
            there = ~padding.expand(batch, frames, count).flatten(1)
            # The queries see each other, so no row is empty even if every token is padding.
            may_look = F.pad(there, (0, queries.shape[1]), value=True)[:, None, None]
            tokens = tokens.masked_fill(~there.view(batch, frames, count, 1), 0)  # NaN in padding must not spread
        tokens = tokens.flatten(1, 2)
        for layer in self.layers:
            queries = layer(queries, tokens, may_look)
        return self.norm(queries)
