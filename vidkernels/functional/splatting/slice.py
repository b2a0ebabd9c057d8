"""Gaussians over space and time, cut at moments."""

from __future__ import annotations

import torch

from vidkernels import _check
from vidkernels.ops.slice_spacetime.op import slice_spacetime as _slice

__all__ = ["slice_spacetime"]


def slice_spacetime(
    means: torch.Tensor, cholesky: torch.Tensor, times: torch.Tensor, *, backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Condition Gaussians over (x, y, t) on moments t: what a clip's Gaussians are in each of its frames.

    mean(t) = mean_xy + S_xt (t - mean_t) / S_tt;  cov = S_xx - S_xt S_xt^T / S_tt;
    weight(t) = exp(-(t - mean_t)^2 / (2 S_tt)), with S = L L^T. The covariance is the same at every t.
    Convention: the third axis is time; both factors are lower triangular, so that the second output is a `cholesky` of
    the 2D splatting functions. Multiply opacities (or colours) by the weight.
    Args:
        means: [N, 3] as (x, y, t), float32/float64 (halves are computed in float32).
        cholesky: [N, 6], rows of L: (l11, l21, l22, l31, l32, l33). Signs are free.
        times: [T], in the units of the third axis.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        means2d: [T, N, 2]. cholesky2d: [T, N, 3] as (l11, l21, l22), one [N, 3] expanded. weight: [T, N], in [0, 1].
        All are differentiable in all arguments. A Gaussian with l32 = l33 = 0, or whose S_tt is not finite, has weight
        0, stays at its mean and gets no gradient.
    Raises:
        ValueError: shapes other than these.
    Backends: reference, cpu, cuda (sm80+). Deterministic: forward yes, backward yes (fixed order, times in float64).
    Source: conditional of a normal distribution, e.g. Yang et al. 2023, arXiv 2310.10642, equations 8 and 9; differs:
        two image axes, and the factor is conditioned itself, so that no difference of close numbers is formed.
    Example:
        >>> L = torch.tensor([[2.0, 0, 2, 0.3, 0, 0.4]])
        >>> mean, cholesky, weight = slice_spacetime(torch.tensor([[10.0, 20, 0.5]]), L, torch.tensor([0.5, 1.0]))
        >>> mean[1].tolist(), [round(x, 3) for x in cholesky[0, 0].tolist()], round(weight[1].item(), 4)
        ([[11.199999809265137, 20.0]], [1.6, 0.0, 2.0], 0.6065)
    """
    name = "slice_spacetime"
    _check.is_tensor(name, "means", means, "[N, 3]")
    _check.is_tensor(name, "cholesky", cholesky, "[N, 6]")
    _check.is_tensor(name, "times", times, "[T]")
    if means.shape[1] != 3 or cholesky.shape != (means.shape[0], 6):
        _check.fail(name, "expected `means` of shape [N, 3] and `cholesky` of shape [N, 6].", means=means,
                    cholesky=cholesky)  # fmt: skip
    wide = torch.float64 if torch.float64 in (means.dtype, cholesky.dtype, times.dtype) else torch.float32
    moved, flat, weight = _slice(means.to(wide), cholesky.to(wide), times.to(wide), backend=backend)
    return moved, flat.expand(times.shape[0], -1, -1), weight
