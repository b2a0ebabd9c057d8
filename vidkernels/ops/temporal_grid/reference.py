"""Plain torch, the oracle."""

from __future__ import annotations

import torch


def temporal_grid(grid: torch.Tensor, t: torch.Tensor, lengths: list[int], scale: int, combine: str) -> torch.Tensor:
    x = torch.cat(_levels(grid, t, lengths), 1) if combine == "concat" else sum(_levels(grid, t, lengths))
    for axis in (2, 3):
        low, high, share = (v.to(grid.device) for v in _between(_positions(x.shape[axis], scale), x.shape[axis]))
        shape = [-1 if a == axis else 1 for a in range(4)]
        x = _blend(x.index_select(axis, low), x.index_select(axis, high), share.view(shape))
    return x.to(grid.dtype).contiguous(memory_format=torch.channels_last)


def temporal_grid_backward(
    grad: torch.Tensor, t: torch.Tensor, frames: int, lengths: list[int], scale: int, combine: str
) -> torch.Tensor:
    x = _wide(grad)
    for axis in (3, 2):
        cells = x.shape[axis] // scale
        low, high, share = (v.to(grad.device) for v in _between(_positions(cells, scale), cells))
        share = share.to(x.dtype).view([-1 if a == axis else 1 for a in range(4)])
        shape = [cells if a == axis else n for a, n in enumerate(x.shape)]
        x = x.new_zeros(shape).index_add_(axis, low, x * (1 - share)).index_add_(axis, high, x * share)
    levels = x.chunk(len(lengths), 1) if combine == "concat" else [x] * len(lengths)
    gradients = []
    for length, level in zip(lengths, levels, strict=True):
        low, high, share = _between(_times(t, length), length)
        share = share.to(x.dtype).view(-1, 1, 1, 1)
        total = x.new_zeros(length, *level.shape[1:])
        gradients.append(total.index_add_(0, low, level * (1 - share)).index_add_(0, high, level * share))
    return torch.cat(gradients).to(grad.dtype).contiguous(memory_format=torch.channels_last)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype is torch.float64 else x.float()


def _levels(grid: torch.Tensor, t: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    """Each level at the times."""
    found = []
    for length, level in zip(lengths, _wide(grid).split(list(lengths)), strict=True):
        low, high, share = _between(_times(t, length), length)
        found.append(_blend(level[low], level[high], share.view(-1, 1, 1, 1)))
    return found


def _times(t: torch.Tensor, length: int) -> torch.Tensor:
    return t.double().nan_to_num(0.0).clamp(0, 1) * (length - 1)


def _positions(cells: int, scale: int) -> torch.Tensor:
    return (2 * torch.arange(cells * scale) + 1 - scale).double() / (2 * scale)


def _between(position: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The neighbours, both the border's outside, and the share of the second."""
    low = position.floor().long()
    return low.clamp(0, count - 1), (low + 1).clamp(0, count - 1), position - low


def _blend(low: torch.Tensor, high: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    share = share.to(low.dtype)
    return torch.where(share == 0, low, low * (1 - share) + high * share)
