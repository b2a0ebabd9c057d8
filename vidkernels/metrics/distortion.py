"""Peak signal-to-noise ratio of clips."""

from __future__ import annotations

import math
from typing import Literal

import torch

from vidkernels import _check

from ._clips import checked_pair, peak


def frame_psnr(decoded: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """PSNR of every frame in decibels.

    psnr[t] = 10 log10(peak^2 / mse[t]), mse over all pixels and channels of frame t
    Convention: peak 255 for uint8, 1 for floating frames; equal frames have inf. uint8 sums are exact integers.
    Args:
        decoded: [T, H, W, C] or [H, W, C], uint8 or floating.
        source: the same shape and dtype.
    Returns:
        psnr: [T] float64. Not differentiable.
    Raises:
        ValueError: shapes or dtypes differ, no pixels, another dtype.
    Backends: plain torch. Deterministic: yes.
    Source: ITU-T J.247 Annex; the mean over R, G and B together, as image papers report it.
    Example:
        >>> source = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
        >>> [round(value, 2) for value in frame_psnr(source + 255, source).tolist()]
        [0.0, 0.0]
    """
    decoded, source = checked_pair("frame_psnr", decoded, source)
    mse = torch.stack([_mse(d, s) for d, s in zip(decoded, source)])
    return 10 * torch.log10(peak(decoded) ** 2 / mse)


def psnr(decoded: torch.Tensor, source: torch.Tensor, *, pool: Literal["frames", "pixels"] = "frames") -> float:
    """PSNR of a clip in decibels.

    "frames": mean over t of psnr[t]. "pixels": 10 log10(peak^2 / mean over t of mse[t])
    Convention: "frames" is what video-representation papers and codec tests print; it rewards a few very good frames,
        and one exact frame makes it inf. "pixels" pools the errors first, never exceeds "frames" and has no such jump.
    Args:
        decoded: [T, H, W, C] or [H, W, C], uint8 (peak 255) or floating (peak 1).
        source: the same shape and dtype.
        pool: what is averaged, decibels of frames or squared errors of pixels.
    Returns:
        psnr: a Python float, inf for equal clips.
    Raises:
        ValueError: as `frame_psnr`; another `pool`.
    Backends: plain torch. Deterministic: yes.
    Source: as `frame_psnr`.
    Example:
        >>> source = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
        >>> decoded = source.clone()
        >>> decoded[0] += 1
        >>> decoded[1] += 2
        >>> round(psnr(decoded, source), 3), round(psnr(decoded, source, pool="pixels"), 3)
        (45.121, 44.151)
    """
    if pool not in ("frames", "pixels"):
        _check.fail("psnr", "expected `pool` to be 'frames' or 'pixels'.", pool=pool)
    values = frame_psnr(decoded, source)
    if pool == "frames":
        return values.mean().item()
    # Frames have one size, so the mean of their errors is the error of all pixels.
    mse = torch.pow(10.0, -values / 10).mean().item()
    return math.inf if mse == 0 else -10 * math.log10(mse)


def _mse(decoded: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    if decoded.dtype is torch.uint8:
        # |d - s| fits a byte; its square fits int32, and int64 sums are exact up to 2^47 pixels.
        apart = torch.where(decoded > source, decoded - source, source - decoded).to(torch.int32)
        return apart.mul_(apart).sum(dtype=torch.int64).to(torch.float64) / decoded.numel()
    return (decoded.double() - source.double()).square().mean()
