"""A codebook that is read softly, by weights from a Dirichlet distribution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels import _check
from vidkernels.functional.quantize.dirichlet import dirichlet_kl, dirichlet_sample

__all__ = ["DirichletCodebook", "DirichletFeature"]


class DirichletFeature(NamedTuple):
    """What a Dirichlet codebook reads.

    Args:
        feature: [..., D], the weighted sum of codes.
        weights: [..., K], at least 0, adding up to 1.
        kl: [...], KL(Dir(alpha) || Dir(prior)) of each position.
    Example:
        >>> DirichletCodebook(2, 4)(torch.zeros(3, 4)).kl.shape
        torch.Size([3])
    """

    feature: Tensor
    weights: Tensor
    kl: Tensor


class DirichletCodebook(nn.Module):
    """Features as random convex combinations of codes: no nearest code, no straight-through gradient.

    alpha = softplus(logits) + floor;  w ~ Dir(alpha) in training, alpha / sum(alpha) otherwise;  feature = w @ codebook

    Args:
        dim: D, size of a code.
        codes: K, size of the codebook.
        floor: least alpha.
        prior: concentration of the symmetric prior that `kl` is measured from.
        codebook: [K, D] to start from (that of a VQ-VAE, say); None: standard normal.
        frozen: keep the codebook as it is: a buffer, not a parameter.
    Example:
        >>> codebook = DirichletCodebook(4, 16)
        >>> feature, weights, kl = codebook(torch.randn(2, 10, 16))
        >>> feature.shape, weights.sum(-1).allclose(torch.ones(2, 10))
        (torch.Size([2, 10, 4]), True)
    """

    def __init__(
        self,
        dim: int,
        codes: int,
        *,
        floor: float = 1e-2,
        prior: float = 1.1,
        codebook: Tensor | None = None,
        frozen: bool = False,
    ):
        super().__init__()
        self.floor, self.prior = floor, prior
        if codebook is None:
            codebook = torch.randn(codes, dim)
        if codebook.shape != (codes, dim):
            _check.fail("DirichletCodebook", "expected `codebook` of shape [codes, dim].",
                        codebook=codebook, codes=codes, dim=dim)  # fmt: skip
        codebook = codebook.detach().clone()
        if frozen:
            self.register_buffer("codebook", codebook)
        else:
            self.codebook = nn.Parameter(codebook)

    def forward(self, logits: Tensor, generator: torch.Generator | None = None) -> DirichletFeature:
        """Read the codebook at [..., K] logits, one for each code.

        Args: logits: float16/bfloat16/float32. generator: source of the draws in training.
        """
        if logits.shape[-1:] != self.codebook.shape[:1]:
            _check.fail("DirichletCodebook", f"expected `logits` of shape [..., {self.codebook.shape[0]}].",
                        logits=logits)  # fmt: skip
        alpha = F.softplus(logits if logits.dtype is torch.float64 else logits.float()) + self.floor
        if self.training:
            weights = dirichlet_sample(alpha, generator=generator)
        else:
            weights = alpha / alpha.sum(-1, keepdim=True)
        feature = weights.to(self.codebook.dtype) @ self.codebook
        return DirichletFeature(feature.to(logits.dtype), weights, dirichlet_kl(alpha, self.prior))

    def extra_repr(self) -> str:
        codes, dim = self.codebook.shape
        return f"{dim}, {codes}, floor={self.floor}, prior={self.prior}"
