"""Attention over tokens that stand for several."""

from __future__ import annotations

import functools

import torch
from torch.nn import functional as F

from vidkernels import _check

__all__ = ["proportional_attention"]


def proportional_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    size: torch.Tensor | None = None,
    *,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    kernel: str = "sdpa",
) -> torch.Tensor:
    """Attention in which a merged token counts as often as the tokens that it stands for.

    out = softmax(scale * query key^T + log(size)) value
    Convention: a token of size s is attended to like s equal tokens; size 0 means padding, nobody attends to it. A
        row whose keys are all padding gives zeros.
    Args:
        query: [B, H, M, d], float16/bfloat16/float32/float64.
        key: [B, H, N, d].
        value: [B, H, N, dv].
        size: [B, N], any dtype, values >= 0; None means 1 everywhere. The logarithm is taken in float32 (float64 beside
            float64), so half-precision sizes of any value are fine.
        attn_mask: added to the scores (float) or True where a query may look (bool), as in torch; broadcasts to
            [B, H, M, N].
        dropout_p: of the attention weights.
        scale: of the scores; None means d ** -0.5.
        kernel: "sdpa" (torch.nn.functional.scaled_dot_product_attention) or "flex" (torch's flex_attention, compiled;
            takes neither `attn_mask` nor dropout; for GPUs, as its CPU code cannot be part of a larger torch.compile).
    Returns:
        out: [B, H, M, dv]. Differentiable in query, key, value; in `size` where no size is 0.
    Raises:
        ValueError: sizes that do not fit, an unknown `kernel`, flex with a mask or dropout.
    Backends: torch. On a CPU the bias goes into the fused kernel and costs nothing beside the plain call; on CUDA it is
        rounded to the dtype of `query`, which "flex" avoids. Deterministic as torch's kernels are.
    Source: Bolya et al. 2022, arXiv 2210.09461, equation 1.
    Example:
        >>> query, key, value = torch.randn(3, 1, 2, 4, 8).unbind(0)
        >>> twice = torch.cat([key, key[:, :, :1]], 2), torch.cat([value, value[:, :, :1]], 2)
        >>> size = torch.tensor([[2, 1, 1, 1]])
        >>> out = proportional_attention(query, key, value, size)
        >>> torch.allclose(out, proportional_attention(query, *twice), atol=1e-6)
        True
    """
    name = "proportional_attention"
    for label, tensor in (("query", query), ("key", key), ("value", value)):
        _check.is_tensor(name, label, tensor, "[B, H, N, d]")
    if kernel not in ("sdpa", "flex"):
        _check.fail(name, 'expected `kernel` "sdpa" or "flex".', kernel=kernel)
    bias = None if size is None else log_size(name, size, key)
    if kernel == "flex":
        if attn_mask is not None or dropout_p:
            _check.fail(name, 'kernel="flex" takes neither `attn_mask` nor `dropout_p`.', attn_mask=attn_mask,
                        dropout_p=dropout_p)  # fmt: skip
        return _flex(query, key, value, bias, scale)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=join_masks(bias, attn_mask), dropout_p=dropout_p, scale=scale
    )


def log_size(name: str, size: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """[B, 1, 1, N] bias of the scores, in the dtype that the fused kernels take beside `key`."""
    if not isinstance(size, torch.Tensor) or size.shape != (key.shape[0], key.shape[2]):
        _check.fail(name, "expected `size` of shape [B, N], one number per key.", size=size, key=key,
                    hint="sizes of [B, N, 1] need a squeeze(2).")  # fmt: skip
    wide = torch.float64 if key.dtype is torch.float64 else torch.float32
    bias = size.to(wide).log()
    if key.device.type != "cpu":
        # The fused kernels of a GPU want the bias in the dtype of the query; those of the CPU take float32 beside
        # halves, and bfloat16 would move a weight by up to 2%.
        bias = bias.to(key.dtype)
    return bias[:, None, None, :]


def join_masks(bias: torch.Tensor | None, attn_mask: torch.Tensor | None) -> torch.Tensor | None:
    """One additive mask from the two."""
    if bias is None or attn_mask is None:
        return attn_mask if bias is None else bias
    if attn_mask.dtype is torch.bool:
        return bias.masked_fill(~attn_mask, float("-inf"))
    return bias + attn_mask


@functools.lru_cache(maxsize=2)
def _compiled_flex(device_type: str):
    from torch.nn.attention.flex_attention import flex_attention

    # The CPU's template does not compile for sizes that vary; a GPU's does after the second size.
    return torch.compile(flex_attention, dynamic=False if device_type == "cpu" else None)


def _flex(query, key, value, bias, scale):
    from torch.nn.attention.flex_attention import flex_attention

    def add_bias(score, batch, head, row, column):
        return score + table[batch, column]

    table = None if bias is None else bias[:, 0, 0].to(torch.promote_types(bias.dtype, torch.float32))
    # Not compiled, flex_attention would store every score.
    attend = flex_attention if torch.compiler.is_compiling() else _compiled_flex(query.device.type)
    return attend(query, key, value, score_mod=None if bias is None else add_bias, scale=scale)
