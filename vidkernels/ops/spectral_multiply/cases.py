"""Named inputs of spectral_multiply and its backward."""

from __future__ import annotations

import torch

from vidkernels._case import ROUNDING, Case


def _inputs(batch: int, channels: tuple[int, int], modes: tuple[int, int], size, out, masked: bool = False):
    """`size`, `out`: rows and columns of the spectra."""

    def args(g, dtype):
        x = torch.randn(batch, channels[0], *size, 2, generator=g).to(dtype)
        weight = torch.randn(*modes, *channels, 2, generator=g).to(dtype)
        mask = torch.rand(weight.shape, generator=g) < 0.4 if masked else None
        return x, weight, mask, *out

    return args


def _strided(g, dtype):
    """As torch.fft gives it for channels_last; a mask and a weight in another order."""
    x = torch.randn(2, 6, 5, 7, 2, generator=g).to(dtype).permute(0, 3, 1, 2, 4)
    weight = torch.randn(7, 5, 3, 4, 2, generator=g).to(dtype).permute(2, 3, 0, 1, 4)
    mask = torch.randint(0, 2, (2, 3, 4, 7, 5), generator=g).bool().permute(1, 2, 3, 4, 0)
    return x, weight, mask, 9, 6


def _behind_the_mask(g, dtype):
    """What is masked, and what lies outside of the blocks, may be anything."""
    x = torch.full((1, 3, 6, 5, 2), float("nan"), dtype=dtype)
    x[:, :, [0, 1, 5], :2] = torch.randn(1, 3, 3, 2, 2, generator=g).to(dtype)
    weight = torch.randn(3, 2, 3, 9, 2, generator=g).to(dtype)
    mask = torch.rand(weight.shape, generator=g) < 0.5
    return x, weight.masked_fill(~mask, float("inf")), mask, 8, 4


def _upstream(make):
    def args(g, dtype):
        x, weight, mask, height, width = make(g, dtype)
        grad = torch.randn(x.shape[0], weight.shape[3], height, width, 2, generator=g).to(dtype)
        return grad, x, weight, mask

    return args


def _bytes(x, weight, mask, height, width):
    rows, columns, channels, out, _ = weight.shape
    kept = x.shape[0] * rows * columns * channels * 2 * x.element_size()
    weights = weight.numel() * (weight.element_size() + (mask is not None))
    return kept + weights, x.shape[0] * out * height * width * 2 * x.element_size()


def _bytes_backward(grad, x, weight, mask):
    rows, columns, channels, out, _ = weight.shape
    kept = x.shape[0] * rows * columns * (channels + out) * 2 * x.element_size()
    weights = weight.numel() * (weight.element_size() + (mask is not None))
    return kept + weights, (x.numel() + weight.numel()) * x.element_size()


def _flops(x, weight, mask, height, width):
    return 4.0 * x.shape[0] * weight.numel()


def _flops_backward(grad, x, weight, mask):
    return 8.0 * x.shape[0] * weight.numel()


_INPUTS = {
    "tiny": _inputs(2, (2, 3), (3, 2), (4, 3), (5, 4)),
    "tiny_masked": _inputs(1, (3, 2), (2, 2), (3, 2), (2, 3), True),
    "odd": _inputs(3, (5, 13), (5, 3), (7, 4), (13, 9)),
    "odd_masked": _inputs(5, (17, 37), (7, 5), (11, 6), (21, 11), True),
    "odd_all_rows": _inputs(2, (3, 9), (5, 4), (5, 4), (5, 4)),
    "odd_one_row": _inputs(7, (31, 8), (1, 1), (1, 1), (3, 2), True),
    "empty": _inputs(0, (2, 3), (3, 2), (4, 3), (5, 4)),
    "empty_channels": _inputs(2, (0, 3), (3, 2), (4, 3), (5, 4)),
    "empty_block": _inputs(2, (2, 3), (0, 2), (4, 3), (5, 4)),
    "strided": _strided,
    "real_pfnr_small": _inputs(2, (32, 32), (20, 21), (20, 21), (40, 41)),
    "real_pfnr": _inputs(1, (112, 96), (9, 16), (45, 41), (90, 81), True),
    "real_fno": _inputs(16, (32, 32), (24, 12), (64, 33), (64, 33)),
}
_GRAD = ("x", "weight")

CASES = {
    "spectral_multiply": [
        *(Case(n, args, _GRAD, rtol=ROUNDING, bytes=_bytes, flops=_flops) for n, args in _INPUTS.items()),
        Case("extreme_behind_the_mask", _behind_the_mask, rtol=ROUNDING),
    ],
    "spectral_multiply_backward": [
        *(
            Case(n, _upstream(args), rtol=ROUNDING, bytes=_bytes_backward, flops=_flops_backward)
            for n, args in _INPUTS.items()
        ),
        Case("extreme_behind_the_mask", _upstream(_behind_the_mask), rtol=ROUNDING),
    ],
}
