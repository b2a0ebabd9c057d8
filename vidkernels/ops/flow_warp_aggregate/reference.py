"""Plain torch, the oracle."""

from __future__ import annotations

import torch

_FAR = 2.0**30  # pixels; beyond any picture


def flow_warp_aggregate(features: torch.Tensor, flows: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    taps, weights, _, _ = _taps(features, flows)
    out = torch.einsum("bkhw,bktchw,bktnhw->bchw", _shares(logits, taps.dtype), taps, weights[:, :, :, None])
    return out.to(features.dtype).contiguous(memory_format=torch.channels_last)


def flow_warp_aggregate_backward(
    grad: torch.Tensor, features: torch.Tensor, flows: torch.Tensor, logits: torch.Tensor, with_features: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    taps, weights, index, (x, y) = _taps(features, flows)
    p, g = _shares(logits, taps.dtype), grad.to(taps.dtype)
    dots = torch.einsum("bchw,bktchw->bkthw", g, taps)
    value = (weights * dots).sum(2)
    by_logits = p * (p[:, None] * (value[:, :, None] - value[:, None])).sum(2)
    a, b, c, d = dots.unbind(2)
    by_x = torch.where(x[2], (1 - y[1]) * (b - a) + y[1] * (d - c), 0)
    by_y = torch.where(y[2], (1 - x[1]) * (c - a) + x[1] * (d - b), 0)
    by_flows = (p[:, :, None] * torch.stack([by_x, by_y], 2)).to(flows.dtype)
    if not with_features:
        return _channels_last(features.new_empty(0, *features.shape[1:])), by_flows, by_logits.to(logits.dtype)
    parts = p[:, :, None, None] * weights[:, :, :, None] * g[:, None, None]  # [B, K, 4, C, H, W]
    total = torch.zeros_like(features, dtype=taps.dtype).flatten(3)
    for t in range(4):
        place = index[:, :, t, None].expand(parts[:, :, t].shape).flatten(3)
        total.scatter_add_(3, place, parts[:, :, t].flatten(3))
    by_features = _channels_last(total.view(features.shape).to(features.dtype))
    return by_features, by_flows, by_logits.to(logits.dtype)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def _shares(logits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return logits.to(dtype).softmax(1)


def _taps(features: torch.Tensor, flows: torch.Tensor):
    """The four pixels that each pixel reads in each neighbour [B, K, 4, C, H, W], their weights and numbers
    [B, K, 4, H, W], and per axis what `_axis` gives."""
    height, width = features.shape[3:]
    wide = torch.float64 if features.dtype is torch.float64 else torch.float32
    flows = flows.to(wide)
    x = _axis(torch.arange(width, device=flows.device), flows[:, :, 0], width)
    y = _axis(torch.arange(height, device=flows.device)[:, None], flows[:, :, 1], height)
    index = torch.stack([(y[0] + i).clamp(max=height - 1) * width + (x[0] + j).clamp(max=width - 1)
                         for i in (0, 1) for j in (0, 1)], 2)  # fmt: skip
    weights = torch.stack([(y[1] if i else 1 - y[1]) * (x[1] if j else 1 - x[1]) for i in (0, 1) for j in (0, 1)], 2)
    flat = features.to(wide).flatten(3)[:, :, None]
    place = index.flatten(3)[:, :, :, None]
    shape = (*place.shape[:3], features.shape[2], place.shape[4])
    taps = flat.expand(*shape[:3], *flat.shape[3:]).gather(4, place.expand(shape))
    return taps.unflatten(4, (height, width)), weights, index, (x, y)


def _axis(at: torch.Tensor, flow: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The lower cell, the share of the one above it, and whether moving on would change anything."""
    flow = torch.where(flow > -_FAR, flow.clamp(max=_FAR), -_FAR)  # NaN is far to the left
    down = flow.floor()
    low = at + down.long()
    inside = (low >= 0) & (low < count - 1)
    return low.clamp(0, count - 1), torch.where(inside, flow - down, 0), inside
