"""What people run to merge tokens in a ViT: ToMe's usual code, written afresh, in our video encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def matching(metric: Tensor, r: int):
    """The function that merges: a full similarity matrix, argsort, gather and scatter."""
    with torch.no_grad():
        metric = metric / metric.norm(dim=-1, keepdim=True)
        sources, destinations = metric[:, ::2], metric[:, 1::2]
        best, where = (sources @ destinations.transpose(-1, -2)).max(dim=-1)
        order = best.argsort(dim=-1, descending=True)[..., None]
        kept, merged = order[:, r:], order[:, :r]
        target = where[..., None].gather(1, merged)

    def merge(x: Tensor, mode: str) -> Tensor:
        sources, destinations = x[:, ::2], x[:, 1::2]
        width = x.shape[2]
        stay = sources.gather(1, kept.expand(-1, -1, width))
        go = sources.gather(1, merged.expand(-1, -1, width))
        return torch.cat([stay, destinations.scatter_reduce(1, target.expand(-1, -1, width), go, reduce=mode)], 1)

    return merge


class UsualToMe(nn.Module):
    """`VideoViTEncoder` with the usual merging between attention and MLP; attention written out or through SDPA."""

    def __init__(self, encoder: nn.Module, pairs: list[int], fused: bool):
        super().__init__()
        self.encoder, self.pairs, self.fused = encoder, pairs, fused

    def forward(self, x: Tensor) -> Tensor:
        size = torch.ones_like(x[..., :1])
        for block, r in zip(self.encoder.blocks, self.pairs):
            batch, length, width = x.shape
            qkv = block.qkv(block.norm1(x)).reshape(batch, length, 3, block.heads, -1).permute(2, 0, 3, 1, 4)
            query, key, value = qkv.unbind(0)
            bias = size.log()[:, None, None, :, 0]
            if self.fused:
                out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
            else:
                out = ((query * query.shape[3] ** -0.5) @ key.transpose(-2, -1) + bias).softmax(-1) @ value
            x = x + block.proj(out.transpose(1, 2).reshape(batch, length, width))
            if r:
                merge = matching(key.mean(1), r)
                x, size = merge(x * size, "sum"), merge(size, "sum")
                x = x / size
            x = x + block.down(F.gelu(block.up(block.norm2(x))))
        return self.encoder.norm(x)
