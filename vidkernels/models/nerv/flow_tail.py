"""What a decoder between key frames does at full resolution: warp the key frames, and blend them with its own picture.

Pixels are kept in cells, as a pixel shuffle by s folds them: number (c * s + i) * s + j of a cell is channel c of its
pixel in row i and column j. A cell is what the layers before and after see, so nothing is shuffled on the way. All work
goes piece by piece through memory that stays in the processor's caches, and gradients are formed from what the forward
pass had as its input, not from tensors of every pixel that it would have to keep.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["blended", "key_cells"]

_PIECE = 1 << 13  # cells that are worked on at a time
_COLORS = 3


def key_cells(
    flow: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], scale: int, dtype: torch.dtype
) -> Tensor:
    """Two key frames, warped, minus 0.5, as cells.

    Args:
        flow: [B, 4, h, w], (x, y) in pixels into `before`, then into `after`; enlarged bilinearly by `scale`.
        before, after: of each of the B pictures its key frames [3, H, W], H <= h * scale; the border repeats.
        dtype: of the result.
    Returns:
        [B, 6 * scale^2, h, w], channels_last; 0 where a cell hangs over the picture. Differentiable in `flow`, once.
    """
    return _KeyCells.apply(flow, scale, dtype, *before, *after)


def blended(out: Tensor, cells: Tensor, scale: int, size: tuple[int, int]) -> Tensor:
    """Pictures [B, 3, H, W], channels_last: a picture of the network's own and two others, by the network's weights.

    softmax(out's channels 3 to 5) over (out's channels 0 to 2 plus 0.5, `cells` of `key_cells` plus 0.5)
    Args:
        out: [B, 6 * scale^2, h, w], cells of six channels. cells: the same of the warped key frames.
        size: (H, W).
    Returns:
        float32 (float64 of float64). Differentiable in `out` and `cells`, once.
    """
    return _Blended.apply(out, cells, scale, tuple(size))


class _KeyCells(torch.autograd.Function):
    @staticmethod
    def forward(ctx, flow, scale, dtype, *keys):
        batch, _, h, w = flow.shape
        cells = flow.new_empty((batch, h, w, 2 * _COLORS * scale**2), dtype=dtype)
        ctx.save_for_backward(flow, *keys)
        ctx.scale = scale
        height, width = keys[0].shape[-2:]
        for b in range(batch):
            for k, place in enumerate(_places(flow[b], scale, (height, width))):
                seen = _sampled(keys[b + k * batch], place).view(-1, h * w).sub_(0.5)
                part = cells[b].view(h * w, 2, -1)[:, k]
                part.copy_(seen.t())
        if height < h * scale or width < w * scale:
            cells *= _inside(h, w, scale, (height, width), cells)
        return cells.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        flow, *keys = ctx.saved_tensors
        batch, _, h, w = flow.shape
        s, (height, width) = ctx.scale, keys[0].shape[-2:]
        grad = grad.permute(0, 2, 3, 1)
        if height < h * s or width < w * s:
            grad = grad * _inside(h, w, s, (height, width), grad)
        found = []
        for b in range(batch):
            full = flow.new_empty((1, 4, h * s, w * s), dtype=_wide(flow))
            for k, place in enumerate(_places(flow[b], s, (height, width))):
                part = grad[b].reshape(h * w, 2, -1)[:, k].t().to(full.dtype, memory_format=torch.contiguous_format)
                part = part.reshape(1, _COLORS, s * s * h, w)
                with torch.enable_grad():
                    seen = _sampled(keys[b + k * batch], place.requires_grad_())
                moved = torch.autograd.grad(seen, place, part)[0].view(s, s, h, w, 2)
                for axis, side in enumerate((width, height)):
                    for i in range(s):
                        for j in range(s):
                            torch.mul(moved[i, j, :, :, axis], 2 / side, out=full[0, 2 * k + axis, i::s, j::s])
            with torch.enable_grad():
                small = flow[b : b + 1].to(full.dtype).requires_grad_()
                enlarged = _enlarged(small, s)
            found.append(torch.autograd.grad(enlarged, small, full)[0])
        return torch.cat(found).to(flow.dtype), None, None, *[None] * len(keys)


def _places(flow: Tensor, scale: int, size: tuple[int, int]) -> Iterator[Tensor]:
    """Where the pixels of all cells are in both key frames: [1, s * s * h, w, 2] each, as grid_sample counts."""
    h, w = flow.shape[-2:]
    full = _enlarged(flow[None].to(_wide(flow)), scale)[0]
    for k in range(2):
        place = full.new_empty((scale, scale, h, w, 2))
        for axis, side in enumerate((size[1], size[0])):
            for i in range(scale):
                for j in range(scale):
                    cells, first = (w, j) if axis == 0 else (h, i)
                    base = torch.arange(cells, dtype=full.dtype, device=full.device).mul_(2 * scale / side)
                    base += (2 * first + 1) / side - 1
                    into = place[i, j, :, :, axis]
                    torch.mul(full[2 * k + axis, i::scale, j::scale], 2 / side, out=into)
                    into += base if axis == 0 else base.view(-1, 1)
        yield place.view(1, scale * scale * h, w, 2)


def _enlarged(flow: Tensor, scale: int) -> Tensor:
    return F.interpolate(flow, scale_factor=scale, mode="bilinear", align_corners=False)


def _sampled(key: Tensor, place: Tensor) -> Tensor:
    with torch.autocast(place.device.type, enabled=False):
        return F.grid_sample(key[None].to(place.dtype), place, align_corners=False, padding_mode="border")


def _inside(h: int, w: int, scale: int, size: tuple[int, int], like: Tensor) -> Tensor:
    """[h, w, 6 * scale^2]: 1 where a pixel is one of the picture's."""
    seen = torch.zeros(h * scale, w * scale, dtype=like.dtype, device=like.device)
    seen[: size[0], : size[1]] = 1
    cells = F.pixel_unshuffle(seen[None], scale).permute(1, 2, 0)
    return cells.repeat(1, 1, 2 * _COLORS)


