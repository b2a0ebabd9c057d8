"""Moving tokens between the full grid and the visible set."""

from __future__ import annotations

import torch

from vidkernels import _check
from vidkernels.ops.gather_tokens.op import gather_tokens as _gather


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
