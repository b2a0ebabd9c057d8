"""Small convolutional networks over single frames: down to a grid of features, and back up to pixels."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Residual(nn.Module):
    """x + conv(silu(conv(silu(x)))), the normalised channels first."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class FrameEncoder(nn.Module):
    """Frames to a grid of features, each step down halving height and width.

    Args:     outputs: channels of a feature. width: channels inside, a multiple of 4. downs: steps down.
              blocks: residual blocks at the bottom.
    Shape:    [N, 3, H, W] in 0..1 -> [N, outputs, H / 2^downs, W / 2^downs].
    Source:   the encoder of VQ-VAE, van den Oord et al. 2017, arXiv 1711.00937, section 4.1; differs: GroupNorm, SiLU.
    Example:
        >>> FrameEncoder(8, width=16)(torch.zeros(2, 3, 16, 24)).shape
        torch.Size([2, 8, 4, 6])
    """

    def __init__(self, outputs: int, *, width: int = 64, downs: int = 2, blocks: int = 2):
        super().__init__()
        channels = [3, *([width] * downs)]
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(channels))
        self.blocks = nn.Sequential(*(_Residual(width) for _ in range(blocks)))
        self.last = nn.Conv2d(width, outputs, 1)

    def forward(self, frames: Tensor) -> Tensor:
        x = 2 * frames - 1
        for down in self.downs:
            x = F.silu(down(x))
        return self.last(self.blocks(x))


class FrameDecoder(nn.Module):
    """A grid of features to frames: FrameEncoder backwards.

    Args:     inputs: channels of a feature. width, downs, blocks: as of the encoder.
    Shape:    [N, inputs, h, w] -> [N, 3, h * 2^downs, w * 2^downs], about 0..1.
    Source:   as FrameEncoder.
    Example:
        >>> FrameDecoder(8, width=16)(torch.zeros(2, 8, 4, 6)).shape
        torch.Size([2, 3, 16, 24])
    """

    def __init__(self, inputs: int, *, width: int = 64, downs: int = 2, blocks: int = 2):
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Residual(width) for _ in range(blocks)))
        channels = [*([width] * downs), 3]
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(channels))

    def forward(self, grid: Tensor) -> Tensor:
        x = self.blocks(self.first(grid))
        for up in self.ups:
            x = up(F.silu(x))
        return x + 0.5


def as_frames(clip: Tensor) -> Tensor:
    """Clips [B, T, H, W, 3] uint8 as frames [B * T, 3, H, W] in 0..1.

    Raises:   ValueError: another shape or dtype.
    """
    if clip.dim() != 5 or clip.shape[4] != 3 or clip.dtype is not torch.uint8:
        raise ValueError(
            f"as_frames: expected `clip` [B, T, H, W, 3] of uint8, got {list(clip.shape)} "
            f"{str(clip.dtype).removeprefix('torch.')}.\nHINT: add a batch axis with clip.unsqueeze(0)."
        )
    return clip.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
