"""Pictures moved along a flow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["warped"]


def warped(pictures: Tensor, flow: Tensor) -> Tensor:
    """[B, 3, H, W]: at each pixel what `pictures` hold `flow` [B, 2, H, W] pixels (x, y) away, the border repeated."""
    height, width = pictures.shape[-2:]
    y = torch.arange(height, device=flow.device).view(-1, 1) + flow[:, 1] + 0.5
    x = torch.arange(width, device=flow.device) + flow[:, 0] + 0.5
    place = torch.stack([x * (2 / width) - 1, y * (2 / height) - 1], -1)
    return F.grid_sample(pictures, place, align_corners=False, padding_mode="border")
