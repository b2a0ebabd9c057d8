"""Named inputs of token_mask and score_mask. Neither has a floating result, so one dtype is enough."""

from __future__ import annotations

import math

import torch

from vidkernels._case import Case

_INT = (torch.float32,)
_BLOCKS = (3, 2, 3, 3, 2, 2, 2)


def _seed(g: torch.Generator) -> torch.Tensor:
    return torch.randint(2**63 - 1, (1,), generator=g)


def _mask(kind, batch, grid, count, blocks=()):
    def args(g, dtype):
        return _seed(g), None, kind, batch, list(grid), count, count, list(blocks)

    return args


def _ragged(kind, batch, grid, low, high, blocks=()):
    def args(g, dtype):
        counts = torch.randint(low, high + 1, (batch,), generator=g, dtype=torch.int32)
        return _seed(g), counts, kind, batch, list(grid), low, high, list(blocks)

    return args


def _scores(batch, tokens, groups, count, largest=True, levels=None):
    def args(g, dtype):
        scores = torch.randn(batch, tokens, generator=g)
        if levels is not None:
            scores = torch.randint(levels, scores.shape, generator=g) / levels
        return scores, None, groups, count, count, largest

    return args


def _extreme(g, dtype):
    inf, nan = math.inf, math.nan
    row = [0.0, -0.0, inf, -inf, nan, 3e38, -3e38, 1e-45, -1e-45, nan, 0.0, inf]
    return torch.tensor([row, row[::-1], [0.0] * 12]), None, 1, 6, 6, True


def _ragged_scores(g, dtype):
    counts = torch.tensor([0, 31, 7], dtype=torch.int32)
    return torch.randn(3, 62, generator=g), counts, 2, 0, 31, False


def _bytes(seed, counts, kind, batch, grid, low, high, blocks):
    return seed.numel() * 8 + (0 if counts is None else counts.numel() * 4), batch * math.prod(grid) * 4


def _score_bytes(scores, counts, groups, low, high, largest):
    return scores.numel() * 4 + (0 if counts is None else counts.numel() * 4), scores.numel() * 4


CASES = {
    "token_mask": [
        Case("tiny", _mask("tube", 2, (2, 3, 3), 4), dtypes=_INT, bytes=_bytes),
        Case("tiny_random", _mask("random", 2, (2, 3, 3), 11), dtypes=_INT, bytes=_bytes),
        Case("tiny_running_cell", _mask("running_cell", 2, (5, 3, 3), 4), dtypes=_INT, bytes=_bytes),
        Case("tiny_block", _mask("block", 2, (2, 4, 5), 9, _BLOCKS), dtypes=_INT, bytes=_bytes),
        Case("odd", _mask("tube", 3, (3, 7, 9), 56), dtypes=_INT, bytes=_bytes),
        Case("odd_random", _mask("random", 5, (3, 7, 13), 251), dtypes=_INT, bytes=_bytes),
        Case("odd_running_cell", _mask("running_cell", 3, (5, 7, 3), 10), dtypes=_INT, bytes=_bytes),
        Case("odd_line", _mask("running_cell", 2, (4, 1, 7), 3), dtypes=_INT, bytes=_bytes),
        Case("odd_block", _mask("block", 3, (3, 7, 9), 40, _BLOCKS), dtypes=_INT, bytes=_bytes),
        Case("odd_ragged", _ragged("tube", 5, (3, 7, 9), 0, 60), dtypes=_INT, bytes=_bytes),
        Case("odd_ragged_cell", _ragged("running_cell", 3, (3, 5, 3), 2, 15), dtypes=_INT, bytes=_bytes),
        Case("empty_batch", _mask("random", 0, (2, 3, 3), 5), dtypes=_INT),
        Case("empty_mask", _mask("tube", 2, (2, 3, 3), 0), dtypes=_INT),
        Case("extreme_all", _mask("tube", 2, (2, 3, 3), 9), dtypes=_INT),
        Case("real_videomae", _mask("tube", 24, (8, 14, 14), 176), dtypes=_INT, bytes=_bytes),
        Case("real_mae_st", _mask("random", 24, (8, 14, 14), 1412), dtypes=_INT, bytes=_bytes),
        Case("real_videomae_v2", _mask("running_cell", 24, (8, 14, 14), 98), dtypes=_INT, bytes=_bytes),
    ],
    "score_mask": [
        Case("tiny", _scores(2, 6, 1, 2), dtypes=_INT, bytes=_score_bytes),
        Case("odd", _scores(3, 63, 1, 40), dtypes=_INT, bytes=_score_bytes),
        Case("odd_lowest", _scores(3, 7 * 37, 7, 11, largest=False), dtypes=_INT, bytes=_score_bytes),
        Case("odd_ties", _scores(3, 521, 1, 300, levels=4), dtypes=_INT, bytes=_score_bytes),
        Case("odd_ragged", _ragged_scores, dtypes=_INT, bytes=_score_bytes),
        Case("empty", _scores(0, 6, 1, 2), dtypes=_INT),
        Case("extreme", _extreme, dtypes=_INT),
        Case("real_everest", _scores(24, 1568, 1, 1412), dtypes=_INT, bytes=_score_bytes),
    ],
}
