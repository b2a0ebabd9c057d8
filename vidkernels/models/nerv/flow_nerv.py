"""A video between key frames: a small decoder says how to warp the two nearest ones, and paints what they lack."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidkernels import _check
from vidkernels.functional.nerv.upsample_conv import upsample_conv

from .flow_tail import blended, key_cells
from .latent_nerv import LatentDecoder, latent_strides, latent_widths

__all__ = ["FlowDecoder", "FlowNeRV", "neighbours"]

_LITTLE = 0.05  # of the usual first weights: warping begins with no motion


def neighbours(times: Tensor, keys: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Numbers of the key frames before and after each time [B]; where there is one key frame, it is both."""
    at = torch.as_tensor(keys, dtype=times.dtype, device=times.device)
    after = torch.searchsorted(at, times.contiguous(), right=True).clamp(min(1, len(keys) - 1), len(keys) - 1)
    return (after - 1).clamp(min=0), after


class FlowDecoder(nn.Module):
    """Latents and the two neighbouring key frames to a picture.

    Blocks enlarge the latents as in LatentDecoder. Before the last stride a convolution reads two flows, which are
    enlarged bilinearly and warp the key frames; the head sees features and warped key frames, and gives a picture of
    its own and three weights.
    out = softmax(weights) over (own picture, warped key frame before, warped key frame after)
    Args:
        latent, channels, strides, generator: as of LatentDecoder; the last stride is the head's.
    Shape:
        latents [B, C, h, w], before and after [B, 3, H, W] (or B pictures) in 0..1 -> [B, 3, H, W], about 0..1, with
        H <= h * S.
    Source: flow-guided aggregation of neighbours: Lee et al. 2022, arXiv 2212.12294, section 3.3; differs: of two coded
        key frames instead of decoded neighbours.
    Example:
        >>> key = torch.rand(1, 3, 18, 20)
        >>> FlowDecoder(4, (8,), (5, 2))(torch.zeros(1, 4, 2, 2), key, key).shape
        torch.Size([1, 3, 18, 20])
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
        plain = LatentDecoder(latent, channels, strides, generator=generator)
        self.blocks, self.head_scale, self.scale = plain.blocks, plain.head_scale, plain.scale
        width, cells = tuple(channels)[-1], self.head_scale**2
        self.flow = nn.Conv2d(width, 4, 3, padding=1)
        self.head = nn.Conv2d(width + 6 * cells, 6 * cells, 3, padding=1)
        for conv, share in ((self.flow, _LITTLE), (self.head, 1.0)):
            reach = share / conv.weight[0].numel() ** 0.5
            with torch.no_grad():
                conv.weight.uniform_(-reach, reach, generator=generator)
                conv.bias.zero_()

    def forward(self, latents: Tensor, before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
        x = latents.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x)
        s, width = self.head_scale, x.shape[1]
        flow = upsample_conv(x, self.flow.weight, self.flow.bias, 1, "none")
        cells = key_cells(flow, before, after, s, x.dtype)
        # A sum of two convolutions: features and cells need not be copied behind each other.
        weight = self.head.weight
        out = upsample_conv(x, weight[:, :width], self.head.bias, 1, "none")
        out = out + upsample_conv(cells, weight[:, width:], None, 1, "none")
        return blended(out, cells, s, before[0].shape[-2:])


class FlowNeRV(nn.Module):
    """A clip between key frames that something else has coded: latents for each frame, one decoder for all.

    Args:
        frames: how many.
        keys: [K, 3, H, W] in 0..1, the decoded key frames.
        numbers: K frame numbers, rising: which frames they are.
        latent, channels, strides, generator: as of LatentNeRV.
    Shape:
        index [B], frame numbers (or times between them, with `decode`) -> [B, 3, H, W].
    Raises:
        ValueError: no key frame, or numbers that do not rise.
    Example:
        >>> keys = torch.rand(2, 3, 20, 30)
        >>> FlowNeRV(9, keys, (0, 8), latent=4, channels=(8,), strides=(5, 2))(torch.tensor([3])).shape
        torch.Size([1, 3, 20, 30])
    """

    def __init__(
        self,
        frames: int,
        keys: Tensor,
        numbers: Sequence[int],
        *,
        latent: int = 16,
        channels: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        numbers = tuple(numbers)
        if len(numbers) != len(keys) or not numbers or any(b <= a for a, b in itertools.pairwise(numbers)):
            _check.fail("FlowNeRV", "expected a rising number for each key frame.", keys=keys, numbers=numbers)
        size = tuple(keys.shape[-2:])
        strides = latent_strides(size) if strides is None else tuple(strides)
        channels = latent_widths(latent, len(strides) - 1) if channels is None else tuple(channels)
        self.decoder = FlowDecoder(latent, channels, strides, generator=generator)
        self.register_buffer("keys", keys)
        self.numbers = numbers
        grid = (-(-side // self.decoder.scale) for side in size)
        self.latents = nn.Parameter(0.1 * torch.randn(frames, latent, *grid, generator=generator))

    def decode(self, latents: Tensor, times: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] at times [B], counted in frames."""
        before, after = neighbours(times, self.numbers)
        return self.decoder(latents, self.keys[before], self.keys[after])

    def forward(self, index: Tensor) -> Tensor:
        return self.decode(self.latents[index], index.float())
