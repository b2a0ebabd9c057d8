"""A video as tiny embeddings of what its frames show, and a decoder whose parameters are spread evenly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels import _check
from vidkernels.nn.nerv.block import NeRVBlock

from .frame_model import FrameModel, default_strides, initialise

__all__ = ["ConvNeXtEncoder", "HNeRV", "hnerv_kernels", "hnerv_width", "hnerv_widths"]


def hnerv_kernels(stages: int, kernels: tuple[int, int]) -> tuple[int, ...]:
    """Kernel sizes that grow by two from stage to stage, from the first of `kernels` up to the second."""
    first, most = kernels
    return tuple(min(first + 2 * i, most) for i in range(stages))


def hnerv_widths(width: int, stages: int, reduction: float, lowest: int) -> tuple[int, ...]:
    """Channels before the first stage and after each one."""
    widths = [width]
    for _ in range(stages):
        widths.append(max(round(widths[-1] / reduction), lowest))
    return tuple(widths)


def hnerv_width(
    parameters: float,
    embeddings: int,
    embedding: int,
    strides: Sequence[int],
    *,
    kernels: tuple[int, int] = (1, 5),
    reduction: float = 1.2,
) -> int:
    """Channels before the first stage for a total size, by the published rule.

    The budget less the embeddings is taken as a * width^2 + b * width: stage i has, biases and rounding aside,
    width^2 / reduction^(2i+1) * stride^2 * kernel^2 weights, and b = 9 * embedding stands for the first convolution.
    (It is 1 x 1 and has a ninth of that; the rule is kept as it is, so that sizes are those of the publication.)
    Args:
        parameters: of decoder and embeddings together.
        embeddings: numbers in all embeddings.
        embedding: channels of one.
        strides, kernels, reduction: of the decoder.
    """
    sizes = hnerv_kernels(len(strides), kernels)
    a = sum((s * k) ** 2 / reduction ** (2 * i + 1) for i, (s, k) in enumerate(zip(strides, sizes)))
    b, budget = 9 * embedding, parameters - embeddings
    return int((math.sqrt(b * b + 4 * a * max(budget, 0)) - b) / (2 * a))


class _ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of [B, C, H, W]."""

    def __init__(self, width: int):
        super().__init__(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _ConvNeXt(nn.Module):
    """x + scale * (wide depthwise convolution, norm, perceptron over channels)."""

    def __init__(self, width: int):
        super().__init__()
        self.spread = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.rise, self.fall = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gain = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.spread(x).permute(0, 2, 3, 1))
        return x + (self.gain * self.fall(F.gelu(self.rise(y)))).permute(0, 3, 1, 2)


