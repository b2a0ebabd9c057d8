"""Named inputs of composite and its backward."""

from __future__ import annotations

import torch

from vidkernels._case import ROUNDING, Case

_DTYPES = (torch.float32, torch.float64)


def _rays(rays: int, samples: int, channels: int, sharp: float = 1.0):
    """Opacities of a soft volume; `sharp` > 1 makes most of them nearly 0 or nearly 1."""

    def args(g, dtype):
        values = torch.randn(rays, samples, channels, generator=g, dtype=torch.float64)
        alpha = torch.sigmoid(sharp * torch.randn(rays, samples, generator=g, dtype=torch.float64))
        return values.to(dtype), alpha.to(dtype)

    return args


def _strided(g, dtype):
    values = torch.randn(13, 3, 33, generator=g).to(dtype).transpose(1, 2)
    return values, torch.rand(33, 13, generator=g).to(dtype).T


def _opaque(g, dtype):
    """Alphas of exactly 0 and 1 among others, an opaque first sample, an empty ray."""
    values, alpha = _rays(9, 40, 3)(g, dtype)
    alpha[:, ::3] = torch.randint(0, 2, alpha[:, ::3].shape, generator=g).to(dtype)
    alpha[0, 0], alpha[1] = 1, 0
    return values, alpha


def _not_numbers(g, dtype):
    """A NaN opacity spoils its own ray from there on, and nothing else."""
    values, alpha = _rays(5, 70, 3)(g, dtype)
    alpha[2, 50] = float("nan")
    return values, alpha


def _upstream(make, out: bool = True, weights: bool = True, transmittance: bool = True):
    def args(g, dtype):
        values, alpha = make(g, dtype)
        rays, samples, channels = values.shape
        shapes = ((rays, channels), (rays, samples), (rays,))
        drawn = [torch.randn(shape, generator=g).to(dtype) for shape in shapes]
        return *(d if use else None for d, use in zip(drawn, (out, weights, transmittance))), values, alpha

    return args


def _bytes(values, alpha):
    size = values.element_size()
    return (values.numel() + alpha.numel()) * size, (
        values.shape[0] * values.shape[2] + alpha.numel() + alpha.shape[0]
    ) * size


def _bytes_backward(grad_out, grad_weights, grad_transmittance, values, alpha):
    size = values.element_size()
    upstream = sum(g.numel() for g in (grad_out, grad_weights, grad_transmittance) if g is not None)
    return (values.numel() + alpha.numel() + upstream) * size, (values.numel() + alpha.numel()) * size


_INPUTS = {
    "tiny": _rays(3, 4, 2),
    "odd": _rays(37, 63, 3),
    "odd_long": _rays(5, 131, 1, sharp=4.0),
    "odd_wide": _rays(7, 33, 45),
    "empty": _rays(0, 5, 3),
    "empty_samples": _rays(4, 0, 3),
    "strided": _strided,
    "extreme_opaque": _opaque,
    "real_rays": _rays(4096, 128, 3, sharp=4.0),  # a NeRF batch
    "real_mpi": _rays(256 * 256, 32, 3, sharp=4.0),  # 32 planes of 256 x 256
}
_GRAD = {name: () if name.startswith("empty") else ("values", "alpha") for name in _INPUTS}

CASES = {
    "composite": [
        *(Case(name, args, _GRAD[name], _DTYPES, ROUNDING, bytes=_bytes) for name, args in _INPUTS.items()),
        Case("extreme_nan", _not_numbers, (), _DTYPES, ROUNDING),
    ],
    "composite_backward": [
        *(
            Case(name, _upstream(args), (), _DTYPES, ROUNDING, bytes=_bytes_backward)
            for name, args in _INPUTS.items()
            if not name.startswith("real")
        ),
        Case("odd_colour_only", _upstream(_rays(11, 65, 3), True, False, False), (), _DTYPES, ROUNDING),
        Case("odd_weights_only", _upstream(_rays(11, 65, 5), False, True, False), (), _DTYPES, ROUNDING),
        *(
            Case(name, _upstream(_INPUTS[name], True, False, False), (), _DTYPES, ROUNDING, bytes=_bytes_backward)
            for name in ("real_rays", "real_mpi")
        ),
    ],
}
