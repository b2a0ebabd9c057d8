"""Compositing of ordered samples: the last step of every layered, volume and point renderer."""

from __future__ import annotations

import torch

from vidkernels import _check
from vidkernels.ops.composite.op import composite as _composite

__all__ = ["alpha_from_density", "composite"]

_NARROW = (torch.float16, torch.bfloat16)


def composite(
    values: torch.Tensor,
    alpha: torch.Tensor,
    background: torch.Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Composite the samples of each ray from front to back.

    T_0 = 1, w_s = alpha_s T_s, T_{s+1} = (1 - alpha_s) T_s;  out = sum_s w_s values_s + T_S background
    Convention: sample 0 is nearest the eye; colours are not multiplied by their alpha.
    Args:
        values: [..., S, C], float16/bfloat16/float32/float64: colours or any features of the samples.
        alpha: [..., S], opacities in [0, 1]; see `alpha_from_density` for volumes.
        background: [C] or [..., C], seen through what is left of the ray; None: nothing.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        out: [..., C], weights: [..., S] with sum <= 1, transmittance: [...] = T_S. All differentiable, once; the
            gradient is exact where alpha is 0 or 1, too. Half precision is computed in float32 and rounded once.
    Raises:
        ValueError: shapes that do not fit.
    Backends: reference, cpu, cuda (sm80+). Deterministic: forward yes, backward yes.
    Source: Porter and Duff 1984 ("over"); Max 1995, "Optical models for direct volume rendering", eq. 7.
    Example:
        >>> out, weights, left = composite(torch.tensor([[1.0], [10.0]]), torch.tensor([0.5, 0.5]))
        >>> out.tolist(), weights.tolist(), left.item()
        ([3.0], [0.5, 0.25], 0.25)
    """
    name = "composite"
    if not (isinstance(values, torch.Tensor) and isinstance(alpha, torch.Tensor)):
        _check.fail(name, "expected `values` and `alpha` to be tensors.", error=TypeError, values=values, alpha=alpha)
    if values.dim() < 2 or values.shape[:-1] != alpha.shape:
        _check.fail(name, "expected `values` of shape [..., S, C] and `alpha` of shape [..., S].",
                    values=values, alpha=alpha)  # fmt: skip
    lead, (samples, channels) = alpha.shape[:-1], values.shape[-2:]
    dtype = torch.promote_types(values.dtype, alpha.dtype)
    wide = torch.float32 if dtype in _NARROW else dtype
    rays = lead.numel()
    out, weights, transmittance = _composite(
        values.to(wide).reshape(rays, samples, channels), alpha.to(wide).reshape(rays, samples), backend=backend
    )
    out, weights, transmittance = out.view(*lead, channels), weights.view(alpha.shape), transmittance.view(lead)
    if background is not None:
        if background.shape not in (torch.Size([channels]), out.shape):
            _check.fail(name, "expected `background` of shape [C] or [..., C].", values=values, background=background)
        out = torch.addcmul(out, transmittance[..., None], background.to(out.dtype))
    if dtype in _NARROW:
        return out.to(dtype), weights.to(dtype), transmittance.to(dtype)
    return out, weights, transmittance


def alpha_from_density(density: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Opacity of a slab of a volume: 1 - exp(-density * delta).

    Convention: density per unit of length, delta in that unit.
    Args:
        density: [...], not negative.
        delta: broadcast against it, lengths of the slabs; inf closes a ray that meets any density.
    Returns:
        alpha: [...]. Differentiable in both.
    Raises:
        RuntimeError: from torch, for shapes that do not broadcast.
    Backends: reference (plain torch). Deterministic: yes.
    Source: Max 1995, eq. 4.
    Example:
        >>> alpha_from_density(torch.tensor([0.0, 1.0]), torch.tensor(0.5)).tolist()
        [0.0, 0.39346933364868164]
    """
    return -torch.expm1(-density * delta)
