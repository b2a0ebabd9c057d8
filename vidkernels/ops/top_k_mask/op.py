"""top_k_mask: which scores have the largest magnitudes, exactly so many of them."""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.top_k_mask import reference

CHUNK = 4096  # scores of a GPU block, as in csrc/ops/top_k_mask/top_k_mask.h
_COUNTERS = 4 * 256 + 2 * 5


def _fake(scores, count):
    return scores.new_empty(scores.shape, dtype=torch.bool)


def _supports(backend, scores, count):
    if backend != "reference" and scores.dtype is torch.float64:
        return f"the {backend} kernel orders numbers of 32 bits"
    return None


def _native(kernel, scores, count):
    mask, scratch = empty(scores.shape, torch.uint8, scores.device), None
    if kernel.__name__.endswith("_cuda"):
        chunks = -(-scores.shape[0] // CHUNK)
        scratch = torch.empty(_COUNTERS + chunks, dtype=torch.int32, device=scores.device)
    kernel(scores.contiguous(), mask, scratch, count)
    return mask.view(torch.bool)


top_k_mask = define(
    OpSpec(
        name="top_k_mask",
        schema="(Tensor scores, SymInt count) -> Tensor",
        reference=reference.top_k_mask,
        fake=_fake,
        native=_native,
        supports=_supports,
    )
)
