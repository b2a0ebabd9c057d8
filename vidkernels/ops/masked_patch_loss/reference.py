"""Plain torch, the oracle."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def masked_patch_loss(
    pred: torch.Tensor,
    video: torch.Tensor,
    masked_index: torch.Tensor,
    pt: int,
    ph: int,
    pw: int,
    convention: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> torch.Tensor:
    target = patch_target(pred, video, masked_index, pt, ph, pw, convention, mean, std)
    loss = (pred.to(target.dtype) - target).square().sum() / max(1, pred.numel())
    return loss if pred.dtype is torch.float64 else loss.float()


def masked_patch_loss_backward(
    grad_loss: torch.Tensor,
    pred: torch.Tensor,
    video: torch.Tensor,
    masked_index: torch.Tensor,
    pt: int,
    ph: int,
    pw: int,
    convention: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> torch.Tensor:
    target = patch_target(pred, video, masked_index, pt, ph, pw, convention, mean, std)
    scale = grad_loss.to(target.dtype) * 2 / max(1, pred.numel())
    return ((pred.to(target.dtype) - target) * scale).to(pred.dtype)


def patch_target(
    pred: torch.Tensor,
    video: torch.Tensor,
    masked_index: torch.Tensor,
    pt: int,
    ph: int,
    pw: int,
    convention: str,
    mean: Sequence[float],
    std: Sequence[float],
) -> torch.Tensor:
    """Normalised pixels of the masked tubes, [B, Nm, pt * ph * pw * C] in (t, y, x, channel) order."""
    dtype = torch.float64 if torch.float64 in (pred.dtype, video.dtype) else torch.float32
    tubes = _masked_tubes(video, masked_index, pt, ph, pw).to(dtype)
    if video.dtype is torch.uint8:
        tubes = tubes / 255
    elif mean:
        tubes = tubes * tubes.new_tensor(std) + tubes.new_tensor(mean)
    if convention == "videomae":
        deviation, centre = torch.std_mean(tubes, dim=2, keepdim=True, correction=1)
        target = (tubes - centre) / (deviation + 1e-6)
    else:
        variance, centre = torch.var_mean(tubes, dim=(2, 3), keepdim=True, correction=1)
        target = (tubes - centre) / (variance + 1e-6).sqrt()
    return target.flatten(2)


def _masked_tubes(video: torch.Tensor, masked_index: torch.Tensor, pt: int, ph: int, pw: int) -> torch.Tensor:
    """[B, Nm, pt * ph * pw, C] in the dtype of the video."""
    frames = video if video.dtype is torch.uint8 else video.permute(0, 2, 3, 4, 1)
    b, t, h, w, c = frames.shape
    tubes = frames.reshape(b, t // pt, pt, h // ph, ph, w // pw, pw, c).permute(0, 1, 3, 5, 2, 4, 6, 7)
    tubes = tubes.reshape(b, (t // pt) * (h // ph) * (w // pw), pt * ph * pw, c)
    return torch.gather(tubes, 1, masked_index.long()[..., None, None].expand(-1, -1, *tubes.shape[2:]))
