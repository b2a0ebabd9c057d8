"""The building block of convolutional video representations: convolve, shuffle up, activate; and the last one, which is
compared with frames."""

from __future__ import annotations

import torch

from vidkernels import _check
from vidkernels.ops.upsample_conv.op import ACTIVATIONS
from vidkernels.ops.upsample_conv.op import upsample_conv as _upsample_conv
from vidkernels.ops.upsample_conv.op import upsample_conv_loss as _upsample_conv_loss

__all__ = ["upsample_conv", "upsample_conv_loss"]


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
        weight: [C * scale^2, I, kh, kw], odd kernel sizes, the dtype of `x` or float32 (then it is rounded as autocast
            would, and gets a float32 gradient).
        bias: [C * scale^2], the dtype of `weight`, or None.
        scale: the factor by which height and width grow; 1 is a plain convolution.
        activation: "gelu" (exact, by the error function), "sine" (sin(z)), "relu" or "none".
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        out: [B, C, H * scale, W * scale], channels_last, the dtype of `x` (of autocast, under it).
            Differentiable in `x`, `weight`, `bias`.
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
    x = _checked(name, x, weight, bias, scale)
    if activation not in ACTIVATIONS:
        _check.fail(name, f"expected `activation` to be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    return _upsample_conv(x, weight, bias, scale, activation, backend=backend)


def upsample_conv_loss(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    target: torch.Tensor,
    scale: int = 1,
    *,
    pixel_weight: torch.Tensor | None = None,
    squash: bool = False,
    l1: float = 0.0,
    l2: float = 1.0,
    backend: str | None = None,
) -> torch.Tensor:
    """The last layer of a decoder and the loss of its pictures against uint8 frames, without writing the pictures.

    z = pixel_shuffle(conv2d(x, weight, bias, padding=k // 2), scale);  picture = z, or (tanh(z) + 1) / 2 (`squash`)
    d = picture - target / 255;  loss = l1 * mean|d| + l2 * mean d^2
    Convention: as `upsample_conv`, and `frame_loss` for the means; what hangs over the target's right and lower edge
        does not count.
    Args:
        x: [B, I, H, W], float16/bfloat16/float32/float64, best in memory_format=torch.channels_last.
        weight: [C * scale^2, I, kh, kw], odd kernel sizes, the dtype of `x` or float32.
        bias: [C * scale^2], the dtype of `weight`, or None.
        target: [B, h, w, C] uint8, h <= H * scale, w <= W * scale.
        scale: the factor by which height and width grow.
        pixel_weight: [B, h, w], floating point, not negative, or None: every mean becomes sum(w v) / sum(w); 0 where no
            weight is left. A constant: it gets no gradient.
        squash: pictures are (tanh(z) + 1) / 2.
        l1: weight of the absolute difference.
        l2: weight of the squared difference.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        loss: scalar, float32 (float64 for float64 numbers), 0 for an empty batch. Differentiable in `x`, `weight`,
            `bias`, once. float16 numbers are computed in float32.
    Raises:
        ValueError: sizes or dtypes that do not fit, an even kernel.
    Backends: reference, cpu (up to 64 input channels), cuda (sm80+). Deterministic: forward yes, backward yes.
    Source: own; see `upsample_conv` and `frame_loss`.
    Example:
        >>> frame = torch.full((1, 4, 6, 3), 51, dtype=torch.uint8)
        >>> x, weight = torch.ones(1, 2, 2, 3), torch.zeros(12, 2, 3, 3)
        >>> upsample_conv_loss(x, weight, torch.full((12,), 0.3), frame, 2, l1=1.0, l2=0.0)
        tensor(0.1000)
    """
    name = "upsample_conv_loss"
    x = _checked(name, x, weight, bias, scale)
    if x.dtype is torch.float16:
        x, weight, bias = x.float(), weight.float(), None if bias is None else bias.float()
    rows, columns, channels = x.shape[2] * scale, x.shape[3] * scale, weight.shape[0] // scale**2
    if not isinstance(target, torch.Tensor) or target.dtype is not torch.uint8:
        _check.fail(name, "expected `target` of dtype uint8.", "the frames as they were decoded, 0..255", target=target)
    fits = target.dim() == 4 and target.shape[0] == x.shape[0] and target.shape[3] == channels
    if not fits or target.shape[1] > rows or target.shape[2] > columns:
        _check.fail(
            name, f"expected `target` [{x.shape[0]}, h, w, {channels}], h <= {rows}, w <= {columns}.", target=target
        )
    share = None
    if pixel_weight is not None:
        if pixel_weight.shape != target.shape[:3] or not pixel_weight.is_floating_point():
            shape = list(target.shape[:3])
            _check.fail(name, f"expected a floating `pixel_weight` of shape {shape}.", pixel_weight=pixel_weight)
        share = pixel_weight.detach().to(torch.float64 if x.dtype is torch.float64 else torch.float32)
        total = channels * share.sum()
        share = share / total.where(total > 0, 1)
    return _upsample_conv_loss(
        x, weight, bias, target, share, scale, bool(squash), float(l1), float(l2), backend=backend
    )[0]


def _checked(name: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, scale: int) -> torch.Tensor:
    """`x` as autocast wants it."""
    if not isinstance(x, torch.Tensor) or x.dim() != 4:
        _check.is_tensor(name, "x", x, "[B, I, H, W]")
    if not isinstance(weight, torch.Tensor) or weight.dim() != 4:
        _check.is_tensor(name, "weight", weight, "[O, I, kh, kw]")
    filters, channels, kh, kw = weight.shape
    if channels != x.shape[1]:
        _check.fail(name, "expected `weight` to have the channels of `x`.", x=x, weight=weight)
    if kh % 2 == 0 or kw % 2 == 0:
        _check.fail(name, "expected odd kernel sizes.", weight=weight)
    if scale < 1 or filters % (scale * scale):
        _check.fail(name, "expected `weight` to have C * scale^2 filters, scale >= 1.", weight=weight, scale=scale)
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != filters):
        _check.fail(name, "expected `bias` to have one number per filter.", weight=weight, bias=bias)
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype is not torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
    if weight.dtype not in (x.dtype, torch.float32) or (bias is not None and bias.dtype != weight.dtype):
        _check.fail(name, "expected `weight` and `bias` of one dtype, that of `x` or float32.",
                    x=x, weight=weight, bias=bias)  # fmt: skip
    return x
