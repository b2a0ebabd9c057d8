"""Moving tokens between the full grid and the visible set."""

from __future__ import annotations

import torch

from vidkernels import _check
from vidkernels.ops.gather_tokens.op import gather_tokens as _gather
from vidkernels.ops.scatter_tokens.op import scatter_tokens as _scatter

_HALVES = (torch.float16, torch.bfloat16)


def gather_tokens(tokens: torch.Tensor, index: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """Pick tokens by index: the visible tokens of a masked clip.

    out[b, k] = tokens[b, index[b, k]]
    Convention: indices count tokens in (t, h, w) raster order; an index may repeat.
    Args:
        tokens: [B, N, D], float16/bfloat16/float32/float64.
        index: [B, K], any integer dtype (int32 is used as it is), values in [0, N).
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        out: [B, K, D], the dtype of `tokens`. Differentiable in `tokens` (twice, and so on).
    Raises:
        ValueError: wrong number of axes, unequal batch sizes, an index outside [0, N) (found on the CPU; on a GPU
            such a row is zeros, because looking would stall the stream).
    Backends: reference, cpu, cuda (sm80+). Deterministic: forward yes, backward yes (repeated rows are added in
        ascending order, in float32).
    Source: He et al. 2022, arXiv 2111.06377, section 3 (shuffle and keep); differs: no shuffle is materialised.
    Example:
        >>> tokens = torch.arange(6.0).reshape(1, 3, 2)
        >>> gather_tokens(tokens, torch.tensor([[2, 0]]))
        tensor([[[4., 5.],
                 [0., 1.]]])
    """
    if not (isinstance(tokens, torch.Tensor) and tokens.dim() == 3):
        _check.is_tensor("gather_tokens", "tokens", tokens, "[B, N, D]")
    if not (isinstance(index, torch.Tensor) and index.dim() == 2):
        _check.is_tensor("gather_tokens", "index", index, "[B, K]")
    if index.dtype is not torch.int32:
        index = _check.as_index("gather_tokens", "index", index)
    if index.shape[0] != tokens.shape[0]:
        _check.fail("gather_tokens", "expected `index` to have the batch size of `tokens`.", tokens=tokens, index=index)
    return _gather(tokens, index, backend=backend)


def scatter_tokens(
    visible: torch.Tensor,
    visible_index: torch.Tensor,
    length: int,
    mask_token: torch.Tensor,
    position: torch.Tensor | None = None,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Put visible tokens back on the grid among mask tokens, and add the position: the input of a masked decoder.

    out[b, n] = (visible[b, k] if visible_index[b, k] == n for some k else mask_token) + position[n]
    Convention: indices count tokens in (t, h, w) raster order; the output is in that order, too.
    Args:
        visible: [B, K, D], float16/bfloat16/float32/float64.
        visible_index: [B, K], any integer dtype (int32 is used as it is), distinct values in [0, N).
        length: N, the tokens of the whole grid.
        mask_token: [D] or [1, 1, D], what stands for a token that is not visible.
        position: [N, D] or [1, N, D] or None. Float32 beside half-precision tokens (autocast) is added in float32 and
            rounded once.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        out: [B, N, D], the dtype of `visible`. Differentiable in `visible`, `mask_token` and `position`.
    Raises:
        ValueError: sizes that do not fit; an index outside [0, N) or named twice (found on the CPU; on a GPU such rows
            are left out, the first of equal ones stays, because looking would stall the stream).
    Backends: reference, cpu, cuda (sm80+). Deterministic: forward yes, backward yes (sums in a fixed order, float32).
    Source: He et al. 2022, arXiv 2111.06377, section 3 (decoder); differs: no concatenation, no unshuffle.
    Example:
        >>> visible = torch.ones(1, 1, 2)
        >>> scatter_tokens(visible, torch.tensor([[1]]), 3, torch.zeros(2)).squeeze(0).tolist()
        [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    """
    name = "scatter_tokens"
    if not isinstance(visible, torch.Tensor) or not isinstance(visible_index, torch.Tensor) or visible.dim() != 3:
        _check.is_tensor(name, "visible", visible, "[B, K, D]")
    if visible_index.dtype is not torch.int32:
        visible_index = _check.as_index(name, "visible_index", visible_index)
    batch, count, dim = visible.shape
    if visible_index.dim() != 2 or visible_index.shape[0] != batch or visible_index.shape[1] != count:
        _check.fail(name, "expected `visible_index` of shape [B, K], as `visible`.",
                    visible=visible, visible_index=visible_index)  # fmt: skip
    if mask_token.dim() != 1:
        mask_token = mask_token.reshape(-1)
    if mask_token.shape[0] != dim:
        _check.fail(name, f"expected `mask_token` of {dim} elements, [D] or [1, 1, D].",
                    visible=visible, mask_token=mask_token)  # fmt: skip
    param_dtype = mask_token.dtype
    if position is not None:
        if position.dim() == 3 and position.shape[0] == 1:
            position = position[0]
        if position.shape != (length, dim):
            _check.fail(name, f"expected `position` of shape [N, D] or [1, N, D] with N = {length}, D = {dim}.",
                        visible=visible, position=position, length=length)  # fmt: skip
        if position.dtype is not param_dtype:
            param_dtype = torch.promote_types(param_dtype, position.dtype)
    # The kernels add parameters of the tokens' dtype, or in float32 beside half-precision tokens.
    if param_dtype is not visible.dtype:
        param_dtype = torch.float32 if visible.dtype in _HALVES else visible.dtype
    if mask_token.dtype is not param_dtype:
        mask_token = mask_token.to(param_dtype)
    if position is not None and position.dtype is not param_dtype:
        position = position.to(param_dtype)
    return _scatter(visible, visible_index, length, mask_token, position, backend=backend)
