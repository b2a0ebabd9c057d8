"""Named inputs of flow_warp_aggregate and its backward."""

from __future__ import annotations

import torch

from vidkernels._case import ROUNDING, Case


def _inputs(batch: int, neighbours: int, channels: int, size: tuple[int, int], reach: float = 3.0, sharp: float = 1.0):
    def args(g, dtype):
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        features = torch.randn(batch, neighbours, *size, channels, generator=g).to(dtype).permute(0, 1, 4, 2, 3)
        # Sixteenths of pixels off their borders, where the gradient of a flow jumps.
        flows = (16 * reach * torch.randn(batch, neighbours, 2, *size, generator=g)).floor().add(0.5).div(16).to(wide)
        return features, flows, sharp * torch.randn(batch, neighbours, *size, generator=g).to(wide)

    return args


def _strided(g, dtype):
    features, flows, logits = _inputs(2, 3, 5, (6, 9))(g, dtype)
    return features.contiguous().flip(1), flows.transpose(0, 1).contiguous().transpose(0, 1), logits[..., :9]


def _far(g, dtype):
    """Flows that lead outside on every side, and logits so far apart that one neighbour is all."""
    features, flows, logits = _inputs(1, 4, 3, (5, 21), reach=30.0, sharp=40.0)(g, dtype)
    flows[0, 0, :, 0, :4] = torch.tensor([1e9, -1e9, 3e38, -3e38], dtype=flows.dtype)
    return features, flows, logits


def _endless(g, dtype):
    features, flows, logits = _inputs(1, 2, 4, (4, 18))(g, dtype)
    flows[0, 0, 0, :2, :3] = torch.tensor([float("inf"), -float("inf"), float("nan")])
    logits[0, 1, 1, 4] = -float("inf")
    return features, flows, logits


def _upstream(make, with_features: bool = True):
    def args(g, dtype):
        features, flows, logits = make(g, dtype)
        batch, _, channels, height, width = features.shape
        grad = torch.randn(batch, height, width, channels, generator=g).to(dtype).permute(0, 3, 1, 2)
        return grad, features, flows, logits, with_features

    return args


def _bytes(features, flows, logits):
    whole = features.numel() * features.element_size()
    return whole + 4 * flows.numel() + 4 * logits.numel(), whole // max(1, features.shape[1])


def _bytes_backward(grad, features, flows, logits, with_features):
    read, written = _bytes(features, flows, logits)
    return read + written, read if with_features else 4 * flows.numel() + 4 * logits.numel()


_INPUTS = {
    "tiny": _inputs(1, 2, 2, (3, 4), 0.6),
    "tiny_one": _inputs(2, 1, 1, (2, 3), 0.4),
    "odd": _inputs(2, 3, 7, (5, 19)),
    "odd_wide": _inputs(1, 4, 37, (7, 17), 8.0),
    "odd_many": _inputs(1, 16, 5, (3, 11)),
    "odd_pixel": _inputs(3, 2, 4, (1, 1)),
    "empty": _inputs(0, 2, 3, (4, 5)),
    "empty_channels": _inputs(2, 2, 0, (4, 5)),
    "strided": _strided,
    "extreme": _far,
    "real_ff_nerv": _inputs(2, 4, 32, (90, 160), 4.0),
    "real_frames": _inputs(1, 2, 3, (360, 640), 6.0),
}

CASES = {
    "flow_warp_aggregate": [
        *(
            Case(name, args, ("features", "flows", "logits"), rtol=ROUNDING, bytes=_bytes)
            for name, args in _INPUTS.items()
        ),
        Case("extreme_endless", _endless, dtypes=(torch.float32, torch.bfloat16), rtol=ROUNDING),
    ],
    "flow_warp_aggregate_backward": [
        *(Case(name, _upstream(args), rtol=ROUNDING, bytes=_bytes_backward) for name, args in _INPUTS.items()),
        *(
            Case(f"{name}_constant", _upstream(_INPUTS[name], False), rtol=ROUNDING, bytes=_bytes_backward)
            for name in ("tiny", "odd", "empty", "real_frames")
        ),
    ],
}
