"""What people run instead of spectral_multiply: Fourier neural operators' two blocks, in torch's complex numbers."""

from __future__ import annotations

import torch


def _complex(weight, mask):
    return torch.view_as_complex(weight if mask is None else weight * mask)


def _place(out, kept, low):
    """The two blocks of a new spectrum."""
    high, columns = kept.shape[2] - low, kept.shape[3]
    out[:, :, :low, :columns] = kept[:, :, :low]
    if high:
        out[:, :, -high:, :columns] = kept[:, :, low:]
    return torch.view_as_real(out)


def _einsum(x, weight, mask, height, width):
    """Weights [I, O, R, C, 2]."""
    x, w = torch.view_as_complex(x), _complex(weight, mask)
    low, columns = (w.shape[2] + 1) // 2, w.shape[3]
    high = w.shape[2] - low
    out = x.new_zeros(x.shape[0], w.shape[1], height, width)
    out[:, :, :low, :columns] = torch.einsum("bixy,ioxy->boxy", x[:, :, :low, :columns], w[:, :, :low])
    if high:
        out[:, :, -high:, :columns] = torch.einsum("bixy,ioxy->boxy", x[:, :, -high:, :columns], w[:, :, low:])
    return torch.view_as_real(out)


def _matmul(x, weight, mask, height, width):
    """Weights [R, C, I, O, 2]: one batched complex matrix product over all frequencies."""
    x, w = torch.view_as_complex(x), _complex(weight, mask)
    low, columns = (w.shape[0] + 1) // 2, w.shape[1]
    first = x.shape[2] - (w.shape[0] - low)
    kept = torch.cat([x[:, :, :low, :columns], x[:, :, first:, :columns]], 2).permute(2, 3, 0, 1) @ w
    return _place(x.new_zeros(x.shape[0], w.shape[3], height, width), kept.permute(2, 3, 0, 1), low)


def _published(weight, mask):
    """[I, O, R, C, 2]"""
    return [None if t is None else t.permute(2, 3, 0, 1, 4).contiguous() for t in (weight, mask)]


def usual(x, weight, mask, height, width):
    """An einsum for each block of weights in the published order; masked weights are made anew each time."""
    weight, mask = _published(weight, mask)
    return lambda: _einsum(x, weight, mask, height, width)


def careful(x, weight, mask, height, width):
    """Weights in our order and one batched matrix product."""
    return lambda: _matmul(x, weight, mask, height, width)


def _gradients(forward, grad, x, weight, mask):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = forward(x, weight, mask, *grad.shape[2:4])
    return lambda: torch.autograd.grad(out, (x, weight), grad, retain_graph=True)


def usual_backward(grad, x, weight, mask):
    """Of the same einsums, by autograd."""
    return _gradients(_einsum, grad, x, *_published(weight, mask))


def careful_backward(grad, x, weight, mask):
    """Of the batched matrix product, by autograd."""
    return _gradients(_matmul, grad, x, weight, mask)


PEERS = {
    "spectral_multiply": {"usual": usual, "careful": careful},
    "spectral_multiply_backward": {"usual": usual_backward, "careful": careful_backward},
}
