"""What people run instead of flow_warp_aggregate.

16-bit features are warped in float32, as autocast does: coordinates of 16 bits are off by whole pixels, and with them
torch 2.13's grid_sample gives NaN on the CPU.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def _grid(flows):
    """Flows as grid_sample wants them: places from -1 to 1, the last axis (x, y)."""
    height, width = flows.shape[3:]
    y = torch.arange(height, device=flows.device, dtype=flows.dtype)[:, None]
    x = torch.arange(width, device=flows.device, dtype=flows.dtype)
    return torch.stack(
        [(flows[:, :, 0] + x) * (2 / max(1, width - 1)) - 1, (flows[:, :, 1] + y) * (2 / max(1, height - 1)) - 1], -1
    )


def usual(features, flows, logits):
    """FFNeRV's way: one neighbour after the other through F.grid_sample, torch's usual order, stack, softmax, sum."""
    if min(features.shape[3:]) < 2 or features.numel() == 0:
        return None
    features = features.contiguous()

    def run():
        grid, wide = _grid(flows), features.float()
        warped = torch.stack(
            [
                F.grid_sample(wide[:, k], grid[:, k], padding_mode="border", align_corners=True)
                for k in range(features.shape[1])
            ],
            1,
        )
        return (logits.softmax(1)[:, :, None] * warped).sum(1).to(features.dtype)

    return run


def careful(features, flows, logits):
    """All neighbours in one call, and the blend as one batched product."""
    if min(features.shape[3:]) < 2 or features.numel() == 0:
        return None
    batch, neighbours = features.shape[:2]
    features = features.contiguous().flatten(0, 1)

    def run():
        grid = _grid(flows).flatten(0, 1)
        warped = F.grid_sample(features.float(), grid, padding_mode="border", align_corners=True)
        blended = torch.einsum("bkhw,bkchw->bchw", logits.softmax(1), warped.unflatten(0, (batch, neighbours)))
        return blended.to(features.dtype)

    return run


def same(outputs, expected, args) -> str | None:
    """grid_sample scales coordinates to -1..1 and back, which costs digits of them: about the width times 1e-7."""
    outputs, expected = (o if isinstance(o, tuple | list) else (o,) for o in (outputs, expected))
    dtype, outputs, expected = outputs[0].dtype, outputs[0].detach().double(), expected[0].detach().double()
    error = float((outputs - expected).abs().max() / expected.abs().max())
    allowed = 2e-4 if dtype is torch.float32 else 1.2e-2
    return None if error < allowed else f"relative error {error:.1e}"


PEERS = {"flow_warp_aggregate": {"usual": usual, "careful": careful}}
SAME = {"flow_warp_aggregate": same}
