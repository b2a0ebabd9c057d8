"""Plain torch, the oracle, and what runs where torch's own convolution is the quicker one."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F


def _pre_activation(x, weight, bias, scale):
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    return F.pixel_shuffle(F.conv2d(x, weight, bias, padding=padding), scale)


def _channels_last(t):
    """With the strides of that format also along axes of size one, which `contiguous` leaves as they are."""
    _, channels, height, width = t.shape
    if t.stride() == (height * width * channels, 1, width * channels, channels):
        return t
    return t.clone(memory_format=torch.channels_last)


def _empty(x, weight, scale):
    batch, _, height, width = x.shape
    return x.new_zeros(batch, height * scale, width * scale, weight.shape[0] // scale**2).permute(0, 3, 1, 2)


def upsample_conv(x, weight, bias, scale, activation):
    if x.numel() == 0:
        return _empty(x, weight, scale)
    z = _pre_activation(x, weight, bias, scale)
    out = {"gelu": F.gelu, "sine": torch.sin, "relu": F.relu, "none": lambda z: z}[activation](z)
    return _channels_last(out)


def slope(z, activation):
    """The derivative of the activation at z."""
    if activation == "sine":
        return z.cos()
    if activation == "relu":
        return (z > 0).to(z.dtype)
    return 0.5 * torch.special.erfc(z * -math.sqrt(0.5)) + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def upsample_conv_backward(grad_out, x, weight, bias, derivative, scale, activation, with_x):
    if x.numel() == 0:
        grad_x = x.new_zeros(x.shape[0] if with_x else 0, *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
        return grad_x, torch.zeros_like(weight, memory_format=torch.contiguous_format), weight.new_zeros(len(weight))
    if activation != "none":
        if derivative is None:
            z = _pre_activation(x, weight, bias, scale)
            wide = z.dtype if z.dtype is torch.float64 else torch.float32
            derivative = slope(z.to(wide), activation)
        grad_out = (grad_out * derivative).to(grad_out.dtype)
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        F.pixel_unshuffle(grad_out, scale), x, weight.to(x.dtype), [weight.shape[0]], [1, 1],
        [weight.shape[2] // 2, weight.shape[3] // 2], [1, 1], False, [0, 0], 1, [with_x, True, True],
    )  # fmt: skip
    if grad_x is None:
        grad_x = x.new_empty(0, *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
    return _channels_last(grad_x), grad_weight.to(weight.dtype).contiguous(), grad_bias.to(weight.dtype)


def upsample_conv_loss(x, weight, bias, target, share, scale, squash, l1, l2):
    """The loss, and its derivative by the convolution's result, shuffled."""
    if x.numel() == 0:
        return x.new_zeros((), dtype=_wide(x)), _empty(x, weight, scale)
    z = _pre_activation(x, weight, bias, scale)
    picture = z.to(_wide(x))
    if squash:
        picture = 0.5 * torch.tanh(picture) + 0.5
    rows, columns = target.shape[1:3]
    seen = picture[:, :, :rows, :columns]
    difference = seen - target.permute(0, 3, 1, 2).to(seen.dtype) / 255
    shares = share[:, None].to(seen.dtype) if share is not None else 1 / max(1, target.numel())
    loss = (shares * (l1 * difference.abs() + l2 * difference.square())).sum()
    slope = shares * (l1 * difference.sign() + 2 * l2 * difference)
    if squash:
        slope = slope * (2 * seen * (1 - seen))
    grad = torch.zeros_like(z)
    grad[:, :, :rows, :columns] = slope.to(z.dtype)
    return loss, _channels_last(grad)


def _wide(x):
    return torch.float64 if x.dtype is torch.float64 else torch.float32
