"""Pictures made of what their neighbours show, moved into place."""

from __future__ import annotations

import torch
from torch import Tensor

from vidkernels import _check
from vidkernels.ops.flow_warp_aggregate.op import flow_warp_aggregate as _flow_warp_aggregate

__all__ = ["flow_warp_aggregate"]

_MOST_NEIGHBOURS = 16


def flow_warp_aggregate(features: Tensor, flows: Tensor, logits: Tensor, *, backend: str | None = None) -> Tensor:
    """Features of K neighbour frames, each warped backwards by its flow, blended by a softmax per pixel.

    out[y, x] = sum over k of softmax(logits)[k, y, x] * bilinear(features[k], x + flow_x[k, y, x], y + flow_y[k, y, x])
    Convention: flows count pixels, x before y, from a pixel of the output to where the neighbour shows it. Outside, the
        border repeats. Features that are channels_last in memory ([B, K, H, W, C]) are used as they are, others copied.
    Args:
        features: [B, K, C, H, W], float16/bfloat16/float32/float64; K at most 16.
        flows: [B, K, 2, H, W], floating. A NaN points beyond the left or upper border.
        logits: [B, K, H, W], floating; a NaN makes its pixel NaN.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        out: [B, C, H, W], channels_last, the dtype of `features`. Differentiable, once, in all three. The gradient of a
        flow component that leads outside is 0.
    Raises:
        ValueError: shapes that do not fit, no neighbour or more than 16.
    Backends: reference, cpu, cuda (sm80+). Flows and logits are computed in float32, float64 features on the reference.
        Deterministic: forward yes, backward yes (on the CPU in the order of the pixels; on a GPU in integers, where one
        gradient that is not finite makes those of its image's features NaN).
    Source: Lee et al. 2022, arXiv 2212.12294, section 3.3 (flow-guided aggregation).
    Example:
        >>> features = torch.arange(4.0).view(1, 1, 1, 1, 4)
        >>> flows = torch.zeros(1, 1, 2, 1, 4)
        >>> flows[:, :, 0] = 0.5
        >>> flow_warp_aggregate(features, flows, torch.zeros(1, 1, 1, 4)).flatten()
        tensor([0.5000, 1.5000, 2.5000, 3.0000])
    """
    name = "flow_warp_aggregate"
    _check.is_tensor(name, "features", features, "[B, K, C, H, W]")
    batch, neighbours, _channels, height, width = features.shape
    if not 1 <= neighbours <= _MOST_NEIGHBOURS:
        _check.fail(name, f"expected 1 to {_MOST_NEIGHBOURS} neighbours.", features=features)
    if flows.shape != (batch, neighbours, 2, height, width):
        _check.fail(name, "expected `flows` of shape [B, K, 2, H, W].", features=features, flows=flows)
    if logits.shape != (batch, neighbours, height, width):
        _check.fail(name, "expected `logits` of shape [B, K, H, W].", features=features, logits=logits)
    wide = torch.float64 if features.dtype is torch.float64 else torch.float32
    return _flow_warp_aggregate(features, flows.to(wide), logits.to(wide), backend=backend)
