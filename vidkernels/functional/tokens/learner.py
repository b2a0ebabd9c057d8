"""Tokens as weighted sums over positions, and back to the grid."""

from __future__ import annotations

import torch

from vidkernels import _check

__all__ = ["fuse_tokens", "pool_tokens"]


def pool_tokens(
    x: torch.Tensor, logits: torch.Tensor, *, activation: str = "softmax", pooling: str = "sum"
) -> torch.Tensor:
    """S tokens as weighted sums over the positions of a grid: the pooling of TokenLearner.

    z[s] = sum over p of A[s, p] x[p];  A = softmax over p of the logits, or their sigmoid; "mean" divides by P.
    Args:
        x: [..., P, C], floating point. Tokens.
        logits: [..., P, S]. One map per token made.
        activation: "softmax" over the positions (TokenLearner v1.1), "sigmoid" (v1), or None: `logits` are the weights.
        pooling: "sum" or "mean" over the positions.
    Returns:
        tokens: [..., S, C], zeros where there is no position. Differentiable in both.
    Raises:
        ValueError: shapes that do not fit, an unknown activation or pooling.
    Backends: reference (plain torch: one batched product). Deterministic: yes.
    Source: Ryoo et al. 2021, arXiv 2106.11297, equation 1.
    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> pool_tokens(x, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), activation=None)
        tensor([[3., 4.],
                [1., 2.]])
    """
    if x.dim() < 2 or logits.shape[:-1] != x.shape[:-1]:
        _check.fail("pool_tokens", "expected `x` [..., P, C] and `logits` [..., P, S].", x=x, logits=logits)
    if pooling not in ("sum", "mean"):
        _check.fail("pool_tokens", f"expected `pooling` 'sum' or 'mean', got {pooling!r}.")
    if activation == "softmax":
        weight = logits.softmax(-2)
    elif activation == "sigmoid":
        weight = logits.sigmoid()
    elif activation is None:
        weight = logits
    else:
        _check.fail("pool_tokens", f"expected `activation` 'softmax', 'sigmoid' or None, got {activation!r}.")
    tokens = weight.transpose(-1, -2).to(x.dtype) @ x
    return tokens / max(x.shape[-2], 1) if pooling == "mean" else tokens


def fuse_tokens(tokens: torch.Tensor, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Spread S tokens over the positions of a grid and add them to what is there: the output of TokenFuser.

    y[p] = x[p] + sum over s of sigmoid(logits[p, s]) tokens[s]
    Args:
        tokens: [..., S, C], floating point.
        x: [..., P, C]. The tokens of the grid.
        logits: [..., P, S].
    Returns:
        y: [..., P, C]. Differentiable in all three.
    Raises:
        ValueError: shapes that do not fit.
    Backends: reference (plain torch: one batched product). Deterministic: yes.
    Source: Ryoo et al. 2021, arXiv 2106.11297, section 2.2.
    Example:
        >>> fuse_tokens(torch.ones(1, 2), torch.zeros(3, 2), torch.zeros(3, 1))[0]
        tensor([0.5000, 0.5000])
    """
    if tokens.shape[-1:] != x.shape[-1:] or logits.shape != (*x.shape[:-1], tokens.shape[-2]):
        _check.fail("fuse_tokens", "expected `tokens` [..., S, C], `x` [..., P, C] and `logits` [..., P, S].",
                    tokens=tokens, x=x, logits=logits)  # fmt: skip
    return x + logits.sigmoid().to(x.dtype) @ tokens
