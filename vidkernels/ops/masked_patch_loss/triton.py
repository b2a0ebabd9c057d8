"""masked_patch_loss for GPUs that the compiled module does not serve.

One program per masked tube, its pixels as a block [pixel, channel] padded to powers of two:

    load pixels -> mean in two parts, squared deviation -> target -> pred - target -> partial loss, gradient
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vidkernels._pool import empty
from vidkernels.ops._triton.ahead import Variant
from vidkernels.ops._triton.blocks import power_of_2


@triton.jit
def masked_patch_loss_tube_kernel(
    pred, video, index, grad_loss, scale, shift, partial, grad,
    count, length, grid_h, grid_w, stride_b, stride_t, stride_h, stride_w, stride_c, upstream,
    PH: tl.constexpr, PW: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, JOINT: tl.constexpr, BYTES: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    tube = tl.program_id(0).to(tl.int64)
    n = tl.load(index + tube)
    valid = (n >= 0) & (n < length)
    n = tl.where(valid, n, 0)
    line = n // grid_w
    t0, y0, x0 = line // grid_h, line % grid_h, n % grid_w

    p = tl.arange(0, BLOCK_P)[:, None]
    c = tl.arange(0, BLOCK_C)[None, :]
    inside = (p < PIXELS) & (c < CHANNELS)
    readable = (p < tl.where(valid, PIXELS, 0)) & (c < CHANNELS)
    t = t0 * (PIXELS // (PH * PW)) + p // (PH * PW)
    y = y0 * PH + p // PW % PH
    x = x0 * PW + p % PW
    place = (
        t.to(tl.int64) * stride_t + y.to(tl.int64) * stride_h + x.to(tl.int64) * stride_w + c.to(tl.int64) * stride_c
    )
    v = tl.load(video + tube // count * stride_b + place, mask=readable, other=0).to(tl.float32)
    s = tl.load(scale + c, mask=c < CHANNELS, other=1.0)

    # The mean comes in two parts, so that v - mean is right to the last bit in flat tubes.
    unit: tl.constexpr = 255.0 if BYTES else 1.0
    if JOINT:
        v = tl.where(inside, v * s + tl.load(shift + c, mask=c < CHANNELS, other=0.0), 0.0)
        all_pixels: tl.constexpr = PIXELS * CHANNELS
        high = tl.sum(tl.sum(v, 1), 0) / all_pixels
        d = tl.where(inside, v - high, 0.0)
        d = tl.where(inside, d - tl.sum(tl.sum(d, 1), 0) / all_pixels, 0.0)
        variance = tl.sum(tl.sum(d * d, 1), 0) / (all_pixels - 1)
        target = d / tl.sqrt_rn(variance + 1e-6 * unit * unit)
    else:
        high = tl.sum(v, 0)[None, :] / PIXELS
        d = tl.where(inside, v - high, 0.0)
        d = tl.where(inside, d - tl.sum(d, 0)[None, :] / PIXELS, 0.0)
        variance = tl.sum(d * d, 0)[None, :] / (PIXELS - 1)
        target = d * (s / (tl.abs(s) * tl.sqrt_rn(variance) + 1e-6 * unit))

    element = tube * (PIXELS * CHANNELS) + p * CHANNELS + c
    difference = tl.load(pred + element, mask=inside, other=0).to(tl.float32) - target
    difference += tl.where(valid, 0.0, float("nan"))
    if GRAD:
        up = tl.load(grad_loss) * upstream
        tl.store(grad + element, (difference * up).to(grad.dtype.element_ty), mask=inside)
    else:
        square = tl.where(inside, difference * difference, 0.0)
        tl.store(partial + tube, tl.sum(tl.sum(square, 1), 0))


def masked_patch_loss(pred, video, masked_index, *rest):
    partial = torch.empty(masked_index.shape, dtype=torch.float32, device=pred.device)
    _launch(pred, video, masked_index, *rest, partial=partial)
    return (partial.double().sum() / max(1, pred.numel())).float()


def masked_patch_loss_backward(grad_loss, pred, video, masked_index, *rest):
    grad = empty(pred.shape, pred.dtype, pred.device)
    _launch(pred, video, masked_index, *rest, grad_loss=grad_loss.float(), grad=grad)
    return grad


def _launch(
    pred, video, masked_index, pt, ph, pw, convention, mean, std, partial=None, grad_loss=None, grad=None
) -> None:
    if masked_index.numel() == 0:
        return
    pred, masked_index = pred.contiguous(), masked_index.contiguous()
    b, t, h, w, c = (0, 1, 2, 3, 4) if video.dtype is torch.uint8 else (0, 2, 3, 4, 1)
    grid = [video.shape[axis] // size for axis, size in ((t, pt), (h, ph), (w, pw))]
    channels, pixels = video.shape[c], pt * ph * pw
    statistics = torch.tensor([list(std) or [1.0] * channels, list(mean) or [0.0] * channels], device=pred.device)
    block_p, block_c = power_of_2(pixels), power_of_2(channels)
    masked_patch_loss_tube_kernel[(masked_index.numel(),)](
        pred, video, masked_index, grad_loss, statistics[0], statistics[1], partial, grad,
        masked_index.shape[1], grid[0] * grid[1] * grid[2], grid[1], grid[2],
        *(video.stride(axis) for axis in (b, t, h, w, c)), 2 / pred.numel(),
        PH=ph, PW=pw, PIXELS=pixels, CHANNELS=channels, BLOCK_P=block_p, BLOCK_C=block_c,
        JOINT=convention == "mae_st", BYTES=video.dtype is torch.uint8, GRAD=grad is not None,
        num_warps=_warps(block_p * block_c), enable_fp_fusion=True,
    )  # fmt: skip


def _warps(elements: int) -> int:
    """About 16 elements a thread: the block lives in registers."""
    return max(1, min(16, elements // 512))


def _variant(pred: str, video: str, convention: str, grad: bool) -> Variant:
    pointers = {"pred": f"*{pred}", "video": f"*{video}", "index": "*i32", "grad_loss": "*fp32", "scale": "*fp32"}
    pointers |= {"shift": "*fp32", "partial": "*fp32", "grad": f"*{pred}"}
    sizes = {"count": "i32", "length": "i32", "grid_h": "i32", "grid_w": "i32"}
    strides = dict.fromkeys([f"stride_{axis}" for axis in "bthwc"], "i64")
    constants = {"PH": 16, "PW": 16, "PIXELS": 512, "CHANNELS": 3, "BLOCK_P": 512, "BLOCK_C": 4}
    constants |= {"JOINT": convention == "mae_st", "BYTES": video == "u8", "GRAD": grad}
    name = f"{pred}_{video}_{convention}_{'backward' if grad else 'forward'}"
    types = {**pointers, **sizes, **strides, "upstream": "fp32"}
    return Variant(name, masked_patch_loss_tube_kernel, types, constants, _warps(2048))


AHEAD = [
    _variant("fp32", "u8", "videomae", grad=False),
    _variant("fp32", "u8", "videomae", grad=True),
    _variant("bf16", "u8", "mae_st", grad=True),
    _variant("fp16", "fp32", "mae_st", grad=False),
]
