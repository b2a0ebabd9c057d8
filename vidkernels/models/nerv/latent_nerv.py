"""A video as a small convolutional decoder and a grid of latent numbers for each frame."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidkernels import _check
from vidkernels.functional.nerv.upsample_conv import upsample_conv
from vidkernels.nn.nerv.block import NeRVBlock

__all__ = ["LatentDecoder", "LatentNeRV", "latent_strides", "latent_widths"]

_SHARES = (1.0, 0.75, 0.5)  # of the first block's channels in the later ones, the last one repeated


def latent_strides(size: tuple[int, int]) -> tuple[int, ...]:
    """How a decoder grows from its latents to a picture: 80 times, or 16 or 4 for pictures too small for that."""
    side = min(size)
    return (5, 4, 2, 2) if side >= 80 else (4, 2, 2) if side >= 16 else (2, 2)


def latent_widths(first: int, blocks: int) -> tuple[int, ...]:
    """Channels after each block, multiples of 8: as wide as the published decoders at the start, half of it later."""
    shares = _SHARES[:blocks] + _SHARES[-1:] * (blocks - len(_SHARES))
    return tuple(max(8, 8 * round(first * share / 8)) for share in shares)


class LatentDecoder(nn.Module):
    """Latents [B, C, h, w] to pictures [B, 3, h * S, w * S]: blocks of convolution, pixel shuffle and GELU, then an RGB
    head that does the last enlargement itself.

    Args:
        latent: channels C of the latents.
        channels: channels after each block.
        strides: enlargement of each block, then of the head; S is their product.
        generator: of the first weights.
    Shape:
        [B, C, h, w] -> [B, 3, h * S, w * S], about 0..1, not clamped.
    Raises:
        ValueError: as many strides as blocks, or a number below 1.
    Example:
        >>> LatentDecoder(8, (16, 8), (5, 2, 2))(torch.zeros(2, 8, 2, 3)).shape
        torch.Size([2, 3, 40, 60])
    """

    def __init__(
        self,
        latent: int,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if len(strides) != len(channels) + 1 or min([latent, *channels, *strides]) < 1:
            _check.fail(
                "LatentDecoder", "expected a stride for each block and one for the head, all numbers at least 1.",
                latent=latent, channels=channels, strides=strides,
            )  # fmt: skip
        widths = [latent, *channels]
        self.blocks = nn.ModuleList(
            NeRVBlock(a, b, s) for (a, b), s in zip(itertools.pairwise(widths), strides[:-1], strict=True)
        )
        self.head = nn.Conv2d(widths[-1], 3 * strides[-1] ** 2, 3, padding=1)
        self.head_scale = strides[-1]
        self.scale = math.prod(strides)
        for conv in (*(block.conv for block in self.blocks), self.head):
            reach = 1 / math.sqrt(conv.weight[0].numel())
            with torch.no_grad():
                conv.weight.uniform_(-reach, reach, generator=generator)
                conv.bias.uniform_(-reach, reach, generator=generator)

    def forward(self, latents: Tensor) -> Tensor:
        x = latents.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x)
        return upsample_conv(x, self.head.weight, self.head.bias, self.head_scale, "none") + 0.5


class LatentNeRV(nn.Module):
    """A clip: one decoder for all frames, and latents of their own for each.

    frame t = decoder(latents[t]), its top left H x W pixels
    Convention: the latents' grid covers the picture; what hangs over its right and lower edge is cut off.
    Args:
        frames: how many.
        size: (H, W) of a picture.
        latent: channels of the latents; 32 to 48 for clips of a few seconds.
        channels: channels after each block; None: `latent_widths(latent, ...)`.
        strides: enlargement of each block and of the head; None: `latent_strides(size)`.
        generator: of the first weights and latents.
    Shape:
        index [B] int64 -> [B, 3, H, W], about 0..1, not clamped.
    Raises:
        ValueError: no frame, an empty picture, or channels and strides that do not fit.
    Example:
        >>> model = LatentNeRV(10, (45, 80), latent=8, channels=(16, 8), strides=(5, 2, 2))
        >>> model(torch.tensor([0, 7])).shape
        torch.Size([2, 3, 45, 80])
    """

    def __init__(
        self,
        frames: int,
        size: tuple[int, int],
        *,
        latent: int = 32,
        channels: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if frames < 1 or min(size) < 1:
            _check.fail("LatentNeRV", "expected at least one frame with pixels.", frames=frames, size=size)
        strides = latent_strides(size) if strides is None else tuple(strides)
        channels = latent_widths(latent, len(strides) - 1) if channels is None else tuple(channels)
        self.decoder = LatentDecoder(latent, channels, strides, generator=generator)
        self.size = tuple(size)
        grid = (-(-size[0] // self.decoder.scale), -(-size[1] // self.decoder.scale))
        self.latents = nn.Parameter(0.1 * torch.randn(frames, latent, *grid, generator=generator))

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] of latents [B, C, h, w]; those between two frames' show what lies between them."""
        return self.decoder(latents)[:, :, : self.size[0], : self.size[1]]

    def forward(self, index: Tensor) -> Tensor:
        return self.decode(self.latents[index])
