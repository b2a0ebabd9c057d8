"""Which weights of a layer a subnetwork is made of, and training through that choice."""

from __future__ import annotations

import torch
from torch import Tensor

from vidkernels import _check
from vidkernels.ops.top_k_mask.op import top_k_mask as _top_k_mask

__all__ = ["masked_weight", "top_k_mask"]


def top_k_mask(scores: Tensor, share: float, *, backend: str | None = None) -> Tensor:
    """The share of largest magnitudes among scores: the weights that a subnetwork keeps.

    mask = True at the round(share * N) largest |scores|; of equal ones those with the lowest indices
    Convention: True = kept. Indices count in torch's order of elements. NaN counts as larger than infinity.
    Args:
        scores: [...], N numbers, float16/bfloat16/float32/float64.
        share: from 0 to 1.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        mask: bool, the shape of `scores`; exactly round(share * N) of it are True. Not differentiable; see
        `masked_weight`.
    Raises:
        ValueError: a share outside 0..1, or scores that are no floating tensor.
    Backends: reference, cpu, cuda (sm80+; no synchronisation). float64 runs on the reference. Deterministic: yes.
    Source: Kang et al. 2023, arXiv 2306.11305, section 3 (the top c per cent of the weights' scores).
    Example:
        >>> top_k_mask(torch.tensor([0.5, -2.0, 0.1, 0.5]), 0.5)
        tensor([ True,  True, False, False])
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        _check.fail("top_k_mask", "expected a floating tensor `scores`.", scores=scores)
    if not 0 <= share <= 1:
        _check.fail("top_k_mask", "expected `share` from 0 to 1.", scores=scores, share=share)
    scores = scores.detach()
    mask = _top_k_mask(scores.reshape(-1), round(share * scores.numel()), backend=backend)
    return mask.view(scores.shape)


class _MaskedWeight(torch.autograd.Function):
    """weight * mask; the scores get the gradient that the mask would get."""

    @staticmethod
    def forward(weight, scores, mask):
        return weight * mask

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        weight, scores, mask = ctx.saved_tensors
        to_weight = grad * mask if ctx.needs_input_grad[0] else None
        to_scores = grad * weight * scores.sign() if ctx.needs_input_grad[1] else None
        return to_weight, to_scores, None


def masked_weight(weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """The weights of a subnetwork, such that its choice can be trained.

    out = weight * mask;  d/dweight = grad * mask;  d/dscores = grad * weight * sign(scores)
    Convention: True = kept. The scores' gradient takes the step from magnitude to mask for the identity.
    Args:
        weight: [...], floating.
        scores: the shape of `weight`; what `mask` was chosen by.
        mask: bool, the shape of `weight`.
    Returns:
        out: the shape and dtype of `weight`. Differentiable, once, in `weight` and `scores`.
    Raises:
        ValueError: shapes that differ.
    Backends: torch's own. Deterministic: yes.
    Source: Kang et al. 2023, arXiv 2306.11305, equation 2; Ramanujan et al. 2020, arXiv 1911.13299, equation 5.
    Example:
        >>> weight, scores = torch.tensor([1.0, 2.0]), torch.tensor([0.1, -0.3], requires_grad=True)
        >>> masked_weight(weight, scores, torch.tensor([False, True])).sum().backward()
        >>> scores.grad
        tensor([ 1., -2.])
    """
    if not weight.shape == scores.shape == mask.shape:
        _check.fail("masked_weight", "expected `scores` and `mask` of the shape of `weight`.",
                    weight=weight, scores=scores, mask=mask)  # fmt: skip
    return _MaskedWeight.apply(weight, scores, mask)
