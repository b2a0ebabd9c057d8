"""Structural similarity, at one scale and at five.

Libraries have both, and the tests use them as oracles; but torchmetrics 1.9 also counts windows that hang over the
frame's edge (mirrored), and scikit-image has no five scales.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vidkernels import _check

from ._clips import checked_pair, peak, planes

_TAPS, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ssim(decoded: torch.Tensor, source: torch.Tensor) -> float:
    """Structural similarity, the mean over windows, channels and frames.

    ((2 mx my + c1)(2 sxy + c2)) / ((mx^2 + my^2 + c1)(sx^2 + sy^2 + c2)), Gaussian window of 11 x 11, sigma 1.5
    Convention: only windows that lie inside the frame count; channels (RGB) separately; population variances;
        c1 = (0.01 peak)^2, c2 = (0.03 peak)^2, peak 255 for uint8 and 1 for floating frames.
    Args:
        decoded: [T, H, W, C] or [H, W, C], uint8 or floating, at least 11 x 11.
        source: the same shape and dtype.
    Returns:
        ssim: a Python float, 1 for equal clips. Not differentiable.
    Raises:
        ValueError: shapes or dtypes differ, frames too small.
    Backends: plain torch. Deterministic: yes, on the CPU.
    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".
    Example:
        >>> source = torch.arange(3 * 256, dtype=torch.uint8).reshape(16, 16, 3)
        >>> round(ssim(source, source), 6)
        1.0
    """
    decoded, source = checked_pair("ssim", decoded, source)
    _large_enough("ssim", decoded, _TAPS)
    total = sum(_terms(d, s, peak(decoded))[0] for d, s in planes(decoded, source))
    return total / len(decoded)


def ms_ssim(decoded: torch.Tensor, source: torch.Tensor) -> float:
    """Multi-scale structural similarity, the mean over frames.

    ssim_5^w5 * product over scales j = 1..4 of cs_j^wj; between scales the frame is halved by 2 x 2 means
    Convention: as `ssim`; the terms of a scale are means over windows and channels, negative ones count as 0.
    Args:
        decoded: [T, H, W, C] or [H, W, C], uint8 or floating, at least 176 x 176.
        source: the same shape and dtype.
    Returns:
        ms_ssim: a Python float, 1 for equal clips. Not differentiable.
    Raises:
        ValueError: shapes or dtypes differ, frames too small for five scales.
    Backends: plain torch. Deterministic: yes, on the CPU.
    Source: Wang, Simoncelli, Bovik 2003, "Multiscale structural similarity for image quality assessment".
    Example:
        >>> source = torch.arange(176 * 176 * 3).reshape(176, 176, 3).to(torch.uint8)
        >>> round(ms_ssim(source, source), 6)
        1.0
    """
    decoded, source = checked_pair("ms_ssim", decoded, source)
    _large_enough("ms_ssim", decoded, _TAPS << (len(_SCALES) - 1))
    total = 0.0
    for d, s in planes(decoded, source):
        product = 1.0
        for weight in _SCALES[:-1]:
            product *= max(_terms(d, s, peak(decoded))[1], 0.0) ** weight
            d, s = F.avg_pool2d(d, 2), F.avg_pool2d(s, 2)
        total += product * max(_terms(d, s, peak(decoded))[0], 0.0) ** _SCALES[-1]
    return total / len(decoded)


def _terms(x: torch.Tensor, y: torch.Tensor, peak: float) -> tuple[float, float]:
    """Means of ssim and of its contrast-structure factor over the windows inside [1, C, H, W]."""
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    # E[x^2] - E[x]^2 cancels in float32; less so around the frame's mean, which changes no variance.
    ax, ay = x.mean(), y.mean()
    x, y = x - ax, y - ay
    mx, my, sxx, syy, sxy = _blur(torch.cat((x, y, x * x, y * y, x * y), 1)).chunk(5, 1)
    sxx, syy, sxy = sxx - mx * mx, syy - my * my, sxy - mx * my
    mx, my = mx + ax, my + ay
    structure = (2 * sxy + c2) / (sxx + syy + c2)
    luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
    return (luminance * structure).mean(dtype=torch.float64).item(), structure.mean(dtype=torch.float64).item()


def _blur(x: torch.Tensor) -> torch.Tensor:
    at = torch.arange(_TAPS, dtype=torch.float64) - _TAPS // 2
    window = torch.exp(-(at**2) / (2 * _SIGMA**2))
    window = window / window.sum()
    # One depthwise convolution: torch's is quicker at 11 x 11 taps than twice at 11.
    window = torch.outer(window, window).to(x).expand(x.shape[1], 1, _TAPS, _TAPS)
    return F.conv2d(x, window.contiguous(), groups=x.shape[1])


def _large_enough(name: str, clip: torch.Tensor, least: int) -> None:
    if min(clip.shape[1:3]) < least:
        _check.fail(name, f"expected frames of at least {least} x {least} pixels.", decoded=clip)
