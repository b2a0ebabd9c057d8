"""HNeRV whose decoder knows the time of the frame it decodes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidkernels import _check
from vidkernels.nn.nerv.block import NeRVBlock

from .frame_model import TimeEncoding, initialise
from .hnerv import HNeRV, hnerv_widths

__all__ = ["BoostedNeRV"]

_FIRST_BLOCKS = 2  # stages with one block; later ones have two


class _TimeAffine(nn.Module):
    """x * (1 + gain(t)) + offset(t), channel by channel."""

    def __init__(self, moment: int, width: int):
        super().__init__()
        self.gain, self.offset = (
            nn.Sequential(nn.Linear(moment, moment), nn.ReLU(), nn.Linear(moment, width)) for _ in range(2)
        )

    def forward(self, x: Tensor, moment: Tensor) -> Tensor:
        return x * (1 + self.gain(moment)[..., None, None]) + self.offset(moment)[..., None, None]


class _Conditioned(nn.Module):
    """A block, then x + conv(affine(gelu(conv(affine(x))))), both affine maps given by time."""

    def __init__(self, block: NeRVBlock, width: int, moment: int):
        super().__init__()
        self.block = block
        self.before, self.after = _TimeAffine(moment, width), _TimeAffine(moment, width)
        self.first, self.second = NeRVBlock(width, width, 1), NeRVBlock(width, width, 1, activation="none")

    def forward(self, x: Tensor, moment: Tensor) -> Tensor:
        x = self.block(x)
        return x + self.second(self.after(self.first(self.before(x, moment)), moment))


class BoostedNeRV(HNeRV):
    """HNeRV with sine activations, kernels of at most 3, and after each block a residual one that time modulates.

    Its embeddings are pairs: what the encoder makes of a frame, and the frame's time.
    Args:
        frames: how many.
        size: (H, W) of a picture.
        width: channels before the first block; `from_size` finds the widest that fits.
        strides: of encoder and decoder; None: by size.
        embedding: channels of an embedding.
        encoder_width: channels of the encoder.
        reduction: channels of a block over those of the next.
        lowest: channels of a block, at least.
        moment: width of the code of a time.
        levels: of the time encoding.
        generator: of the first weights.
    Shape:
        frames [B, 3, H, W] in 0..1 or [B, H, W, 3] uint8, t [B] frame numbers or times -> [B, 3, H, W].
    Raises:
        ValueError: no frame, an empty picture, a stride below 1; frames of another size.
    Source: Zhang et al. 2024, arXiv 2402.18152 (HNeRV-Boost); blocks of its published script; differs: `from_size`
        counts every parameter; the loss has no term in the frequency domain.
    Example:
        >>> model = BoostedNeRV(8, (45, 70), width=10, encoder_width=8, embedding=4)
        >>> content, t = model.encode(torch.rand(2, 3, 45, 70), torch.tensor([0, 1]))
        >>> model.interpolate((content, t), torch.tensor([0.5])).shape
        torch.Size([1, 3, 45, 70])
    """

    def __init__(
        self,
        frames: int,
        size: tuple[int, int],
        *,
        width: int = 60,
        strides: Sequence[int] | None = None,
        embedding: int = 16,
        encoder_width: int = 64,
        reduction: float = 1.2,
        lowest: int = 12,
        moment: int = 32,
        levels: int = 80,
        generator: torch.Generator | None = None,
    ):
        super().__init__(
            frames, size, width=width, strides=strides, embedding=embedding, encoder_width=encoder_width,
            kernels=(1, 3), reduction=reduction, lowest=lowest, generator=generator,
        )  # fmt: skip
        self.encoding = TimeEncoding(levels=levels)
        self.rise, self.fall = nn.Linear(self.encoding.width, 2 * moment), nn.Linear(2 * moment, moment)
        self.stem = _Conditioned(NeRVBlock(embedding, width, 1, kernel=1, activation="sine"), width, moment)
        counts = [1 if i < _FIRST_BLOCKS else 2 for i in range(len(self.strides))]
        widths = hnerv_widths(width, len(self.strides), reduction, lowest)
        blocks = []
        for i, (stride, (a, b)) in enumerate(zip(self.strides, itertools.pairwise(widths), strict=True)):
            sizes = [(a, stride), *[(b, 1)] * (counts[i] - 1)]
            blocks += [NeRVBlock(c, b, s, kernel=min(1 + 2 * i, 3), activation="sine") for c, s in sizes]
        self.blocks = nn.ModuleList(_Conditioned(b, b.conv.out_channels // b.scale**2, moment) for b in blocks)
        self.head = nn.Conv2d(widths[-1], 3, 3, padding=1)
        for part in (self.rise, self.fall, self.stem, self.blocks, self.head):
            initialise(part, generator)

    @classmethod
    def from_size(cls, parameters: int, height: int, width: int, frames: int, **options) -> BoostedNeRV:
        """The widest network of which decoder, time branch and embeddings hold at most so many parameters.

        Args:
            parameters, height, width, frames, options: as of FrameModel.
        Raises:
            ValueError: the narrowest network is already larger.
        """
        return cls._widest(parameters, height, width, frames, **options)

    def inputs(self, video: Tensor, numbers: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Frames, what the mask covers black, and their numbers."""
        return (*super().inputs(video, numbers, mask), numbers)

    def encode(self, frames: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings [B, embedding, h, w] of frames, and their times [B]."""
        if len(frames) != len(t):
            _check.fail("BoostedNeRV", "expected a time for each frame.", frames=frames, t=t)
        return super().encode(frames), self.times(t)

    def features(self, embedding: tuple[Tensor, Tensor]) -> Tensor:
        content, t = embedding
        moment = torch.sin(self.fall(torch.sin(self.rise(self.encoding(t)))))
        x = content.contiguous(memory_format=torch.channels_last)
        for block in (self.stem, *self.blocks):
            x = block(x, moment)
        return x
