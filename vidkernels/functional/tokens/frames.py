"""The k best frames in time order, as an index or as a matrix that gradients pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vidkernels import _check

__all__ = ["top_k_frames", "top_k_selection"]


def top_k_frames(score: Tensor, k: int, *, mask: Tensor | None = None) -> Tensor:
    """Frames (or tokens) with the k highest scores, in time order.

    Convention: of equal scores the earliest wins.
    Args:
        score: [..., T], floating point.
        k: how many, at most T.
        mask: [..., T] bool, True = may be chosen; None: all may.
    Returns:
        index: [..., k] int64, ascending; -1, at the end, where the mask leaves fewer than k. Not differentiable: see
            `top_k_selection`.
    Raises:
        ValueError: k outside 0 .. T; a NaN score (found on the CPU in eager mode; elsewhere it counts as the lowest).
    Backends: reference (plain torch: one sort). Deterministic: yes.
    Source: Yu et al. 2023, arXiv 2305.06988, section 3.1 (key frames keep their order).
    Example:
        >>> top_k_frames(torch.tensor([0.1, 0.9, 0.3, 0.8]), 2).tolist()
        [1, 3]
    """
    index = _best(_checked("top_k_frames", score, k, mask), k)
    return torch.where(index < score.shape[-1], index, -1)


def top_k_selection(
    score: Tensor,
    k: int,
    *,
    method: str = "straight_through",
    mask: Tensor | None = None,
    temperature: float = 1.0,
    sigma: float = 0.05,
    samples: int = 100,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The choice of `top_k_frames` as a matrix whose rows pick frames, with a gradient for the scores.

    straight_through: row j is one-hot at the j-th chosen frame; its gradient is that of a softmax of
        score / temperature over that frame and those not chosen, so a chosen frame competes with what it kept out.
    perturbed: the mean one-hot matrix over scores with Gaussian noise of deviation sigma; its gradient is estimated
        from the same draws, E[choice(score + sigma Z) Z] / sigma. Noise comes in pairs Z, -Z.
    Convention: use it as `top_k_selection(score, k) @ x` with x [..., T, D].
    Args:
        score: [..., T], floating point.
        k: how many, at most T.
        method: "straight_through" or "perturbed".
        mask: [..., T] bool, True = may be chosen; None: all may.
        temperature: of the straight-through softmax.
        sigma: deviation of the noise, in units of the score.
        samples: number of noisy scores, rounded up to an even number.
        generator: source of the noise; None uses torch's default one.
    Returns:
        selection: [..., k, T], the dtype of `score`, rows in time order that sum to 1 (to 0 where the mask leaves too
            few frames). Differentiable in `score`.
    Raises:
        ValueError: k outside 0 .. T, an unknown method, sigma, temperature or samples not above 0, a NaN score.
    Backends: reference (plain torch; memory samples x T per row of scores). Deterministic: yes, given the generator.
    Source: Berthet et al. 2020, arXiv 2002.08676, equations 2 and 6; Cordonnier et al. 2021, arXiv 2104.03059 (sorted
        top-k); straight-through: Bengio et al. 2013, arXiv 1308.3432.
    Example:
        >>> top_k_selection(torch.tensor([0.1, 0.9, 0.3, 0.8]), 2)
        tensor([[0., 1., 0., 0.],
                [0., 0., 0., 1.]])
    """
    name = "top_k_selection"
    if method not in ("straight_through", "perturbed"):
        _check.fail(name, f"expected `method` 'straight_through' or 'perturbed', got {method!r}.")
    if temperature <= 0 or sigma <= 0 or samples < 1:
        _check.fail(name, "expected `temperature`, `sigma` and `samples` above 0.",
                    temperature=temperature, sigma=sigma, samples=samples)  # fmt: skip
    score = _checked(name, score, k, mask)
    if method == "perturbed":
        return _perturbed(score, k, sigma, samples, generator)
    length = score.shape[-1]
    index = _best(score, k)
    hot = _one_hot(index, length, score.dtype)
    taken = hot.sum(-2, keepdim=True)
    rivals = torch.where(taken - hot > 0, -torch.inf, score.unsqueeze(-2) / temperature)
    # A row with no frame at all has nothing to compete for.
    rivals = torch.where(index[..., None] < length, rivals, 0)
    soft = rivals.softmax(-1) * (index < length).unsqueeze(-1)
    return hot + (soft - soft.detach())


def _perturbed(score: Tensor, k: int, sigma: float, samples: int, generator: torch.Generator | None) -> Tensor:
    length, half = score.shape[-1], -(-samples // 2)
    dtype = torch.promote_types(score.dtype, torch.float32)
    noise = torch.randn(half, *score.shape, generator=generator, device=score.device, dtype=dtype)
    noise = torch.cat([noise, -noise])
    wide = score.to(dtype)
    index = _best(wide.detach() + sigma * noise, k)  # [S, ..., k]
    # A factor that is exactly 1 and whose gradient is Z / sigma: the score function of the noise.
    push = (noise / sigma * torch.where(wide.isfinite(), wide, 0)).sum(-1, keepdim=True)
    weight = (1 + (push - push.detach())) / (2 * half)
    total = wide.new_zeros(*score.shape[:-1], k, length + 1)
    index = index.movedim(0, -1)  # [..., k, S]
    weight = weight.movedim(0, -1).expand_as(index)
    return total.scatter_add(-1, index, weight)[..., :length].to(score.dtype)


def _checked(name: str, score: Tensor, k: int, mask: Tensor | None) -> Tensor:
    """Scores with -inf where nothing may be chosen."""
    if not isinstance(score, Tensor) or score.dim() < 1 or not score.is_floating_point():
        _check.fail(name, "expected `score` [..., T], floating point.", score=score)
    if not 0 <= k <= score.shape[-1]:
        _check.fail(name, "expected `k` between 0 and the number of frames.", score=score, k=k)
    if mask is not None and (mask.shape != score.shape or mask.dtype is not torch.bool):
        _check.fail(name, "expected `mask` bool of the shape of `score`.", score=score, mask=mask)
    nan = score.isnan()
    if not torch.compiler.is_compiling() and score.device.type == "cpu" and bool(nan.any()):
        rows = nan.reshape(-1, score.shape[-1]).any(1).nonzero()[:5, 0].tolist()
        _check.fail(name, f"expected scores, got NaN in rows {rows} of `score`.", score=score)
    banned = nan if mask is None else nan | ~mask
    return score.masked_fill(banned, -torch.inf)


def _best(score: Tensor, k: int) -> Tensor:
    """Indices of the k highest, ascending; T stands for "none left" and comes last."""
    length = score.shape[-1]
    ordered, index = score.sort(dim=-1, descending=True, stable=True)
    index = torch.where(ordered[..., :k] == -torch.inf, length, index[..., :k])
    return index.sort(dim=-1).values


def _one_hot(index: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    return F.one_hot(index, length + 1)[..., :length].to(dtype)
