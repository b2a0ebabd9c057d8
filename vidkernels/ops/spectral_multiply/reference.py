"""Plain torch, the oracle."""

from __future__ import annotations

import torch
from torch import Tensor


def spectral_multiply(x: Tensor, weight: Tensor, mask: Tensor | None, height: int, width: int) -> Tensor:
    rows, columns = weight.shape[:2]
    kept = torch.einsum("birc,rcio->borc", _kept(x, rows, columns), _complex(_masked(weight, mask)))
    return _placed(kept, height, width).to(x.dtype)


def spectral_multiply_backward(grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, columns = weight.shape[:2]
    grads = _kept(grad, rows, columns)
    to_x = torch.einsum("borc,rcio->birc", grads, _complex(_masked(weight, mask)).conj())
    to_weight = torch.einsum("birc,borc->rcio", _kept(x, rows, columns).conj(), grads)
    to_weight = _masked(torch.view_as_real(to_weight), mask).to(weight.dtype)
    return _placed(to_x, *x.shape[2:4]).to(x.dtype), to_weight.contiguous()


def kept_rows(count: int, height: int) -> list[int]:
    """Rows of a spectrum of `height` rows: low frequencies first, then the low negative ones."""
    low = (count + 1) // 2
    return [*range(low), *range(height - (count - low), height)]


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex((x if x.dtype is torch.float64 else x.float()).contiguous())


def _masked(weight: Tensor, mask: Tensor | None) -> Tensor:
    return weight if mask is None else weight.masked_fill(mask.logical_not(), 0)


def _kept(x: Tensor, rows: int, columns: int) -> Tensor:
    index = torch.tensor(kept_rows(rows, x.shape[2]), device=x.device, dtype=torch.int64)
    return _complex(x[:, :, :, :columns].index_select(2, index))


def _placed(kept: Tensor, height: int, width: int) -> Tensor:
    rows, columns = kept.shape[2:]
    index = torch.tensor(kept_rows(rows, height), device=kept.device, dtype=torch.int64)
    out = torch.view_as_real(kept).new_zeros(*kept.shape[:2], height, width, 2)
    out[:, :, :, :columns].index_copy_(2, index, torch.view_as_real(kept))
    return out
