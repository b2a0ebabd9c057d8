"""Moving some tokens, or some channels, to other frames: time for free."""

from __future__ import annotations

import torch

from vidkernels import _check

__all__ = ["temporal_shift", "token_roll"]


def token_roll(x: torch.Tensor, share: float = 0.25, *, shift: int = 1) -> torch.Tensor:
    """Move a share of every frame's tokens to the next frame, those of the last frame to the first.

    out[b, t, n] = x[b, (t - shift) mod T, n] for n < round(share * N), else x[b, t, n]
    Convention: the first tokens of a frame travel; rolling with -shift is the inverse, T rolls by 1 are the identity.
    Args:
        x: [B, T, N, D], any dtype: visual tokens only, without class or text tokens.
        share: of the tokens that travel, in [0, 1].
        shift: frames to travel; negative is backwards in time.
    Returns:
        out: [B, T, N, D], a permutation of the tokens. Differentiable.
    Raises:
        ValueError: `x` has not four axes, `share` outside [0, 1].
    Backends: torch. Deterministic: yes.
    Source: Wang et al. 2022, arXiv 2203.07303, section 3.2 (temporal token rolling).
    Example:
        >>> x = torch.arange(6).reshape(1, 3, 2, 1)
        >>> token_roll(x, 0.5).flatten().tolist()
        [4, 1, 0, 3, 2, 5]
    """
    _check.is_tensor("token_roll", "x", x, "[B, T, N, D]")
    if not 0 <= share <= 1:
        _check.fail("token_roll", "expected `share` in [0, 1].", share=share)
    count = round(share * x.shape[2])
    if count == 0 or x.shape[1] == 0:
        return x
    return torch.cat([x[:, :, :count].roll(shift, 1), x[:, :, count:]], 2)


def temporal_shift(
    x: torch.Tensor, share: float = 0.125, *, cyclic: bool = False, causal: bool = False
) -> torch.Tensor:
    """Move a share of the channels one frame forwards in time and as many one frame backwards (TSM).

    out[b, t, n, c] = x[b, t - 1, n, c] for the first round(share * D) channels, x[b, t + 1, n, c] for the next as many,
    x[b, t, n, c] for the rest
    Convention: what comes from outside the clip is 0, or with `cyclic` the other end.
    Args:
        x: [B, T, N, D], any dtype.
        share: of the channels that travel in one direction, in [0, 0.5].
        cyclic: close the clip to a ring, which makes this a permutation.
        causal: only forwards in time, for streams (then `share` in [0, 1]).
    Returns:
        out: [B, T, N, D]. Differentiable.
    Raises:
        ValueError: `x` has not four axes, `share` out of range.
    Backends: torch. Deterministic: yes.
    Source: Lin et al. 2018, arXiv 1811.08383, section 3; differs: tokens instead of feature maps.
    Example:
        >>> x = torch.tensor([[[[1, 2, 3]], [[4, 5, 6]]]])
        >>> temporal_shift(x, 1 / 3).flatten().tolist()
        [0, 5, 3, 1, 0, 6]
    """
    _check.is_tensor("temporal_shift", "x", x, "[B, T, N, D]")
    if not 0 <= share <= (1 if causal else 0.5):
        _check.fail("temporal_shift", "expected `share` in [0, 0.5], or [0, 1] if causal.", share=share, causal=causal)
    count = round(share * x.shape[3])
    if count == 0 or x.shape[1] == 0:
        return x
    forwards = _moved(x[..., :count], 1, cyclic)
    if causal:
        return torch.cat([forwards, x[..., count:]], 3)
    # round(0.5 * D) twice would be more than an odd D.
    stop = min(2 * count, x.shape[3])
    return torch.cat([forwards, _moved(x[..., count:stop], -1, cyclic), x[..., stop:]], 3)


def _moved(x: torch.Tensor, step: int, cyclic: bool) -> torch.Tensor:
    if cyclic:
        return x.roll(step, 1)
    zeros = torch.zeros_like(x[:, :1])
    return torch.cat([zeros, x[:, :-1]] if step == 1 else [x[:, 1:], zeros], 1)
