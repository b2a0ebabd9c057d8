"""What people run instead of spectral_multiply: Fourier neural operators' two blocks, in torch's complex numbers."""

from __future__ import annotations

import torch


def _complex(x, mask=None):
    """torch has no complex bfloat16, so 16-bit numbers are widened first."""
    x = x if mask is None else x * mask
    return torch.view_as_complex(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x)


def _place(out, kept, low):
    """The two blocks of a new spectrum."""
    high, columns = kept.shape[2] - low, kept.shape[3]
    out[:, :, :low, :columns] = kept[:, :, :low]
    if high:
        out[:, :, -high:, :columns] = kept[:, :, low:]
    return torch.view_as_real(out)


def _einsum(x, weight, mask, height, width):
    """Weights [I, O, R, C, 2]."""
    dtype, x, w = x.dtype, _complex(x), _complex(weight, mask)
    low, columns = (w.shape[2] + 1) // 2, w.shape[3]
    high = w.shape[2] - low
    out = x.new_zeros(x.shape[0], w.shape[1], height, width)
    out[:, :, :low, :columns] = torch.einsum("bixy,ioxy->boxy", x[:, :, :low, :columns], w[:, :, :low])
    if high:
        out[:, :, -high:, :columns] = torch.einsum("bixy,ioxy->boxy", x[:, :, -high:, :columns], w[:, :, low:])
    return torch.view_as_real(out).to(dtype)


def _matmul(x, weight, mask, height, width):
    """Weights [R, C, I, O, 2]: one batched complex matrix product over all frequencies."""
    dtype, x, w = x.dtype, _complex(x), _complex(weight, mask)
    low, columns = (w.shape[0] + 1) // 2, w.shape[1]
    first = x.shape[2] - (w.shape[0] - low)
    kept = torch.cat([x[:, :, :low, :columns], x[:, :, first:, :columns]], 2).permute(2, 3, 0, 1) @ w
    return _place(x.new_zeros(x.shape[0], w.shape[3], height, width), kept.permute(2, 3, 0, 1), low).to(dtype)


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
    """Of the same einsums, by autograd; the weights' gradient is shown in our order, which copies nothing."""
    gradients = _gradients(_einsum, grad, x, *_published(weight, mask))

    def run():
        of_x, of_weight = gradients()
        return of_x, of_weight.permute(2, 3, 0, 1, 4)

    return run


def careful_backward(grad, x, weight, mask):
    """Of the batched matrix product, by autograd."""
    return _gradients(_matmul, grad, x, weight, mask)


PEERS = {
    "spectral_multiply": {"usual": usual, "careful": careful},
    "spectral_multiply_backward": {"usual": usual_backward, "careful": careful_backward},
}
