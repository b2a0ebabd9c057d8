"""Plain torch, the oracle."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_TAPS, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def frame_loss(
    image: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, l1: float, l2: float, ssim: float
) -> torch.Tensor:
    frame = target.to(image.dtype) / 255
    difference = image - frame
    loss = image.new_zeros(())
    if l1:
        loss = loss + l1 * _mean(difference.abs(), weight)
    if l2:
        loss = loss + l2 * _mean(difference.square(), weight)
    if ssim and image.numel():
        _large_enough(image)
        n1, n2, d1, d2 = _factors(_planes(image), _planes(frame))[:4]
        loss = loss + ssim * _mean(1 - _frames(n1 * n2 / (d1 * d2), image.shape), _centres(weight))
    return loss


def frame_loss_backward(
    grad_loss: torch.Tensor,
    image: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    l1: float,
    l2: float,
    ssim: float,
) -> torch.Tensor:
    frame = target.to(image.dtype) / 255
    difference = image - frame
    grad = torch.zeros_like(image, memory_format=torch.contiguous_format)
    if l1:
        grad = grad + l1 * difference.sign() * _shares(image, weight)
    if l2:
        grad = grad + 2 * l2 * difference * _shares(image, weight)
    if ssim and image.numel():
        _large_enough(image)
        x, y = _planes(image), _planes(frame)
        n1, n2, d1, d2, mx, my = _factors(x, y)
        s = n1 * n2 / (d1 * d2)
        # S depends on x through three blurred maps: x, x^2 and x y.
        by_mean = (2 * my * n2 - 2 * my * n1) / (d1 * d2) - s * (2 * mx / d1 - 2 * mx / d2)
        by_square = -s / d2
        by_product = 2 * n1 / (d1 * d2)
        shares = _planes(_shares(_frames(s, image.shape), _centres(weight)))
        back = [_blur(m * shares, transposed=True) for m in (by_mean, by_square, by_product)]
        grad = grad - ssim * _frames(back[0] + 2 * x * back[1] + y * back[2], image.shape)
    return grad * grad_loss.to(image.dtype)


def _planes(frames: torch.Tensor) -> torch.Tensor:
    """[B, H, W, C] as [B * C, 1, H, W]."""
    return frames.permute(0, 3, 1, 2).reshape(-1, 1, *frames.shape[1:3])


def _frames(planes: torch.Tensor, like: torch.Size) -> torch.Tensor:
    return planes.reshape(like[0], like[3], *planes.shape[2:]).permute(0, 2, 3, 1)


def _factors(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Numerators and denominators of luminance and of contrast and structure, and the two means."""
    mx, my = _blur(x), _blur(y)
    sxx, syy, sxy = _blur(x * x) - mx * mx, _blur(y * y) - my * my, _blur(x * y) - mx * my
    return 2 * mx * my + _C1, 2 * sxy + _C2, mx * mx + my * my + _C1, sxx + syy + _C2, mx, my


def _blur(planes: torch.Tensor, transposed: bool = False) -> torch.Tensor:
    at = torch.arange(_TAPS, dtype=torch.float64, device=planes.device) - _TAPS // 2
    window = torch.exp(-(at**2) / (2 * _SIGMA**2))
    window = window / window.sum()
    kernel = torch.outer(window, window).to(planes)[None, None]
    return F.conv_transpose2d(planes, kernel) if transposed else F.conv2d(planes, kernel)


def _centres(weight: torch.Tensor | None) -> torch.Tensor | None:
    margin = _TAPS // 2
    return None if weight is None else weight[:, margin:-margin, margin:-margin]


def _shares(values: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """What every element of [B, H, W, C] counts in the mean."""
    if weight is None:
        return torch.full_like(values, 1 / max(1, values.numel()))
    total = weight.to(values.dtype).sum() * values.shape[3]
    share = torch.where(total > 0, weight.to(values.dtype) / total, 0)
    return share[..., None].expand_as(values)


def _mean(values: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    return (values * _shares(values, weight)).sum()


def _large_enough(image: torch.Tensor) -> None:
    if min(image.shape[1:3]) < _TAPS:
        raise ValueError(
            f"frame_loss: SSIM needs frames of at least {_TAPS} x {_TAPS} pixels, got {list(image.shape)}."
        )
