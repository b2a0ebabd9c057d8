"""What people run today for the masked reconstruction loss, and what a careful person would write in torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def usual(
    pred: torch.Tensor,
    video: torch.Tensor,
    mask: torch.Tensor,
    tube: tuple[int, int, int] = (2, 16, 16),
    mean: tuple[float, ...] = (0.485, 0.456, 0.406),
    std: tuple[float, ...] = (0.229, 0.224, 0.225),
) -> torch.Tensor:
    """The training loop of VideoMAE and its descendants: all tubes are normalised, then a boolean mask picks some.

    Args:
        pred: [B, Nm, D] float.
        video: [B, C, T, H, W] float, normalised, as the loader gives it.
        mask: [B, N] bool, True = masked, Nm a row.
        tube: frames, height, width.
        mean: per channel.
        std: per channel.
    """
    with torch.no_grad():
        shape = (1, len(mean), 1, 1, 1)
        pixels = video * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
        b, c, t, h, w = pixels.shape
        pt, ph, pw = tube
        cut = pixels.reshape(b, c, t // pt, pt, h // ph, ph, w // pw, pw)
        tubes = cut.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(b, -1, pt * ph * pw, c)
        centred = tubes - tubes.mean(dim=-2, keepdim=True)
        target = centred / (tubes.var(dim=-2, unbiased=True, keepdim=True).sqrt() + 1e-6)
        labels = target.flatten(2)[mask].reshape(b, -1, pt * ph * pw * c)
    return F.mse_loss(input=pred, target=labels)


def careful(
    pred: torch.Tensor, video: torch.Tensor, masked_index: torch.Tensor, tube: tuple[int, int, int] = (2, 16, 16)
) -> torch.Tensor:
    """Only masked tubes, gathered as bytes, normalised in place.

    Args:
        pred: [B, Nm, D] float.
        video: [B, T, H, W, C] uint8.
        masked_index: [B, Nm] int64.
        tube: frames, height, width.
    """
    with torch.no_grad():
        b, t, h, w, c = video.shape
        pt, ph, pw = tube
        rows, columns = h // ph, w // pw
        cut = video.view(b, t // pt, pt, rows, ph, columns, pw, c).permute(0, 1, 3, 5, 2, 4, 6, 7)
        when, place = masked_index // (rows * columns), masked_index % (rows * columns)
        batch = torch.arange(b, device=video.device)[:, None]
        tubes = cut[batch, when, place // columns, place % columns].reshape(b, -1, pt * ph * pw, c)
        tubes = tubes.to(pred.dtype).div_(255)
        deviation, centre = torch.std_mean(tubes, dim=2, correction=1, keepdim=True)
        target = tubes.sub_(centre).div_(deviation.add_(1e-6)).flatten(2)
    return F.mse_loss(pred, target)
