"""Soft codes: weights over a codebook drawn from a Dirichlet distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from vidkernels import _check

__all__ = ["dirichlet_kl", "dirichlet_sample"]


def dirichlet_sample(alpha: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw weights from Dir(alpha), differentiable in alpha.

    log g = log Gamma(alpha + 1) draw + log(uniform) / alpha;  w = softmax(log g)
    Convention: a Gamma(alpha) draw is a Gamma(alpha + 1) draw times uniform^(1 / alpha). In logarithms, so that small
        alpha, whose draws underflow, still gives weights that add up to 1.
    Args:
        alpha: [..., K], float16/bfloat16/float32/float64, positive. Half precision is drawn in float32.
        generator: source of the draws, on the device of `alpha`.
    Returns:
        weights: [..., K], at least 0, adding up to 1. Differentiable: implicitly through the gamma draws.
    Raises:
        ValueError: alpha without an axis. (Values are not looked at: alpha of 0 or less gives NaN.)
    Backends: torch alone. Deterministic: yes, for one generator state.
    Source: Figurnov et al. 2018, arXiv 1805.08498 (implicit gradients); Marsaglia and Tsang 2000 (small shapes).
    Example:
        >>> w = dirichlet_sample(torch.full((2, 5), 0.1), generator=torch.Generator().manual_seed(0))
        >>> w.sum(-1)
        tensor([1., 1.])
    """
    _check_alpha("dirichlet_sample", alpha)
    wide = alpha if alpha.dtype is torch.float64 else alpha.float()
    uniform = torch.rand(wide.shape, generator=generator, dtype=wide.dtype, device=wide.device)
    gamma = torch._standard_gamma(wide + 1, generator=generator)
    # torch.rand may return 0.
    power = uniform.clamp(min=torch.finfo(wide.dtype).tiny).log() / wide
    return torch.softmax(gamma.log() + power, -1).to(alpha.dtype)


def dirichlet_kl(alpha: Tensor, prior: float | Tensor = 1.1) -> Tensor:
    """KL(Dir(alpha) || Dir(prior)), what keeps the weights of a Dirichlet codebook close to a prior.

    lnG(a0) - sum lnG(a) - lnG(p0) + sum lnG(p) + sum (a - p) (psi(a) - psi(a0)), a0 and p0 the sums of a and p
    Args:
        alpha: [..., K], float16/bfloat16/float32/float64, positive. Half precision is computed in float32.
        prior: one number for all, or a tensor that broadcasts to alpha.
    Returns:
        kl: [...], float32 (float64). Differentiable in both.
    Raises:
        ValueError: alpha without an axis, a prior that is not positive (a number; tensors are not looked at).
    Backends: torch alone. Deterministic: yes.
    Source: the closed form; prior 1.1 as in DicFace, arXiv 2506.13355.
    Example:
        >>> dirichlet_kl(torch.tensor([[1.1, 1.1], [9.0, 1.1]])) > 0
        tensor([False,  True])
    """
    _check_alpha("dirichlet_kl", alpha)
    if not isinstance(prior, Tensor) and not prior > 0:
        _check.fail("dirichlet_kl", "expected a positive `prior`.", prior=prior)
    a = alpha if alpha.dtype is torch.float64 else alpha.float()
    p = torch.as_tensor(prior, dtype=a.dtype, device=a.device).expand_as(a)
    a0, p0 = a.sum(-1), p.sum(-1)
    spread = torch.lgamma(a0) - torch.lgamma(p0) + (torch.lgamma(p) - torch.lgamma(a)).sum(-1)
    return spread + ((a - p) * (torch.digamma(a) - torch.digamma(a0)[..., None])).sum(-1)


def _check_alpha(name: str, alpha: Tensor) -> None:
    if not isinstance(alpha, Tensor) or alpha.dim() == 0 or not alpha.is_floating_point():
        _check.fail(name, "expected floating-point `alpha` of shape [..., K].", alpha=alpha)
