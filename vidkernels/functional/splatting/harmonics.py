"""Colours that depend on where one looks from."""

from __future__ import annotations

import math

import torch

from vidkernels import _check

__all__ = ["spherical_harmonics"]

_MOST = 4


def _basis(degree: int, directions: torch.Tensor) -> torch.Tensor:
    """[..., (degree + 1)^2] real spherical harmonics of unit vectors, from the Legendre recurrence in z.

    (x + iy)^m holds the cosine and sine of the azimuth times sin(polar)^m, so nothing is divided by sin(polar).
    """
    x, y, z = directions.unbind(-1)
    out = [torch.empty(0)] * (degree + 1) ** 2
    cosine, sine, first = torch.ones_like(x), torch.zeros_like(x), 1.0
    for m in range(degree + 1):
        before, now = torch.zeros_like(z), torch.full_like(z, first)
        for band in range(m, degree + 1):
            if band > m:
                before, now = now, ((2 * band - 1) * z * now - (band + m - 1) * before) / (band - m)
            size = (2 * band + 1) / (4 * math.pi) * math.factorial(band - m) / math.factorial(band + m)
            scale = (-1) ** m * math.sqrt(size * (1 if m == 0 else 2))
            centre = band * band + band
            out[centre + m] = scale * cosine * now
            if m:
                out[centre - m] = scale * sine * now
        cosine, sine = x * cosine - y * sine, x * sine + y * cosine
        first *= 2 * m + 1
    return torch.stack(out, -1)


def spherical_harmonics(
    degrees_to_use: int, dirs: torch.Tensor, coeffs: torch.Tensor, masks: torch.Tensor | None = None
) -> torch.Tensor:
    """Evaluate functions on the sphere that are given by real spherical harmonics.

    out[c] = sum over k < (degrees_to_use + 1)^2 of Y_k(dirs / |dirs|) coeffs[k, c]
    Convention: k = l^2 + l + m for band l and order m; with the phase (-1)^m, so that band 1 is
    sqrt(3 / 4 pi) (-y, z, -x), as Gaussian-splat scenes store it.
    Args:
        degrees_to_use: 0..4; coefficients of higher bands are not read.
        dirs: [..., 3], of any length.
        coeffs: [..., K, D], K at least (degrees_to_use + 1)^2; leading axes broadcast against those of dirs.
        masks: [...], bool; where False the result is 0 and no gradient flows.
    Returns:
        values: [..., D]. Differentiable in dirs and coeffs (twice, and so on).
    Raises:
        ValueError: another degree, too few coefficients.
    Backends: plain torch. Deterministic: yes.
    Source: Green 2003, "Spherical harmonic lighting", appendix 1 (recurrences).
    Example:
        >>> coeffs = torch.tensor([[0.0], [0.0], [1.0], [0.0]])
        >>> round(spherical_harmonics(1, torch.tensor([0.0, 0, 2]), coeffs).item(), 4)
        0.4886
    """
    name = "spherical_harmonics"
    if not 0 <= degrees_to_use <= _MOST:
        _check.fail(name, f"expected `degrees_to_use` in 0..{_MOST}.", degrees_to_use=degrees_to_use)
    terms = (degrees_to_use + 1) ** 2
    if dirs.shape[-1] != 3 or coeffs.dim() < 2 or coeffs.shape[-2] < terms:
        _check.fail(name, f"expected `dirs` of shape [..., 3] and `coeffs` of shape [..., K, D], K at least {terms}.",
                    dirs=dirs, coeffs=coeffs, degrees_to_use=degrees_to_use)  # fmt: skip
    if masks is not None:  # also in front, or a direction of length 0 would make 0 * NaN
        dirs = torch.where(masks[..., None], dirs, torch.ones_like(dirs))
    values = _basis(degrees_to_use, torch.nn.functional.normalize(dirs, dim=-1))
    out = (values[..., None] * coeffs[..., :terms, :]).sum(-2)
    return out if masks is None else torch.where(masks[..., None], out, torch.zeros_like(out))
