"""Named inputs of newton_schulz."""

from __future__ import annotations

import torch

from vidkernels._case import Case

QUINTIC = [3.4445, -4.7750, 2.0315]

# Five steps enlarge what is small 485 times, and rounding with it. The kernels iterate on the Gram matrix in float32,
# which costs squares another digit: their least singular values are far below the others.
_WIDE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}
_SQUARE = {torch.float64: 1e-11, torch.float32: 2e-4, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
_SINGULAR = {torch.float64: 1e-11, torch.float32: 4e-3}


def inputs(*shapes: tuple[int, int], steps: int = 5):
    def args(g, dtype):
        packed = [torch.randn(m * n, generator=g, dtype=torch.float64) for m, n in shapes]
        packed = torch.cat(packed).to(dtype) if packed else torch.empty(0, dtype=dtype)
        return packed, [m for m, _ in shapes], [n for _, n in shapes], steps, QUINTIC, 1e-7

    return args


def _strided(g, dtype):
    packed, *rest = inputs((7, 12), (9, 4))(g, dtype)
    return torch.stack([packed, packed], 1)[:, 0], *rest


def _scales(g, dtype):
    """Lengths from 1e-30 to 1e30, and nothing at all."""
    packed, *rest = inputs((4, 9), (9, 4), (4, 9), (3, 7))(g, dtype)
    packed[:36] *= 1e-30
    packed[36:72] *= 1e30
    packed[108:] = 0
    return packed, *rest[:-1], 1e-37


def _nan(g, dtype):
    packed, *rest = inputs((5, 8), (5, 8), (8, 5))(g, dtype)
    packed[50] = float("nan")
    return packed, *rest


def _low_rank(g, dtype):
    """Rank 3 and a ten-thousandth of noise, as gradients of small batches are."""
    low = torch.randn(40, 3, generator=g, dtype=torch.float64) @ torch.randn(3, 90, generator=g, dtype=torch.float64)
    packed = low + 1e-4 * torch.randn(40, 90, generator=g, dtype=torch.float64)
    return packed.flatten().to(dtype), [40], [90], 5, QUINTIC, 1e-7


def _bytes(packed, *rest):
    return packed.numel() * packed.element_size(), packed.numel() * packed.element_size()


def _flops(packed, rows, cols, steps, *rest):
    """Of the iteration on the Gram matrix, halves of symmetric products counted once."""
    sides = [(min(m, n), max(m, n)) for m, n in zip(rows, cols)]
    return float(sum(3 * m * m * n + (4 * steps - 3) * m**3 for m, n in sides))


_NARROW = (torch.float32, torch.float64)
LATENT_NERV = ((1200, 288), (320, 432), (160, 720), (96, 360), (12, 216), (3, 108))
"""Weights of a decoder of six convolutions as matrices [out, in * kernel area]."""

CASES = {
    "newton_schulz": [
        Case("tiny", inputs((3, 5)), rtol=_WIDE, bytes=_bytes, flops=_flops),
        Case("tiny_tall", inputs((5, 2), (1, 1), (4, 1)), rtol=_WIDE),
        Case("odd", inputs((17, 61), (63, 19), (1, 37), (8, 144), (70, 11)), rtol=_WIDE),
        Case("odd_one_step", inputs((13, 29), steps=1), rtol=_WIDE),
        Case("odd_square", inputs((37, 37), (65, 66)), rtol=_SQUARE),
        Case("odd_deep", inputs((67, 300), (131, 90)), rtol=_WIDE),
        Case("odd_many", inputs(*[(2 + k % 5, 3 + k % 11) for k in range(70)]), rtol=_SQUARE),
        Case("empty", inputs(), rtol=_WIDE),
        Case("empty_matrix", inputs((0, 4), (3, 8), (5, 0)), rtol=_WIDE),
        Case("strided", _strided, rtol=_WIDE),
        Case("extreme_scales", _scales, dtypes=_NARROW, rtol=_WIDE),
        Case("extreme_nan", _nan, dtypes=_NARROW, rtol=_WIDE),
        Case("extreme_low_rank", _low_rank, dtypes=_NARROW, rtol=_SINGULAR),
        Case("real_latent_nerv", inputs(*LATENT_NERV), dtypes=_NARROW, rtol=_SQUARE, bytes=_bytes, flops=_flops),
        Case("real_same_shape", inputs(*[(64, 576)] * 24), dtypes=_NARROW, rtol=_WIDE, bytes=_bytes, flops=_flops),
        Case("real_small", inputs(*[(24, 216)] * 40), dtypes=_NARROW, rtol=_WIDE, bytes=_bytes, flops=_flops),
    ]
}
