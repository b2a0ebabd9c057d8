"""The masked reconstruction loss as training code has it, and as a careful person would write it in torch.

Both return a call; what a loader prepares once (normalised float clips, boolean masks) is prepared outside of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vidkernels.functional import masked_patch_loss

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def usual(pred, video, masked_index, pt, ph, pw, convention, mean, std):
    """The training loop of VideoMAE and its descendants: all tubes of a normalised float clip are normalised once
    more, then a boolean mask picks some."""
    if video.dtype is torch.uint8:
        channels = video.shape[4]
        mean, std = ((list(s) * channels)[:channels] for s in (MEAN, STD))
        clip = ((video.float() / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 4, 1, 2, 3).contiguous()
    else:
        clip = video
        mean, std = mean or [0.0] * clip.shape[1], std or [1.0] * clip.shape[1]
    tubes = clip[:, 0, ::pt, ::ph, ::pw].flatten(1).shape
    mask = torch.zeros(tubes, dtype=torch.bool).scatter_(1, masked_index.long(), True)
    return lambda: _usual(pred, clip, mask, (pt, ph, pw), convention, mean, std)


def _usual(pred, clip, mask, tube, convention, mean, std):
    with torch.no_grad():
        shape = (1, clip.shape[1], 1, 1, 1)
        pixels = clip * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
        b, c, t, h, w = pixels.shape
        pt, ph, pw = tube
        cut = pixels.reshape(b, c, t // pt, pt, h // ph, ph, w // pw, pw)
        tubes = cut.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(b, -1, pt * ph * pw, c)
        if convention == "videomae":
            centred = tubes - tubes.mean(dim=-2, keepdim=True)
            target = centred / (tubes.var(dim=-2, unbiased=True, keepdim=True).sqrt() + 1e-6)
        else:
            flat = tubes.flatten(2)
            target = (flat - flat.mean(dim=-1, keepdim=True)) / (flat.var(dim=-1, keepdim=True) + 1.0e-6) ** 0.5
        labels = target.flatten(2)[mask].reshape(b, -1, pt * ph * pw * c)
    return F.mse_loss(input=pred, target=labels.to(pred.dtype))


def careful(pred, video, masked_index, pt, ph, pw, convention, mean, std):
    """Only masked tubes, gathered (as bytes, if the clip is), normalised in place."""
    index = masked_index.long()
    return lambda: _careful(pred, video, index, (pt, ph, pw), convention, mean, std)


def _careful(pred, video, index, tube, convention, mean, std):
    with torch.no_grad():
        pt, ph, pw = tube
        frames = video if video.dtype is torch.uint8 else video.permute(0, 2, 3, 4, 1)
        b, t, h, w, c = frames.shape
        rows, columns = h // ph, w // pw
        cut = frames.unflatten(3, (columns, pw)).unflatten(2, (rows, ph)).unflatten(1, (t // pt, pt))
        when, place = index // (rows * columns), index % (rows * columns)
        batch = torch.arange(b, device=video.device)[:, None]
        tubes = cut.permute(0, 1, 3, 5, 2, 4, 6, 7)[batch, when, place // columns, place % columns]
        tubes = tubes.reshape(b, -1, pt * ph * pw, c).to(torch.promote_types(pred.dtype, torch.float32))
        if video.dtype is torch.uint8:
            tubes.div_(255)
        elif mean:
            tubes.mul_(tubes.new_tensor(std)).add_(tubes.new_tensor(mean))
        if convention == "videomae":
            deviation, centre = torch.std_mean(tubes, dim=2, correction=1, keepdim=True)
            target = tubes.sub_(centre).div_(deviation.add_(1e-6)).flatten(2)
        else:
            flat = tubes.flatten(2)
            variance, centre = torch.var_mean(flat, dim=2, correction=1, keepdim=True)
            target = flat.sub_(centre).div_(variance.add_(1e-6).sqrt_())
    return F.mse_loss(pred, target.to(pred.dtype))


def given_buffer(pred, video, masked_index, pt, ph, pw, convention, mean, std):
    """Ours with the gradient written to the caller's buffer."""
    call = _ours(video, masked_index, pt, ph, pw, convention, mean, std)
    buffer = torch.zeros_like(pred, requires_grad=False)
    return lambda: ((call(pred.detach(), buffer),), (buffer,))


def in_place(pred, video, masked_index, pt, ph, pw, convention, mean, std):
    """Ours with the gradient written over the prediction."""
    call = _ours(video, masked_index, pt, ph, pw, convention, mean, std)
    scratch = pred.detach().clone()
    return lambda: ((call(scratch, scratch),), (scratch,))


def _ours(video, masked_index, pt, ph, pw, convention, mean, std):
    return lambda pred, buffer: masked_patch_loss(
        pred, video, masked_index, tube=(pt, ph, pw), convention=convention, mean=mean or None, std=std or None,
        grad_out=buffer,
    )  # fmt: skip


def moved(pred, video, masked_index, *rest):
    """One pass: pred and the masked pixels are read, the gradient is written."""
    gradient = pred.numel() * pred.element_size()
    return gradient + pred.numel() * video.element_size() + masked_index.numel() * 4, gradient + 4


PEERS = {"masked_patch_loss": {"usual": usual, "careful": careful}}
DIRECT = {"masked_patch_loss": {"ours, given buffer": given_buffer, "ours, in place": in_place}}
BYTES = {"masked_patch_loss": moved}
