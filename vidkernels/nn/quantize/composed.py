"""Several codebooks for one vector: one after the other, or side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vidkernels import _check
from vidkernels.functional.quantize.vq import VectorQuantized, straight_through
from vidkernels.nn.quantize.vector_quantizer import VectorQuantizer

__all__ = ["ProductVQ", "ResidualVQ"]


class ResidualVQ(nn.Module):
    """Each codebook quantises what the ones before it left over; the codes add up.

    Indices have one more axis at the end, of size `stages`; loss is the sum over stages. The gradient of the output
    goes to the input unchanged.

    Args:
        dim: D, size of a vector.
        codes: K, size of each codebook.
        stages: number of codebooks.
        channel_first: vectors lie along axis 1, as in [B, C, T, H, W], instead of along the last.
        settings: of each `VectorQuantizer` (decay, commitment, dead_below, start, ...); "l2" only.
    Example:
        >>> vq = ResidualVQ(4, 16, 3)
        >>> quantized, index, loss = vq(torch.randn(2, 10, 4))
        >>> index.shape, vq.lookup(index).shape
        (torch.Size([2, 10, 3]), torch.Size([2, 10, 4]))
    """

    def __init__(self, dim: int, codes: int, stages: int, *, channel_first: bool = False, **settings):
        super().__init__()
        if stages < 1 or settings.get("metric", "l2") != "l2":
            _check.fail("ResidualVQ", 'expected at least 1 stage and `metric` "l2".', stages=stages, **settings)
        self.channel_first = channel_first
        self.stages = nn.ModuleList(VectorQuantizer(dim, codes, **settings) for _ in range(stages))

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> VectorQuantized:
        """Quantise [..., D] ([B, D, ...] with `channel_first`); in training, move the codebooks afterwards."""
        vectors = x.movedim(1, -1) if self.channel_first else x
        rest, total, loss, index = vectors, 0, 0, []
        for stage in self.stages:
            step = stage(rest, generator)
            code = step.quantized.detach()
            rest, total, loss = rest - code, total + code, loss + step.loss
            index.append(step.index)
        quantized = straight_through(vectors, total)
        quantized = quantized.movedim(-1, 1) if self.channel_first else quantized
        return VectorQuantized(quantized, torch.stack(index, -1), loss)

    def lookup(self, index: Tensor) -> Tensor:
        """[..., D] from indices [..., S] of the first S stages: fewer stages, coarser vectors."""
        if not 1 <= index.shape[-1] <= len(self.stages):
            _check.fail("ResidualVQ.lookup", f"expected `index` of shape [..., S], S from 1 to {len(self.stages)}.",
                        index=index)  # fmt: skip
        codes = sum(stage.lookup(each) for stage, each in zip(self.stages, index.unbind(-1), strict=False))
        return codes.movedim(-1, 1) if self.channel_first else codes


class ProductVQ(nn.Module):
    """The vector is cut into parts, each with a codebook of its own: K ** parts codes from parts * K entries.

    Indices have one more axis at the end, of size `parts`; loss is the mean over parts.

    Args:
        dim: D, size of a vector, a multiple of `parts`.
        codes: K, size of each codebook.
        parts: number of codebooks.
        channel_first: vectors lie along axis 1, as in [B, C, T, H, W], instead of along the last.
        settings: of each `VectorQuantizer` (metric, decay, commitment, dead_below, start, ...).
    Example:
        >>> vq = ProductVQ(4, 16, 2)
        >>> quantized, index, loss = vq(torch.randn(2, 10, 4))
        >>> index.shape, vq.lookup(index).shape
        (torch.Size([2, 10, 2]), torch.Size([2, 10, 4]))
    """

    def __init__(self, dim: int, codes: int, parts: int, *, channel_first: bool = False, **settings):
        super().__init__()
        if parts < 1 or dim % parts:
            _check.fail("ProductVQ", "expected `dim` to be a multiple of `parts`.", dim=dim, parts=parts)
        self.channel_first = channel_first
        self.parts = nn.ModuleList(VectorQuantizer(dim // parts, codes, **settings) for _ in range(parts))

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> VectorQuantized:
        """Quantise [..., D] ([B, D, ...] with `channel_first`); in training, move the codebooks afterwards."""
        vectors = x.movedim(1, -1) if self.channel_first else x
        pieces = vectors.chunk(len(self.parts), -1)
        steps = [part(piece, generator) for part, piece in zip(self.parts, pieces, strict=True)]
        quantized = torch.cat([s.quantized for s in steps], -1)
        quantized = quantized.movedim(-1, 1) if self.channel_first else quantized
        index = torch.stack([s.index for s in steps], -1)
        return VectorQuantized(quantized, index, torch.stack([s.loss for s in steps]).mean())

    def lookup(self, index: Tensor) -> Tensor:
        """[..., D] from indices [..., parts]."""
        codes = torch.cat([p.lookup(each) for p, each in zip(self.parts, index.unbind(-1), strict=True)], -1)
        return codes.movedim(-1, 1) if self.channel_first else codes
