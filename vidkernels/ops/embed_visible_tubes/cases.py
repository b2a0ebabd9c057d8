"""Named inputs of embed_visible_tubes and its backward."""

from __future__ import annotations

from dataclasses import replace

import torch

from vidkernels._case import ROUNDING, Case

_MEAN, _STD = (0.485, 0.456, 0.406, 0.5, 0.45), (0.229, 0.224, 0.225, 0.25, 0.3)


def _clip(g, dtype, batch, grid, tube, channels, floating):
    t, h, w = (n * p for n, p in zip(grid, tube))
    if floating:
        return torch.rand(batch, channels, t, h, w, generator=g).to(dtype)
    return torch.randint(0, 256, (batch, t, h, w, channels), generator=g, dtype=torch.uint8)


def _index(g, batch, grid, visible):
    return torch.rand(batch, grid[0] * grid[1] * grid[2], generator=g).argsort(1)[:, :visible].sort(1).values.int()


def _forward(batch, grid, tube, channels, dim, visible, floating=False, plain=False, bare=False):
    """plain: no normalisation; bare: neither bias nor position."""

    def args(g, dtype):
        fan_in = channels * tube[0] * tube[1] * tube[2]
        weight = (torch.randn(dim, channels, *tube, generator=g) / fan_in**0.5).to(dtype)
        bias = None if bare else torch.randn(dim, generator=g).to(dtype)
        position = None if bare else torch.randn(grid[0] * grid[1] * grid[2], dim, generator=g).to(dtype)
        mean, std = ([0.0] * channels, [1.0] * channels) if plain else (list(_MEAN[:channels]), list(_STD[:channels]))
        video = _clip(g, dtype, batch, grid, tube, channels, floating)
        return video, weight, bias, _index(g, batch, grid, visible), position, list(tube), mean, std

    return args


def _backward(batch, grid, tube, channels, dim, visible, floating=False, with_position=True):
    def args(g, dtype):
        grad = torch.randn(batch, visible, dim, generator=g).to(dtype)
        video = _clip(g, dtype, batch, grid, tube, channels, floating)
        mean, std = list(_MEAN[:channels]), list(_STD[:channels])
        return grad, video, _index(g, batch, grid, visible), list(tube), mean, std, with_position

    return args


def _bytes(video, weight, bias, visible_index, position, tube, mean, std):
    rows, dim = visible_index.numel(), weight.shape[0]
    size = weight.element_size()
    pixels = rows * weight[0].numel() * video.element_size()
    per_row = rows * dim * size if position is not None else 0
    return pixels + weight.numel() * size + rows * 4 + per_row, rows * dim * size


def _flops(video, weight, bias, visible_index, position, tube, mean, std):
    return 2.0 * visible_index.numel() * weight.numel()


def _bytes_backward(grad_out, video, visible_index, tube, mean, std, with_position):
    channels = video.shape[4 if video.dtype is torch.uint8 else 1]
    width, size = channels * tube[0] * tube[1] * tube[2], grad_out.element_size()
    read = visible_index.numel() * (width * video.element_size() + 4) + grad_out.numel() * size
    return read, grad_out.shape[2] * width * size


_VIDEOMAE_B = (8, (8, 14, 14), (2, 16, 16), 3, 768, 160)
_GRAD = ("weight", "bias", "position")
_TINY = (2, (1, 2, 3), (1, 2, 2), 2, 3, 3)

CASES = {
    "embed_visible_tubes": [
        Case("tiny", _forward(*_TINY), grad=_GRAD, rtol=ROUNDING, bytes=_bytes),
        Case("odd", _forward(3, (3, 5, 3), (2, 7, 5), 3, 37, 11), grad=_GRAD, rtol=ROUNDING, bytes=_bytes),
        Case("odd_float", _forward(2, (1, 3, 5), (3, 4, 6), 3, 19, 7, floating=True), grad=_GRAD, rtol=ROUNDING),
        Case(
            "odd_float_plain",
            _forward(2, (2, 3, 2), (1, 3, 4), 2, 9, 5, floating=True, plain=True),
            grad=_GRAD,
            rtol=ROUNDING,
        ),
        Case("odd_image", _forward(3, (1, 3, 3), (1, 14, 14), 3, 65, 5), grad=_GRAD, rtol=ROUNDING),
        Case("odd_gray", _forward(2, (2, 3, 3), (2, 8, 8), 1, 33, 9), grad=_GRAD, rtol=ROUNDING),
        Case("odd_five", _forward(2, (2, 3, 3), (2, 4, 8), 5, 17, 9), grad=_GRAD, rtol=ROUNDING),
        Case("odd_tile", _forward(2, (2, 7, 7), (2, 8, 8), 3, 136, 67), grad=_GRAD, rtol=ROUNDING, bytes=_bytes),
        Case(
            "odd_bare",
            _forward(2, (2, 3, 3), (2, 4, 4), 4, 24, 6, plain=True, bare=True),
            grad=("weight",),
            rtol=ROUNDING,
        ),
        Case("empty", _forward(2, (1, 2, 2), (2, 4, 4), 3, 8, 0), grad=_GRAD, rtol=ROUNDING),
        Case("empty_batch", _forward(0, (1, 2, 2), (2, 4, 4), 3, 8, 2), grad=_GRAD, rtol=ROUNDING),
        Case("real_videomae_b", _forward(*_VIDEOMAE_B), grad=_GRAD, rtol=ROUNDING, bytes=_bytes, flops=_flops),
    ],
    "embed_visible_tubes_backward": [
        Case("tiny", _backward(*_TINY), rtol=ROUNDING, bytes=_bytes_backward),
        Case("odd", _backward(3, (3, 5, 3), (2, 7, 5), 3, 37, 11), rtol=ROUNDING),
        Case("odd_float", _backward(2, (1, 3, 5), (3, 4, 6), 3, 19, 7, floating=True), rtol=ROUNDING),
        Case("odd_bare", _backward(2, (1, 3, 5), (2, 4, 4), 4, 21, 9, with_position=False), rtol=ROUNDING),
        Case("empty", _backward(2, (1, 2, 2), (2, 4, 4), 3, 8, 0), rtol=ROUNDING),
        Case("real_videomae_b", _backward(*_VIDEOMAE_B), rtol=ROUNDING, bytes=_bytes_backward),
    ],
}
# The product is torch's, and its bits may change with the number of threads.
CASES = {op: [replace(case, thread_bits=False) for case in cases] for op, cases in CASES.items()}
