"""Matrix products in half precision: on processors without instructions for them torch's take several times as long as
those of float32 (bfloat16 7.6 times, float16 6.4 times on a Zen 3 processor, 1280 x 1536 x 768)."""

from __future__ import annotations

import functools

import torch

_CHECKS = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


@functools.cache
def _on_cpu(dtype: torch.dtype) -> bool:
    check = getattr(torch.ops.mkldnn, _CHECKS[dtype], None)
    return check is None or bool(check())


def multiplies(dtype: torch.dtype, device: str = "cpu") -> bool:
    """Whether matrices of `dtype` should be multiplied as they are on a kind of device, not in float32."""
    return dtype not in _CHECKS or device != "cpu" or _on_cpu(dtype)
