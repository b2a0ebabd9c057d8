"""Named inputs of gather_tokens and its backward."""

from __future__ import annotations

import torch

from vidkernels._case import ROUNDING, Case


def _index(g: torch.Generator, batch: int, length: int, count: int) -> torch.Tensor:
    """Distinct rows, as a mask gives them."""
    return torch.rand(batch, length, generator=g).argsort(1)[:, :count].int()


def _forward(batch: int, length: int, dim: int, count: int):
    def args(g, dtype):
        return torch.randn(batch, length, dim, generator=g).to(dtype), _index(g, batch, length, count)

    return args


def _backward(batch: int, length: int, dim: int, count: int, repeated: bool = False):
    def args(g, dtype):
        index = _index(g, batch, length, count)
        if repeated:
            index = torch.randint(0, max(1, length // 3), index.shape, generator=g, dtype=torch.int32)
        return torch.randn(batch, count, dim, generator=g).to(dtype), index, length

    return args


def _strided(g, dtype):
    tokens = torch.randn(2, 12, 9, generator=g).to(dtype).transpose(1, 2)
    return tokens, _index(g, 2, 9, 8)[:, ::2]


def _extreme(g, dtype):
    top = torch.finfo(dtype).max
    tokens = torch.tensor([top, -top, 0.0, -0.0, torch.finfo(dtype).tiny, 1.0], dtype=dtype).expand(1, 5, 6)
    return tokens.contiguous(), torch.tensor([[4, 0, 2]], dtype=torch.int32)


def _bytes(tokens, index):
    moved = index.numel() * tokens.shape[2] * tokens.element_size()
    return moved + index.numel() * 4, moved


def _bytes_backward(grad_out, index, length):
    row = grad_out.shape[2] * grad_out.element_size()
    return index.numel() * (4 + row), grad_out.shape[0] * length * row


CASES = {
    "gather_tokens": [
        Case("tiny", _forward(2, 5, 3, 3), grad=("tokens",), bytes=_bytes),
        Case("odd", _forward(3, 63, 37, 17), grad=("tokens",), bytes=_bytes),
        Case("odd_wide", _forward(2, 67, 64, 31), grad=("tokens",), bytes=_bytes),
        Case("empty", _forward(2, 5, 3, 0), grad=("tokens",)),
        Case("empty_batch", _forward(0, 5, 3, 2), grad=("tokens",)),
        Case("strided", _strided, grad=("tokens",)),
        Case("extreme", _extreme),
        Case("real_videomae_b", _forward(8, 1568, 768, 160), grad=("tokens",), bytes=_bytes),
    ],
    "gather_tokens_backward": [
        Case("tiny", _backward(2, 5, 3, 3), grad=("grad_out",), rtol=ROUNDING, bytes=_bytes_backward),
        Case("odd", _backward(3, 63, 37, 17), rtol=ROUNDING, bytes=_bytes_backward),
        Case("odd_repeated", _backward(3, 63, 40, 29, repeated=True), rtol=ROUNDING),
        Case("empty", _backward(2, 5, 3, 0), rtol=ROUNDING),
        Case("real_videomae_b", _backward(8, 1568, 768, 160), rtol=ROUNDING, bytes=_bytes_backward),
    ],
}
