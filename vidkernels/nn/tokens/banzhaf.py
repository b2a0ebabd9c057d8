"""A small network that predicts Banzhaf interactions from similarities."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels import _check

__all__ = ["BanzhafInteraction"]


class BanzhafInteraction(nn.Module):
    """Predict the interaction of every word with every frame from their similarities: convolution, then attention.

    A 3 x 3 convolution looks at neighbours in time and text, attention over all pairs compares them with the rest, and
    a linear map gives one number per pair. Trained against `late_interaction_banzhaf` or sampled interactions.
    Args:
        width: channels.
        heads: of the attention.
    Shape: similarity [B, T, V], row_mask [B, T] and column_mask [B, V] bool (True = there) -> [B, T, V], 0 for pairs
        that are not there.
    Source: Jin et al. 2023, arXiv 2303.14369, section 3.2; differs: attention through SDPA.
    Example:
        >>> BanzhafInteraction()(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, width: int = 64, heads: int = 4):
        super().__init__()
        if width % heads:
            _check.fail("BanzhafInteraction", "expected `width` divisible by `heads`.", width=width, heads=heads)
        self.heads = heads
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, similarity: Tensor, row_mask: Tensor | None = None, column_mask: Tensor | None = None) -> Tensor:
        _check.is_tensor("BanzhafInteraction", "similarity", similarity, "[B, T, V]")
        batch, rows, columns = similarity.shape
        if similarity.numel() == 0:
            return torch.zeros_like(similarity)
        there = None
        if row_mask is not None or column_mask is not None:
            there = torch.ones(batch, rows, columns, dtype=torch.bool, device=similarity.device)
            there = there if row_mask is None else there & row_mask[:, :, None]
            there = there if column_mask is None else there & column_mask[:, None]
            similarity = similarity.masked_fill(~there, 0)
        x = F.gelu(self.conv(similarity[:, None])).flatten(2).transpose(1, 2)
        qkv = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # A sample with nobody there attends to everything instead of dividing by zero; its output is 0 anyway.
        mask = None if there is None else (there | ~there.any(2, True).any(1, True)).flatten(1)[:, None, None]
        x = x + self.proj(F.scaled_dot_product_attention(*qkv, attn_mask=mask).transpose(1, 2).flatten(2))
        out = self.head(x).view(batch, rows, columns)
        return out if there is None else out.masked_fill(~there, 0)
