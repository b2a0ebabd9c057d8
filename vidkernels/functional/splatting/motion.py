"""Curves that Gaussians follow."""

from __future__ import annotations

import torch

from vidkernels import _check
from vidkernels.ops.motion_eval.op import motion_eval as _motion

__all__ = ["motion_eval"]


def motion_eval(
    coefficients: torch.Tensor, times: torch.Tensor, kind: str = "polynomial_fourier", *, backend: str | None = None
) -> torch.Tensor:
    """Evaluate one curve per Gaussian (of its position, rotation, colour, ...) at every moment.

    polynomial_fourier: sum over k = 0..3 of c[k] t^k + sum over l = 1..4 of c[3 + l] cos(l pi t) + c[7 + l] sin(l pi t)
    bspline: uniform cubic B-spline over [0, 1] with K control points, so K - 3 segments of equal length:
    with u = t (K - 3) and i = floor(u), the four basis polynomials of u - i weigh c[i .. i + 3].
    Convention: the spline does not pass through its control points (at t = 0 it is (c0 + 4 c1 + c2) / 6); before 0 and
    after 1 it stays where it is at the end, and times get no gradient there. NaN in, NaN out.
    Args:
        coefficients: [N, K, D], float32/float64 (halves are computed in float32); K = 12 for polynomial_fourier, at
            least 4 for bspline.
        times: [T].
        kind: "polynomial_fourier" or "bspline".
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        out: [T, N, D]. Differentiable in coefficients and times (once). Coefficients are read once for all moments.
    Raises:
        ValueError: shapes other than these, another kind, a K that the kind does not have.
    Backends: reference, cpu, cuda (sm80+). Deterministic: forward yes, backward yes (fixed order, times in float64).
    Source: polynomial_fourier: Sun et al. 2024, "Splatter a Video", arXiv 2406.13870, section 3.2; bspline: uniform
        cubic B-splines, de Boor 1978.
    Example:
        >>> line = torch.zeros(1, 12, 2)
        >>> line[0, 1] = torch.tensor([3.0, -1.0])
        >>> motion_eval(line, torch.tensor([0.0, 0.5])).tolist()
        [[[0.0, 0.0]], [[1.5, -0.5]]]
    """
    name = "motion_eval"
    _check.is_tensor(name, "coefficients", coefficients, "[N, K, D]")
    _check.is_tensor(name, "times", times, "[T]")
    terms = coefficients.shape[1]
    if kind not in ("polynomial_fourier", "bspline"):
        _check.fail(name, "expected `kind` to be 'polynomial_fourier' or 'bspline'.", kind=kind)
    if (terms != 12) if kind == "polynomial_fourier" else (terms < 4):
        wanted = "12 (4 polynomial, 4 cosine, 4 sine)" if kind == "polynomial_fourier" else "at least 4"
        _check.fail(name, f"expected {wanted} coefficients for a {kind} curve, got {terms}.",
                    coefficients=coefficients, kind=kind)  # fmt: skip
    wide = torch.float64 if torch.float64 in (coefficients.dtype, times.dtype) else torch.float32
    return _motion(coefficients.to(wide), times.to(wide), kind, backend=backend)
