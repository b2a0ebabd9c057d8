"""Named inputs of merge_tokens and its backward."""

from __future__ import annotations

import torch

from vidkernels._case import ROUNDING, Case


def _source(g: torch.Generator, batch: int, length: int, count: int) -> torch.Tensor:
    """Token merging's map: some of the even tokens join an odd one, the others keep their order."""
    even = torch.arange(length) % 2 == 0
    source = torch.empty(batch, length, dtype=torch.int64)
    for row in source:
        merging = torch.zeros(length, dtype=torch.bool)
        merging[2 * torch.randperm((length + 1) // 2, generator=g)[: length - count]] = True
        stays = even & ~merging
        first = int(stays.sum())
        row[stays] = torch.arange(first)
        row[~even] = torch.arange(first, count)
        row[merging] = torch.randint(first, max(count, first + 1), (length - count,), generator=g)
    return source.int()


def _forward(batch: int, length: int, dim: int, count: int, sizes: bool = True, anywhere: bool = False):
    def args(g, dtype):
        tokens = torch.randn(batch, length, dim, generator=g).to(dtype)
        if anywhere:  # a clustering's map, some places empty
            source = torch.randint(count, (batch, length), generator=g, dtype=torch.int32)
        else:
            source = _source(g, batch, length, count)
        size = torch.randint(1, 4, (batch, length), generator=g).to(_wide(dtype)) if sizes else None
        return tokens, source, size, count

    return args


def _wide(dtype):
    return torch.float64 if dtype is torch.float64 else torch.float32


def _backward(*sizes, **options):
    def args(g, dtype):
        tokens, source, size, count = _forward(*sizes, **options)(g, dtype)
        total = torch.zeros(source.shape[0], count, dtype=_wide(dtype))
        total.scatter_add_(1, source.long(), torch.ones(source.shape, dtype=total.dtype) if size is None else size)
        return torch.randn(tokens.shape[0], count, tokens.shape[2], generator=g).to(dtype), source, size, total

    return args


def _strided(g, dtype):
    tokens = torch.randn(2, 24, 9, generator=g).to(dtype).transpose(1, 2)[..., ::2]
    size = torch.rand(2, 18, generator=g).to(_wide(dtype))[:, ::2]
    return tokens, torch.randint(5, (2, 9), generator=g, dtype=torch.int32), size, 5


def _extreme(g, dtype):
    """Averages of the largest numbers do not overflow; size 0 leaves even infinity out; an all-zero place is zeros."""
    top = torch.finfo(dtype).max
    column = torch.tensor([top, top, float("inf"), 1.0, float("inf"), 0.0, -top, -top], dtype=dtype)
    source = torch.tensor([[0, 0, 1, 1, 2, 3, 4, 4]], dtype=torch.int32)
    size = torch.tensor([[1.0, 1, 0, 2, 0, 0, 3, 1]]).to(_wide(dtype))
    return column[None, :, None].expand(1, 8, 19).contiguous(), source, size, 6


def _bytes(tokens, source, size, count):
    row = tokens.shape[2] * tokens.element_size()
    maps = source.numel() * (4 if size is None else 8)
    return source.numel() * row + maps, source.shape[0] * count * (row + 4)


def _bytes_backward(grad_merged, source, size, total):
    row = grad_merged.shape[2] * grad_merged.element_size()
    return total.numel() * (row + 4) + source.numel() * (4 if size is None else 8), source.numel() * row


CASES = {
    "merge_tokens": [
        Case("tiny", _forward(2, 5, 3, 3), grad=("tokens",), rtol=ROUNDING, bytes=_bytes),
        Case("tiny_ones", _forward(2, 6, 3, 4, sizes=False), grad=("tokens",), rtol=ROUNDING),
        Case("odd", _forward(3, 63, 37, 41), grad=("tokens",), rtol=ROUNDING, bytes=_bytes),
        Case("odd_wide", _forward(2, 67, 264, 60), grad=("tokens",), rtol=ROUNDING, bytes=_bytes),
        Case("odd_clusters", _forward(2, 131, 40, 3, anywhere=True), grad=("tokens",), rtol=ROUNDING),
        Case("odd_empty_places", _forward(2, 11, 24, 45, anywhere=True), grad=("tokens",), rtol=ROUNDING),
        Case("empty_batch", _forward(0, 5, 3, 3), grad=("tokens",), rtol=ROUNDING),
        Case("empty_tokens", _forward(2, 0, 3, 0), grad=("tokens",), rtol=ROUNDING),
        Case("empty_dim", _forward(2, 6, 0, 4), grad=("tokens",), rtol=ROUNDING),
        Case("strided", _strided, grad=("tokens",), rtol=ROUNDING),
        Case("extreme", _extreme, rtol=ROUNDING),
        Case("real_videomae_b", _forward(8, 1568, 768, 1503), grad=("tokens",), rtol=ROUNDING, bytes=_bytes),
        Case("real_videomae_b_half", _forward(8, 1568, 768, 784), grad=("tokens",), rtol=ROUNDING, bytes=_bytes),
    ],
    "merge_tokens_backward": [
        Case("tiny", _backward(2, 5, 3, 3), grad=("grad_merged",), rtol=ROUNDING, bytes=_bytes_backward),
        Case("odd", _backward(3, 63, 37, 41), grad=("grad_merged",), rtol=ROUNDING, bytes=_bytes_backward),
        Case("odd_ones", _backward(2, 67, 64, 34, sizes=False), grad=("grad_merged",), rtol=ROUNDING),
        Case("odd_clusters", _backward(2, 131, 40, 3, anywhere=True), rtol=ROUNDING),
        Case("empty", _backward(2, 0, 3, 0), rtol=ROUNDING),
        Case("real_videomae_b", _backward(8, 1568, 768, 1503), rtol=ROUNDING, bytes=_bytes_backward),
    ],
}
