"""The upsampling block of NeRV and its descendants."""

from __future__ import annotations

import torch
from torch import nn

from vidkernels import _check
from vidkernels.functional.nerv.upsample_conv import upsample_conv

__all__ = ["NeRVBlock"]


class NeRVBlock(nn.Module):
    """Convolution to scale^2 times the channels, pixel shuffle, activation, in one fused operation.

    The parameters live in `conv`, an nn.Conv2d with its usual initialisation, so those of a published block can be
    copied: `block.conv.load_state_dict(their_conv2d.state_dict())`.
    Args:
        in_channels, out_channels: before and after.
        scale: the factor by which height and width grow; 1 is a plain convolution with activation.
        kernel: odd size of the filters.
        activation: "gelu", "sine", "relu" or "none".
        bias: whether the convolution has one.
    Shape: x [B, in_channels, H, W] -> [B, out_channels, H * scale, W * scale], channels_last.
    Source: Chen et al. 2021, arXiv 2110.13903, section 3.2.
    Example:
        >>> NeRVBlock(4, 3, 2)(torch.randn(1, 4, 5, 6)).shape
        torch.Size([1, 3, 10, 12])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        scale: int,
        *,
        kernel: int = 3,
        activation: str = "gelu",
        bias: bool = True,
    ):
        super().__init__()
        if kernel % 2 == 0:
            _check.fail("NeRVBlock", "expected an odd `kernel`.", kernel=kernel)
        self.scale, self.activation = scale, activation
        self.conv = nn.Conv2d(in_channels, out_channels * scale**2, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return upsample_conv(x, self.conv.weight, self.conv.bias, self.scale, self.activation)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, activation={self.activation!r}"
