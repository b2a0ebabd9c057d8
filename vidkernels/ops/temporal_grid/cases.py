"""Named inputs of temporal_grid and its backward."""

from __future__ import annotations

import torch

from vidkernels._case import ROUNDING, Case


def _inputs(lengths, channels: int, size: tuple[int, int], batch: int, scale: int, combine: str = "concat"):
    def args(g, dtype):
        grid = torch.randn(sum(lengths), *size, channels, generator=g).to(dtype).permute(0, 3, 1, 2)
        t = torch.rand(batch, generator=g).to(torch.float64 if dtype is torch.float64 else torch.float32)
        return grid, t, list(lengths), scale, combine

    return args


def _edges(g, dtype):
    """Both ends, beyond them, exactly on frames, NaN, and a level of one frame."""
    grid = torch.randn(1 + 2 + 5, 3, 2, 3, generator=g).to(dtype)
    t = torch.tensor([0.0, 1.0, -3.0, 7.0, 0.25, 0.5, float("nan"), float("inf"), -float("inf"), 1 - 2**-24])
    return grid, t.to(torch.float64 if dtype is torch.float64 else torch.float32), [1, 2, 5], 3, "concat"


def _strided(g, dtype):
    grid, t, *rest = _inputs((7, 3), 5, (4, 6), 3, 2)(g, dtype)
    return grid.flip(3), t.flip(0), *rest


def _infinite(g, dtype):
    """Where the share of an infinity is 0, there is nothing of it."""
    grid = torch.ones(3, 2, 1, 1, dtype=dtype)
    grid[2] = float("inf")
    return grid, torch.tensor([0.0, 0.25, 0.5], dtype=torch.float32), [3], 1, "sum"


def _upstream(make):
    def args(g, dtype):
        grid, t, lengths, scale, combine = make(g, dtype)
        levels = len(lengths) if combine == "concat" else 1
        shape = (len(t), grid.shape[2] * scale, grid.shape[3] * scale, grid.shape[1] * levels)
        grad = torch.randn(shape, generator=g).to(dtype).permute(0, 3, 1, 2)
        return grad, t, grid.shape[0], lengths, scale, combine

    return args


def _bytes(grid, t, lengths, scale, combine):
    batch, frame = len(t), grid[0].numel() * grid.element_size()
    levels = len(lengths)
    return 2 * batch * levels * frame, batch * frame * scale * scale * (levels if combine == "concat" else 1)


def _bytes_backward(grad, t, frames, lengths, scale, combine):
    levels = len(lengths) if combine == "concat" else 1
    numel = grad.numel() // max(1, len(t) * scale * scale * levels) * frames
    return grad.numel() * grad.element_size(), numel * grad.element_size()


_INPUTS = {
    "tiny": _inputs((3, 2), 2, (2, 3), 2, 2),
    "tiny_sum": _inputs((3, 2), 2, (2, 1), 2, 3, "sum"),
    "odd": _inputs((13, 7, 3), 17, (5, 7), 5, 3),
    "odd_sum": _inputs((11, 6, 3, 1), 19, (3, 5), 7, 2, "sum"),
    "odd_plain": _inputs((31,), 37, (3, 5), 4, 1),
    "odd_large": _inputs((5,), 3, (2, 3), 2, 7),
    "odd_many": _inputs((2, 3), 8, (3, 2), 31, 4),
    "empty": _inputs((3, 2), 2, (2, 3), 0, 2),
    "empty_channels": _inputs((3, 2), 0, (2, 3), 2, 2),
    "strided": _strided,
    "extreme": _edges,
    "real_ff_nerv": _inputs((64, 128, 256, 512), 32, (9, 16), 2, 5),
    "real_hi_nerv": _inputs((75, 150, 300, 600), 16, (18, 32), 8, 4, "sum"),
    "real_local": _inputs((300,), 64, (5, 5), 32, 1),
}

CASES = {
    "temporal_grid": [
        *(Case(name, args, ("grid",), rtol=ROUNDING, bytes=_bytes) for name, args in _INPUTS.items()),
        Case("extreme_infinite", _infinite, dtypes=(torch.float32, torch.bfloat16), rtol=ROUNDING),
    ],
    "temporal_grid_backward": [
        Case(name, _upstream(args), ("grad",), rtol=ROUNDING, bytes=_bytes_backward) for name, args in _INPUTS.items()
    ],
}
