"""The building block of convolutional video representations: convolve, shuffle up, activate."""

from __future__ import annotations

import torch

from vidkernels import _check
from vidkernels.ops.upsample_conv.op import ACTIVATIONS
from vidkernels.ops.upsample_conv.op import upsample_conv as _upsample_conv

__all__ = ["upsample_conv"]


def upsample_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: int = 1,
    activation: str = "gelu",
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Convolution, pixel shuffle and activation as one operation.

    out = activation(pixel_shuffle(conv2d(x, weight, bias, padding=k // 2), scale))
    Convention: filters are ordered as torch's pixel_shuffle wants them, [C, scale, scale] flattened.
    Args:
        x: [B, I, H, W], float16/bfloat16/float32/float64, best in memory_format=torch.channels_last.
        weight: [C * scale^2, I, kh, kw], odd kernel sizes, the dtype of `x`.
        bias: [C * scale^2] or None.
        scale: the factor by which height and width grow; 1 is a plain convolution.
        activation: "gelu" (exact, by the error function), "sine" (sin(z)), "relu" or "none".
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        out: [B, C, H * scale, W * scale], channels_last, the dtype of `x`. Differentiable in `x`, `weight`, `bias`.
    Raises:
        ValueError: sizes that do not fit, an even kernel, another activation, unequal dtypes.
    Backends: reference, cpu (up to 64 input channels: more are torch's), cuda (sm80+). Deterministic: forward yes,
        backward yes (sums of fixed chunks in a fixed order, in float32).
    Source: Chen et al. 2021, arXiv 2110.13903, section 3.2 (NeRV block).
    Example:
        >>> x, weight = torch.ones(1, 2, 1, 2), torch.ones(4, 2, 3, 3)
        >>> upsample_conv(x, weight, torch.arange(4.0), 2, "none")[0, 0]
        tensor([[4., 5., 4., 5.],
                [6., 7., 6., 7.]])
    """
    name = "upsample_conv"
    if not isinstance(x, torch.Tensor) or x.dim() != 4:
        _check.is_tensor(name, "x", x, "[B, I, H, W]")
    if not isinstance(weight, torch.Tensor) or weight.dim() != 4:
        _check.is_tensor(name, "weight", weight, "[O, I, kh, kw]")
    if activation not in ACTIVATIONS:
        _check.fail(name, f"expected `activation` to be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    filters, channels, kh, kw = weight.shape
    if channels != x.shape[1]:
        _check.fail(name, "expected `weight` to have the channels of `x`.", x=x, weight=weight)
    if kh % 2 == 0 or kw % 2 == 0:
        _check.fail(name, "expected odd kernel sizes.", weight=weight)
    if scale < 1 or filters % (scale * scale):
        _check.fail(name, "expected `weight` to have C * scale^2 filters, scale >= 1.", weight=weight, scale=scale)
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != filters):
        _check.fail(name, "expected `bias` to have one number per filter.", weight=weight, bias=bias)
    if (x.dtype != weight.dtype or (bias is not None and bias.dtype != x.dtype)) and not torch.is_autocast_enabled(
        x.device.type
    ):
        _check.fail(name, "expected `x`, `weight` and `bias` of one dtype.", x=x, weight=weight, bias=bias,
                    hint="convert them, or call it under torch.autocast.")  # fmt: skip
    return _upsample_conv(x, weight, bias, scale, activation, backend=backend)