class _Blended(torch.autograd.Function):
    @staticmethod
    def forward(ctx, out, cells, scale, size):
        batch, _, h, w = out.shape
        ctx.save_for_backward(out, cells)
        ctx.scale = scale
        full = out.new_empty((batch, h * scale, w * scale, _COLORS), dtype=_wide(out))
        for b, rows in _pieces(out):
            own, keys, share = _sources(out[b], cells[b], rows, scale)
            picture = own.mul_(share[0]).addcmul_(keys[0], share[1]).addcmul_(keys[1], share[2])
            into = full[b].view(h, scale, w, scale, _COLORS)[rows]
            into.permute(4, 1, 3, 0, 2).copy_(picture.view(_COLORS, scale, scale, -1, w))
        return full[:, : size[0], : size[1]].permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        out, cells = ctx.saved_tensors
        s, (batch, count, h, w) = ctx.scale, out.shape
        grad = grad.permute(0, 2, 3, 1)
        if grad.shape[1:3] != (h * s, w * s):
            grad = F.pad(grad, (0, 0, 0, w * s - grad.shape[2], 0, h * s - grad.shape[1]))
        to_out, to_cells = (torch.empty((batch, h, w, count), dtype=x.dtype, device=x.device) for x in (out, cells))
        for b, rows in _pieces(out):
            own, keys, share = _sources(out[b], cells[b], rows, s)
            part = grad[b].view(h, s, w, s, _COLORS)[rows].permute(4, 1, 3, 0, 2).reshape(own.shape)
            own.mul_(part)
            keys.mul_(part)
            worth = torch.stack([x.sum(0) for x in (own, *keys)])  # of each share
            worth -= (worth * share).sum(0)
            worth.mul_(share)
            ours = to_out[b, rows].view(-1, 2, count // 2)
            ours[:, 0].copy_((part * share[0]).reshape(count // 2, -1).t())
            ours[:, 1].copy_(worth.reshape(count // 2, -1).t())
            theirs = to_cells[b, rows].view(-1, 2, count // 2)
            for k in range(2):
                theirs[:, k].copy_((part * share[1 + k]).reshape(count // 2, -1).t())
        return to_out.permute(0, 3, 1, 2), to_cells.permute(0, 3, 1, 2), None, None


def _sources(out: Tensor, cells: Tensor, rows: slice, scale: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the P pixels of some rows of cells: own picture [3, P], warped keys [2, 3, P], shares [3, P]."""
    wide = _wide(out)
    own, logits = _planes(out, rows, wide).view(2, _COLORS, -1)
    keys = _planes(cells, rows, wide).view(2, _COLORS, -1).add_(0.5)
    return own.add_(0.5), keys, torch.softmax(logits, 0)


def _planes(x: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
    """[C, h, w] -> [C, P], in memory of its own."""
    return x[:, rows].to(dtype, memory_format=torch.contiguous_format, copy=True).flatten(1)


def _pieces(x: Tensor) -> Iterator[tuple[int, slice]]:
    """Picture and rows of cells that are worked on together."""
    batch, _, h, w = x.shape
    step = max(1, _PIECE // w) if x.device.type == "cpu" else h
    for b in range(batch):
        for y in range(0, h, step):
            yield b, slice(y, y + step)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32
