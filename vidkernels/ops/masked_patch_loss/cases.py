"""Named inputs of masked_patch_loss and its backward."""

from __future__ import annotations

import math

import torch

from vidkernels._case import ROUNDING, Case

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

# A loss is float32 for every narrower pred, and so is its arithmetic.
LOSS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-6, torch.bfloat16: 2e-6}


def inputs(
    batch: int,
    grid: tuple[int, int, int],
    tube: tuple[int, int, int],
    channels: int,
    masked: int,
    convention: str = "videomae",
    video: str = "uint8",
    statistics: tuple[list, list] = ([], []),
    ascending: bool = False,
):
    """Arguments of the op for clips of `grid` tubes; masked tubes in random order unless `ascending`."""

    def args(g, dtype):
        t, h, w = (n * p for n, p in zip(grid, tube))
        if video == "uint8":
            clip = torch.randint(0, 256, (batch, t, h, w, channels), generator=g, dtype=torch.uint8)
        else:
            clip = torch.randn(batch, channels, t, h, w, generator=g).to(dtype)
        index = torch.rand(batch, math.prod(grid), generator=g).argsort(1)[:, :masked].int()
        index = index.sort(1).values if ascending else index
        pred = torch.randn(batch, masked, math.prod(tube) * channels, generator=g).to(dtype)
        return pred, clip, index, *tube, convention, *statistics

    return args


def _constant(g, dtype):
    """Flat tubes: the target is 0 / eps, and any rounding of x - mean would be multiplied by a million."""
    video = torch.tensor([0, 7, 255], dtype=torch.uint8).expand(2, 2, 8, 8, 3).contiguous()
    video[1, 0, 0, 0, 1] = 8
    pred = torch.randn(2, 4, 96, generator=g).to(dtype)
    return pred, video, torch.arange(4, dtype=torch.int32).repeat(2, 1), 2, 4, 4, "videomae", [], []


def _strided(g, dtype):
    pred, video, index, *rest = inputs(2, (2, 3, 3), (2, 4, 4), 3, 8, video="float", statistics=IMAGENET)(g, dtype)
    clip = video.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)  # channels last in memory
    return pred.repeat(1, 1, 2)[:, :, : pred.shape[2]], clip, index.repeat(1, 2)[:, :8], *rest


def _upstream(make):
    def args(g, dtype):
        rest = make(g, dtype)
        return torch.tensor(1.5, dtype=torch.float64 if dtype is torch.float64 else torch.float32), *rest

    return args


def _bytes(pred, video, masked_index, pt, ph, pw, *rest):
    tubes = masked_index.numel()
    pixels = pred.shape[2] * video.element_size()
    return tubes * (4 + pixels + pred.shape[2] * pred.element_size()), 4


def _bytes_backward(grad_loss, pred, video, masked_index, *rest):
    return _bytes(pred, video, masked_index, *rest)[0] + 4, pred.numel() * pred.element_size()


_INPUTS = {
    "tiny": inputs(2, (1, 2, 2), (2, 2, 2), 3, 3),
    "tiny_mae_st": inputs(2, (1, 2, 2), (2, 2, 2), 3, 3, "mae_st"),
    "tiny_float": inputs(2, (1, 2, 2), (2, 2, 2), 3, 3, video="float", statistics=IMAGENET),
    "odd": inputs(3, (3, 5, 7), (1, 7, 5), 5, 17),
    "odd_tuned": inputs(2, (3, 3, 5), (2, 16, 16), 3, 31),
    "odd_tuned_mae_st": inputs(2, (3, 3, 5), (2, 16, 16), 3, 31, "mae_st"),
    "odd_grey": inputs(2, (3, 3, 5), (2, 16, 16), 1, 31),
    "odd_wide": inputs(1, (2, 3, 1), (2, 14, 14), 17, 5),
    "odd_float": inputs(2, (3, 3, 5), (2, 8, 8), 3, 11, "mae_st", "float", IMAGENET),
    "empty": inputs(2, (1, 2, 2), (2, 2, 2), 3, 0),
    "strided": _strided,
    "extreme_flat": _constant,
    "real_videomae_b": inputs(8, (8, 14, 14), (2, 16, 16), 3, 1408, ascending=True),  # as masks come
}

_HALF_TOO = {"tiny_half" if name == "tiny" else name: args for name, args in _INPUTS.items()}

CASES = {
    "masked_patch_loss": [
        Case(name, args, grad=() if name == "empty" else ("pred",), rtol=LOSS, bytes=_bytes)
        for name, args in _INPUTS.items()
    ],
    "masked_patch_loss_backward": [
        # A half-precision upstream gradient of `pred` is rounded before it reaches d/d grad_loss: not in this case.
        Case("tiny", _upstream(_INPUTS["tiny"]), ("grad_loss", "pred"), (torch.float32, torch.float64), ROUNDING),
        *(Case(name, _upstream(args), rtol=ROUNDING, bytes=_bytes_backward) for name, args in _HALF_TOO.items()),
    ],
}
