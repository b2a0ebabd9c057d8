"""Plain torch, the oracle: cut the whole clip into tubes, normalise, pick, multiply."""

from __future__ import annotations

import torch


def _normalised_tubes(video, visible_index, tube, mean, std, wide):
    """[B, Nv, C*pt*ph*pw], each tube in the order of a Conv3d weight."""
    if video.dtype is torch.uint8:
        video = video.permute(0, 4, 1, 2, 3).to(wide) / 255
    else:
        video = video.to(wide)
    batch, channels, *size = video.shape
    shift = torch.tensor(mean, dtype=wide, device=video.device).view(channels, 1, 1, 1)
    scale = torch.tensor(std, dtype=wide, device=video.device).view(channels, 1, 1, 1)
    video = (video - shift) / scale
    split = [n for extent, p in zip(size, tube) for n in (extent // p, p)]
    tubes = video.reshape(batch, channels, *split).permute(0, 2, 4, 6, 1, 3, 5, 7)
    length, row = split[0] * split[2] * split[4], channels * tube[0] * tube[1] * tube[2]
    return torch.gather(tubes.reshape(batch, length, row), 1, visible_index.long()[..., None].expand(-1, -1, row))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def embed_visible_tubes(video, weight, bias, visible_index, position, tube, mean, std):
    wide = _wide(weight.dtype)
    out = _normalised_tubes(video, visible_index, tube, mean, std, wide) @ weight.to(wide).flatten(1).t()
    if bias is not None:
        out = out + bias.to(wide)
    if position is not None:
        out = out + position.to(wide)[visible_index.long()]
    return out.to(weight.dtype)


def embed_visible_tubes_backward(grad_out, video, visible_index, tube, mean, std, with_position):
    wide = _wide(grad_out.dtype)
    tubes = _normalised_tubes(video, visible_index, tube, mean, std, wide).flatten(0, 1)
    grad = grad_out.to(wide).flatten(0, 1)
    bytes_last = video.dtype is torch.uint8
    channels, size = video.shape[4 if bytes_last else 1], video.shape[1:4] if bytes_last else video.shape[2:]
    length = 0
    if with_position:
        length = (size[0] // tube[0]) * (size[1] // tube[1]) * (size[2] // tube[2])
    grad_position = grad.new_zeros(length, grad.shape[1])
    if with_position:
        grad_position.index_add_(0, visible_index.long().flatten(), grad)
    grad_weight = (grad.t() @ tubes).reshape(grad.shape[1], channels, *tube)
    return tuple(g.to(grad_out.dtype) for g in (grad_weight, grad.sum(0), grad_position))
