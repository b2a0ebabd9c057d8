"""Named inputs of top_k_mask."""

from __future__ import annotations

import torch

from vidkernels._case import Case


def _random(length: int, count: int):
    def args(g, dtype):
        return torch.randn(length, generator=g).to(dtype), count

    return args


def _tied(length: int, count: int, levels: int):
    """Few different magnitudes: most places are given away by index."""

    def args(g, dtype):
        return torch.randint(-levels, levels + 1, (length,), generator=g).to(dtype), count

    return args


def _strided(g, dtype):
    return torch.randn(67, 3, generator=g).to(dtype)[:, 1], 20


def _extreme(g, dtype):
    info, nan, inf = torch.finfo(dtype), float("nan"), float("inf")
    some = [0.0, -0.0, info.tiny, -info.tiny, info.smallest_normal / 2, 1.0, -1.0, info.max, -info.max, inf, -inf, nan]
    return torch.tensor([*some, -nan, *some[::-1]]).to(dtype), 11


def _narrow(g, dtype):
    """All leading bits agree, so that the last digit decides."""
    return (1 + torch.randint(0, 300, (5000,), generator=g) * torch.finfo(dtype).eps / 4).to(dtype), 1234


def _bytes(scores, count):
    return scores.numel() * scores.element_size(), scores.numel()


CASES = {
    "top_k_mask": [
        Case("tiny", _random(7, 3)),
        Case("odd", _random(1009, 331), bytes=_bytes),
        Case("odd_long", _random(70001, 46001), bytes=_bytes),
        Case("odd_ties", _tied(40003, 17001, 3)),
        Case("odd_all_equal", _tied(9001, 4000, 0)),
        Case("odd_none", _random(131, 0)),
        Case("odd_all", _random(131, 131)),
        Case("odd_one", _random(17, 1)),
        Case("empty", _random(0, 0)),
        Case("strided", _strided),
        Case("extreme", _extreme),
        Case("extreme_narrow", _narrow),
        Case("real_layer", _random(96 * 9 * 384, 96 * 9 * 384 // 2), bytes=_bytes),
        Case("real_decoder", _random(3_200_000, 960_000), bytes=_bytes),
    ],
}
