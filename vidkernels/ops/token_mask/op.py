"""token_mask and score_mask: one engine from a field of scores to index lists with an exact count.

Both take the masked count of one selection: `high` (= `low`), or `counts` [B] int32 with low <= counts <= high, in
which case rows are packed and padded with -1 at the end.
"""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.token_mask import reference


def _widths(groups: int, length: int, repeat: int, low: int, high: int) -> tuple[int, int]:
    return groups * repeat * (length - low), groups * repeat * high


def _fake(seed, counts, kind, batch, grid, low, high, blocks):
    visible, masked = _widths(*reference.layout(kind, grid), low, high)
    return (
        seed.new_empty((batch, visible), dtype=torch.int32),
        seed.new_empty((batch, masked), dtype=torch.int32),
    )


def _native(kernel, seed, counts, kind, batch, grid, low, high, blocks):
    visible, masked = _widths(*reference.layout(kind, grid), low, high)
    device = seed.device
    visible_index = empty((batch, visible), torch.int32, device)
    masked_index = empty((batch, masked), torch.int32, device)
    counts = None if counts is None else counts.contiguous()
    kernel(seed.contiguous(), counts, kind, list(grid), low, high, list(blocks), visible_index, masked_index)
    return visible_index, masked_index


def _fake_scores(scores, counts, groups, low, high, largest):
    batch, tokens = scores.shape
    visible, masked = _widths(groups, tokens // groups, 1, low, high)
    return (
        scores.new_empty((batch, visible), dtype=torch.int32),
        scores.new_empty((batch, masked), dtype=torch.int32),
    )


def _native_scores(kernel, scores, counts, groups, low, high, largest):
    batch, tokens = scores.shape
    visible, masked = _widths(groups, tokens // groups, 1, low, high)
    visible_index = empty((batch, visible), torch.int32, scores.device)
    masked_index = empty((batch, masked), torch.int32, scores.device)
    counts = None if counts is None else counts.contiguous()
    kernel(scores.contiguous(), counts, groups, low, high, largest, visible_index, masked_index)
    return visible_index, masked_index


token_mask = define(
    OpSpec(
        name="token_mask",
        schema=(
            "(Tensor seed, Tensor? counts, str kind, SymInt batch, SymInt[] grid, SymInt low, SymInt high,"
            " int[] blocks) -> (Tensor, Tensor)"
        ),
        reference=reference.token_mask,
        fake=_fake,
        native=_native,
    )
)

score_mask = define(
    OpSpec(
        name="score_mask",
        schema=(
            "(Tensor scores, Tensor? counts, SymInt groups, SymInt low, SymInt high, bool largest) -> (Tensor, Tensor)"
        ),
        reference=reference.score_mask,
        fake=_fake_scores,
        native=_native_scores,
    )
)
