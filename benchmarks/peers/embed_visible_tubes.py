"""What a user writes today instead of embed_visible_tubes; the op's arguments, plain torch only."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def _channels(values, dtype, device):
    return torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1, 1)


def _length(video, tube):
    size = video.shape[1:4] if video.dtype is torch.uint8 else video.shape[2:]
    return (size[0] // tube[0]) * (size[1] // tube[1]) * (size[2] // tube[2])


def usual(video, weight, bias, visible_index, position, tube, mean, std):
    """VideoMAE's way: normalise the whole clip, convolve all of it, add the position, keep what the mask leaves."""
    masked = torch.ones(video.shape[0], _length(video, tube), dtype=torch.bool, device=video.device)
    masked.scatter_(1, visible_index.long(), False)
    return lambda: _usual(video, weight, bias, masked, position, tube, mean, std)


def usual_float32(video, weight, bias, visible_index, position, tube, mean, std):
    """The same in float32, whatever the weight: what a user leaves behind who moves to half precision with us."""
    masked = torch.ones(video.shape[0], _length(video, tube), dtype=torch.bool, device=video.device)
    masked.scatter_(1, visible_index.long(), False)

    def run():
        wide = [None if x is None else x.float() for x in (weight, bias, position)]
        return _usual(video, wide[0], wide[1], masked, wide[2], tube, mean, std)

    return run


def _usual(video, weight, bias, masked, position, tube, mean, std):
    if video.dtype is torch.uint8:
        clip = video.permute(0, 4, 1, 2, 3).float().div(255)
    else:
        clip = video
    clip = ((clip - _channels(mean, clip.dtype, clip.device)) / _channels(std, clip.dtype, clip.device)).to(
        weight.dtype
    )
    tokens = F.conv3d(clip, weight, bias, stride=tube).flatten(2).transpose(1, 2)
    if position is not None:
        tokens = tokens + position
    return tokens[~masked].reshape(video.shape[0], -1, weight.shape[0])


def careful(video, weight, bias, visible_index, position, tube, mean, std):
    """Picks the uint8 tubes first and folds the normalisation into the linear layer: the best of plain torch."""
    return lambda: _careful(video, weight, bias, visible_index, position, tube, mean, std)


def _careful(video, weight, bias, visible_index, position, tube, mean, std):
    dtype = weight.dtype
    if video.dtype is torch.uint8:
        batch, frames, height, width, channels = video.shape
        size, unit = (frames, height, width), 1.0 / 255
    else:
        batch, channels, *size = video.shape
        unit = 1.0
    grid = [n // p for n, p in zip(size, tube)]
    index = visible_index.long()
    b = torch.arange(batch, device=video.device)[:, None]
    t, y, x = index // (grid[1] * grid[2]), index // grid[2] % grid[1], index % grid[2]
    split = [n for pair in zip(grid, tube) for n in pair]
    if video.dtype is torch.uint8:
        tubes = video.view(batch, *split, channels).permute(0, 1, 3, 5, 2, 4, 6, 7)[b, t, y, x]
        order = (0, 2, 3, 4, 1)
    else:
        tubes = video.view(batch, channels, *split).permute(0, 2, 4, 6, 1, 3, 5, 7)[b, t, y, x]
        order = (0, 1, 2, 3, 4)
    inverse = 1.0 / _channels(std, torch.float32, video.device)
    folded = weight.float() * (unit * inverse)
    shift = (weight.float() * (_channels(mean, torch.float32, video.device) * inverse)).flatten(1).sum(1)
    offset = -shift if bias is None else bias.float() - shift
    columns = tubes.reshape(*index.shape, -1).to(dtype)
    out = F.linear(columns, folded.permute(order).flatten(1).to(dtype), offset.to(dtype))
    return out if position is None else out + position[index]


PEERS = {"embed_visible_tubes": {"usual": usual, "careful": careful, "usual float32": usual_float32}}
