"""What people run instead of frame_loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def _window(dtype: torch.dtype) -> torch.Tensor:
    at = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(at**2) / (2 * 1.5**2))
    return (window / window.sum()).to(dtype)


def _similarity(mx, my, xx, yy, xy):
    sxx, syy, sxy = xx - mx * mx, yy - my * my, xy - mx * my
    top = (2 * mx * my + 0.01**2) * (2 * sxy + 0.03**2)
    return top / ((mx * mx + my * my + 0.01**2) * (sxx + syy + 0.03**2))


def _mean(values, weight):
    return values.mean() if weight is None else (values * weight).sum() / (weight.sum() * values.shape[1])


def _total(x, y, weight, l1, l2, ssim, blur):
    if weight is not None:
        weight = weight[:, None]
        loss = l1 * _mean((x - y).abs(), weight) + l2 * _mean((x - y).square(), weight)
    else:
        loss = l1 * F.l1_loss(x, y) + l2 * F.mse_loss(x, y)
    if ssim:
        maps = _similarity(*blur(x, y))
        loss = loss + ssim * (1 - _mean(maps, None if weight is None else weight[:, :, 5:-5, 5:-5]))
    return loss


def usual(image, target, weight, l1, l2, ssim):
    """SSIM as most training code has it: five depthwise convolutions of 11 x 11."""
    channels = image.shape[3]
    row = _window(image.dtype)
    window = torch.outer(row, row).expand(channels, 1, 11, 11).contiguous()

    def blur(x, y):
        return [F.conv2d(m, window, groups=channels) for m in (x, y, x * x, y * y, x * y)]

    def run():
        x, y = image.permute(0, 3, 1, 2), target.permute(0, 3, 1, 2).to(image.dtype) / 255
        return _total(x, y, weight, l1, l2, ssim, blur)

    return run


def careful(image, target, weight, l1, l2, ssim):
    """The same with one separable convolution of all maps, planes contiguous."""
    channels = image.shape[3]
    taps = _window(image.dtype).expand(5 * channels, 1, 1, 11).contiguous()
    down = taps.transpose(2, 3).contiguous()

    def blur(x, y):
        maps = torch.cat([x, y, x * x, y * y, x * y], 1)
        return F.conv2d(F.conv2d(maps, taps, groups=5 * channels), down, groups=5 * channels).chunk(5, 1)

    def run():
        x = image.permute(0, 3, 1, 2).contiguous()
        y = target.permute(0, 3, 1, 2).to(image.dtype, memory_format=torch.contiguous_format) / 255
        return _total(x, y, weight, l1, l2, ssim, blur)

    return run


def moved(image, target, weight, *rest):
    """One pass: image and frame are read, the gradient is written."""
    numbers = image.numel()
    return numbers * 5 + (0 if weight is None else weight.numel() * 4), numbers * 4 + 4


PEERS = {"frame_loss": {"usual": usual, "careful": careful}}
BYTES = {"frame_loss": moved}
FLOPS = {"frame_loss": lambda image, *rest: image.numel() * (7 * 2 * 22 if rest[4] else 6.0)}
