"""Photometric loss against uint8 frames."""

from __future__ import annotations

import torch

from vidkernels import _check
from vidkernels.ops.frame_loss.op import frame_loss as _frame_loss

__all__ = ["frame_loss"]

_WINDOW = 11


def frame_loss(
    image: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    l1: float = 0.8,
    l2: float = 0.0,
    ssim: float = 0.2,
    backend: str | None = None,
) -> torch.Tensor:
    """How pictures differ from uint8 frames: absolute, squared and structural difference in one pass.

    y = target / 255;  loss = l1 * mean|image - y| + l2 * mean (image - y)^2 + ssim * (1 - mean SSIM(image, y))
    Convention: SSIM per channel, data range 1, Gaussian window of 11 pixels and deviation 1.5, population variances,
        K1 = 0.01, K2 = 0.03, over the windows that lie inside the frame. (`photometric_loss` takes half of 1 - SSIM,
        and windows that hang over the border as well.)
    Args:
        image: [B, H, W, C] or [H, W, C], float16/bfloat16/float32/float64, 0..1 and what a fit makes of it.
        target: the shape of `image`, uint8.
        weight: [B, H, W] or [H, W], floating point, not negative, or None: every mean becomes sum(w v) / sum(w), a
            window counting with the weight of its centre; 0 where no weight is left. A constant: it gets no gradient.
        l1: weight of the absolute difference.
        l2: weight of the squared difference.
        ssim: weight of the structural difference; 0 for frames below 11 x 11 pixels.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        loss: scalar, float32 (float64 for float64 images), 0 for an empty batch. Differentiable in `image`, once. A NaN
            pixel makes the loss NaN, and the gradient at most 10 pixels around.
    Raises:
        ValueError: shapes or dtypes that do not fit, or SSIM of frames below 11 x 11 pixels.
    Backends: reference, cpu, cuda (sm80+). float64 runs on the reference. Deterministic: forward yes, backward yes.
    Source: Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment: from error visibility to structural
        similarity"; used with an absolute difference by Kerbl et al. 2023, arXiv 2308.04079, equation 7.
    Example:
        >>> frame = torch.full((16, 16, 3), 51, dtype=torch.uint8)
        >>> image = torch.full((16, 16, 3), 0.3, requires_grad=True)
        >>> frame_loss(image, frame, l1=1.0, ssim=0.0)
        tensor(0.1000, grad_fn=...)
        >>> frame_loss(frame / 255, frame)
        tensor(0.)
    """
    name = "frame_loss"
    if not (isinstance(image, torch.Tensor) and isinstance(target, torch.Tensor)):
        _check.fail(name, "expected `image` and `target` to be tensors.", error=TypeError, image=image, target=target)
    if image.dim() not in (3, 4) or image.shape != target.shape or not image.is_floating_point():
        _check.fail(
            name, "expected a floating `image` and a `target` of one shape, [B, H, W, C] or [H, W, C].",
            image=image, target=target,
        )  # fmt: skip
    if target.dtype is not torch.uint8:
        _check.fail(name, "expected `target` of dtype uint8.", "the frames as they were decoded, 0..255", target=target)
    if weight is not None and (weight.shape != image.shape[:-1] or not weight.is_floating_point()):
        _check.fail(
            name, f"expected a floating `weight` of shape {list(image.shape[:-1])}.", image=image, weight=weight
        )
    if ssim and image.numel() and min(image.shape[-3:-1]) < _WINDOW:
        _check.fail(
            name, f"SSIM needs frames of at least {_WINDOW} x {_WINDOW} pixels.", "ssim=0 for smaller ones",
            image=image, ssim=ssim,
        )  # fmt: skip
    wide = image.double() if image.dtype is torch.float64 else image.float()
    if weight is not None:
        weight = weight.detach().to(wide.dtype)
    if image.dim() == 3:
        wide, target, weight = wide[None], target[None], None if weight is None else weight[None]
    return _frame_loss(wide, target, weight, float(l1), float(l2), float(ssim), backend=backend)
