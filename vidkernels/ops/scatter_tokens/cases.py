"""Named inputs of scatter_tokens and its backward."""

from __future__ import annotations

import torch

from vidkernels._case import ROUNDING, Case

_GRAD = ("visible", "mask_token", "position")


def _index(g: torch.Generator, batch: int, length: int, count: int) -> torch.Tensor:
    return torch.rand(batch, length, generator=g).argsort(1)[:, :count].int()


def _forward(batch, length, dim, count, position=True, mixed=False):
    def args(g, dtype):
        param = torch.float32 if mixed and dtype is not torch.float64 else dtype
        visible = torch.randn(batch, count, dim, generator=g).to(dtype)
        index = _index(g, batch, length, count)
        mask_token = torch.randn(dim, generator=g).to(param)
        return visible, index, length, mask_token, torch.randn(length, dim, generator=g).to(param) if position else None

    return args


def _strided(g, dtype):
    visible = torch.randn(2, 12, 4, generator=g).to(dtype).transpose(1, 2)
    position = torch.randn(12, 9, generator=g).to(dtype).t()
    return visible, _index(g, 2, 9, 8)[:, ::2], 9, torch.randn(24, generator=g).to(dtype)[::2], position


def _extreme(g, dtype):
    top, tiny = torch.finfo(dtype).max, torch.finfo(dtype).tiny
    visible = torch.tensor([[[top, -top, 0.0, -0.0, tiny, float("nan")]]], dtype=dtype)
    mask_token = torch.tensor([1.0, float("inf"), tiny, 0.0, top, -1.0], dtype=dtype)
    position = torch.tensor([[top, top, -0.0, -0.0, tiny, 1.0]], dtype=dtype).repeat(3, 1)
    return visible, torch.tensor([[1]], dtype=torch.int32), 3, mask_token, position


def _backward(batch, length, dim, count, with_position=True, mixed=False):
    def args(g, dtype):
        grad_out = torch.randn(batch, length, dim, generator=g).to(dtype)
        param = torch.float32 if mixed and dtype is not torch.float64 else dtype
        return grad_out, _index(g, batch, length, count), param, with_position

    return args


def _size(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _bytes(visible, visible_index, length, mask_token, position):
    written = visible.shape[0] * length * visible.shape[2] * visible.element_size()
    return _size(visible, visible_index, mask_token, position), written


def _bytes_backward(grad_out, visible_index, param_dtype, with_position):
    batch, length, dim = grad_out.shape
    written = batch * visible_index.shape[1] * dim * grad_out.element_size()
    return _size(grad_out, visible_index), written + (1 + length * with_position) * dim * param_dtype.itemsize


CASES = {
    "scatter_tokens": [
        Case("tiny", _forward(2, 5, 3, 2), grad=_GRAD, bytes=_bytes),
        Case("tiny_bare", _forward(2, 5, 3, 2, position=False), grad=_GRAD[:2], bytes=_bytes),
        Case("odd", _forward(3, 63, 37, 17), grad=_GRAD, bytes=_bytes),
        Case("odd_wide", _forward(2, 67, 64, 31), grad=_GRAD, bytes=_bytes),
        # Its float32 gradients hold the rounding of the half-precision grad_out: compared in test_scatter_tokens.py.
        Case("odd_mixed", _forward(2, 67, 40, 31, mixed=True), bytes=_bytes),
        Case("odd_batch", _forward(37, 33, 8, 5), grad=_GRAD, bytes=_bytes),
        Case("empty", _forward(2, 5, 3, 0), grad=_GRAD),
        Case("empty_batch", _forward(0, 5, 3, 2), grad=_GRAD),
        Case("empty_full", _forward(2, 5, 3, 5), grad=_GRAD),
        Case("strided", _strided, grad=_GRAD),
        Case("extreme", _extreme),
        Case("real_videomae_b", _forward(8, 1568, 384, 160), grad=_GRAD, bytes=_bytes),
        Case("real_videomae_b_mixed", _forward(8, 1568, 384, 160, mixed=True), bytes=_bytes),
    ],
    "scatter_tokens_backward": [
        Case("tiny", _backward(2, 5, 3, 2), grad=("grad_out",), rtol=ROUNDING, bytes=_bytes_backward),
        Case("odd", _backward(3, 63, 37, 17), rtol=ROUNDING, bytes=_bytes_backward),
        Case("odd_wide", _backward(5, 131, 64, 31), rtol=ROUNDING, bytes=_bytes_backward),
        Case("odd_bare", _backward(3, 63, 40, 17, with_position=False), rtol=ROUNDING, bytes=_bytes_backward),
        Case("odd_mixed", _backward(37, 33, 40, 17, mixed=True), rtol=ROUNDING, bytes=_bytes_backward),
        Case("empty", _backward(2, 5, 3, 0), rtol=ROUNDING),
        Case("empty_batch", _backward(0, 5, 3, 2), rtol=ROUNDING),
        Case("real_videomae_b", _backward(8, 1568, 384, 160), rtol=ROUNDING, bytes=_bytes_backward),
    ],
}