class ConvNeXtEncoder(nn.Module):
    """Frames to embeddings: at each stage a strided convolution and one ConvNeXt block.

    Args:
        strides: shrinkage of each stage.
        width: channels of all stages but the last.
        embedding: channels of the last one.
        generator: of the first weights.
    Shape:
        [B, 3, H, W] in 0..1 -> [B, embedding, H / S, W / S], S the product of the strides, which divides H and W.
    Source: Liu et al. 2022, arXiv 2201.03545, as used by Chen et al. 2023, arXiv 2304.02633, section 3.1.
    Example:
        >>> ConvNeXtEncoder((4, 2), width=8, embedding=5)(torch.rand(2, 3, 16, 24)).shape
        torch.Size([2, 5, 2, 3])
    """

    def __init__(
        self,
        strides: Sequence[int],
        *,
        width: int = 64,
        embedding: int = 16,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        widths = [3, *([width] * (len(strides) - 1)), embedding]
        stages = []
        for i, ((a, b), s) in enumerate(zip(itertools.pairwise(widths), strides, strict=True)):
            shrink = nn.Conv2d(a, b, s, stride=s)
            stages += [shrink, _ChannelNorm(b)] if i == 0 else [_ChannelNorm(a), shrink]
            stages.append(_ConvNeXt(b))
        self.stages = nn.Sequential(*stages)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(self, frames: Tensor) -> Tensor:
        return self.stages(frames)


class HNeRV(FrameModel):
    """An encoder that is needed for training only, an embedding for each frame, and a decoder for all.

    decoder: 1 x 1 convolution and GELU, blocks of convolution, pixel shuffle and GELU, 3 x 3 head, (tanh + 1) / 2.
    Kernels that grow and channels that shrink slowly give each block a similar number of weights; `kernels=(3, 3)` and
    `reduction=2` are the uneven decoder of NeRV.
    Convention: as FrameModel; the encoder sees frames whose last row and column are repeated up to a multiple of the
        strides.
    Args:
        frames: how many; sets the size of all embeddings, which `stored_parameters` counts.
        size: (H, W) of a picture.
        width: channels before the first block; `from_size` finds it.
        strides: of encoder and decoder; None: by size.
        embedding: channels of an embedding.
        encoder_width: channels of the encoder.
        kernels: of the first block, and the largest.
        reduction: channels of a block over those of the next.
        lowest: channels of a block, at least.
        generator: of the first weights.
    Shape:
        frames [B, 3, H, W] in 0..1, or [B, H, W, 3] uint8 -> [B, 3, H, W].
    Raises:
        ValueError: no frame, an empty picture, a stride below 1; frames of another size.
    Source: Chen, Gwilliam, Lim, Shrivastava 2023, arXiv 2304.02633; size rule of its published training script;
        differs: pictures whose size the strides do not divide.
    Example:
        >>> model = HNeRV.from_size(20_000, 45, 70, frames=8)
        >>> embeddings = model.encode(torch.rand(2, 3, 45, 70))
        >>> model.interpolate(embeddings, torch.tensor([0.5])).shape
        torch.Size([1, 3, 45, 70])
    """

    def __init__(
        self,
        frames: int,
        size: tuple[int, int],
        *,
        width: int = 68,
        strides: Sequence[int] | None = None,
        embedding: int = 16,
        encoder_width: int = 64,
        kernels: tuple[int, int] = (1, 5),
        reduction: float = 1.2,
        lowest: int = 12,
        generator: torch.Generator | None = None,
    ):
        super().__init__(frames, size, strides)
        if min(kernels) % 2 == 0 or max(kernels) % 2 == 0:
            _check.fail("HNeRV", "expected odd kernels.", kernels=kernels)
        self.embedding = embedding
        widths = hnerv_widths(width, len(self.strides), reduction, lowest)
        sizes = hnerv_kernels(len(self.strides), kernels)
        self.stem = NeRVBlock(embedding, width, 1, kernel=1)
        self.blocks = nn.ModuleList(
            NeRVBlock(a, b, s, kernel=k)
            for (a, b), s, k in zip(itertools.pairwise(widths), self.strides, sizes, strict=True)
        )
        self.head = nn.Conv2d(widths[-1], 3, 3, padding=1)
        initialise(self, generator)
        self.encoder = ConvNeXtEncoder(self.strides, width=encoder_width, embedding=embedding, generator=generator)

    @classmethod
    def from_size(
        cls,
        parameters: int,
        height: int,
        width: int,
        frames: int,
        *,
        strides: Sequence[int] | None = None,
        embedding: int = 16,
        kernels: tuple[int, int] = (1, 5),
        reduction: float = 1.2,
        **options,
    ) -> HNeRV:
        """The network of a total size, decoder and embeddings, by the published rule (`hnerv_width`).

        1 500 000 parameters for 132 frames of 640 x 1280 give the widths 68, 57, 48, 40, 33, 28 of the released
        network, and 1 505 172 parameters. The rule leaves out biases, rounding and `lowest`, which small networks
        feel: 20 000 for 10 frames of 32 x 64 give 26 025.
        Args:
            parameters: of decoder and embeddings together.
            height, width: of a picture.
            frames: how many.
            strides, embedding, kernels, reduction, options: as of the class.
        Raises:
            ValueError: the embeddings alone take the budget.
        """
        strides = default_strides((height, width)) if strides is None else tuple(strides)
        scale = math.prod(strides)
        embeddings = embedding * -(-height // scale) * -(-width // scale) * frames
        channels = hnerv_width(parameters, embeddings, embedding, strides, kernels=kernels, reduction=reduction)
        if channels < 1:
            _check.fail(
                "HNeRV", f"{frames} embeddings hold {embeddings} numbers, which leaves nothing for the decoder.",
                "allow more parameters, fewer channels of an embedding, or larger strides",
                parameters=parameters, size=(height, width), strides=strides,
            )  # fmt: skip
        return cls(frames, (height, width), width=channels, strides=strides, embedding=embedding, kernels=kernels,
                   reduction=reduction, **options)  # fmt: skip

    def inputs(self, video: Tensor, numbers: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Frames; what the mask covers is black."""
        shown = video[numbers]
        return (shown if mask is None else shown.masked_fill(mask[numbers].unsqueeze(-1), 0),)

    def encode(self, frames: Tensor) -> Tensor:
        """Embeddings [B, embedding, h, w] of frames."""
        whole = frames.dtype is torch.uint8
        wanted = (*self.size, 3) if whole else (3, *self.size)
        if frames.dim() != 4 or tuple(frames.shape[1:]) != wanted:
            _check.fail("HNeRV", "expected frames [B, 3, H, W] in 0..1 or [B, H, W, 3] uint8 of the network's size.",
                        frames=frames, size=self.size)  # fmt: skip
        if whole:
            frames = frames.permute(0, 3, 1, 2).float() / 255
        down, right = (g * self.scale - side for g, side in zip(self.grid, self.size))
        if down or right:
            frames = F.pad(frames, (0, right, 0, down), mode="replicate")
        return self.encoder(frames)

    def features(self, embedding: Tensor) -> Tensor:
        x = self.stem(embedding.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x)
        return x

    def stored_parameters(self) -> int:
        """Decoder and embeddings; the encoder stays at home."""
        decoder = super().stored_parameters() - sum(value.numel() for value in self.encoder.parameters())
        return decoder + self.frames * self.embedding * self.grid[0] * self.grid[1]
