"""Fitting a network to one video: the published schedule and losses, for every FrameModel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidkernels import _check
from vidkernels.functional.nerv.upsample_conv import upsample_conv_loss
from vidkernels.functional.splatting.frame_loss import frame_loss
from vidkernels.nn.nerv.optim import MultiTensorAdam

from .frame_model import FrameModel

__all__ = ["LOSSES", "FitConfig", "decode_video", "fit_video", "picture_loss"]

LOSSES = {"l2": {"l1": 0.0, "l2": 1.0, "ssim": 0.0}, "l1_ssim": {"l1": 0.7, "l2": 0.0, "ssim": 0.3}}


def picture_loss(pictures: Tensor, frames: Tensor, mask: Tensor | None = None, *, loss: str = "l2") -> Tensor:
    """How pictures [B, 3, H, W] differ from uint8 frames [B, H, W, 3]; what `mask` [B, H, W] covers does not count.

    "l2" is the mean square, "l1_ssim" 0.7 mean |difference| + 0.3 (1 - SSIM).
    Raises:
        ValueError: another loss, or shapes that do not fit.
    """
    if loss not in LOSSES:
        _check.fail("picture_loss", f"expected `loss` to be one of {', '.join(LOSSES)}, got {loss!r}.")
    weight = None if mask is None else (~mask).to(pictures.dtype)
    return frame_loss(pictures.permute(0, 2, 3, 1), frames, weight, **LOSSES[loss])


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast. The defaults are HNeRV's; 300 epochs of its 132 frames are 19 800 steps.

    `warmup`: the share of the steps in which the rate rises from a tenth; then it falls as a cosine to zero.
    """

    steps: int
    batch_size: int = 2
    learning_rate: float = 1e-3
    warmup: float = 0.1
    loss: str = "l2"
    betas: tuple[float, float] = (0.9, 0.999)
    bf16: bool = False

    def learning_rate_at(self, step: int) -> float:
        done = step / self.steps
        if done < self.warmup:
            return self.learning_rate * (0.1 + 0.9 * done / self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))


def fit_video(
    model: FrameModel,
    video: Tensor,
    config: FitConfig,
    *,
    numbers: Sequence[int] | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Fit `model` to a video; returns the loss of every step.

    Every frame is shown once before any is shown again, in an order drawn anew each time.
    Args:
        model: on the device it is to be fitted on.
        video: [T, H, W, 3] uint8.
        config: schedule and loss.
        numbers: which frames to learn, None: all. The others can be asked for later, as times or embeddings.
        mask: [T, H, W] bool, True where a pixel is missing: it is neither shown nor counted.
        generator: of the order, on the CPU.
        callback: called after each step with the number of steps done and the loss.
    Raises:
        ValueError: a video or a mask that does not fit the model.
        FloatingPointError: loss or gradient stopped being finite; the weights are those of the last good step.
    """
    if video.dtype is not torch.uint8 or tuple(video.shape) != (model.frames, *model.size, 3):
        _check.fail("fit_video", f"expected `video` {[model.frames, *model.size, 3]} of uint8.", video=video)
    if mask is not None and (mask.dtype is not torch.bool or mask.shape != video.shape[:3]):
        _check.fail("fit_video", f"expected `mask` {list(video.shape[:3])} of bool.", mask=mask)
    device = next(model.parameters()).device
    known = torch.arange(model.frames) if numbers is None else torch.as_tensor(numbers, dtype=torch.int64)
    batch = min(config.batch_size, len(known))
    optimizer = MultiTensorAdam(model.parameters(), lr=config.learning_rate, betas=config.betas)
    model.train()
    order, losses = known[:0], []
    for step in range(config.steps):
        if len(order) < batch:
            order = known[torch.randperm(len(known), generator=generator)]
        shown, order = order[:batch], order[batch:]
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step)
        shown = shown.to(video.device)
        target = video[shown].to(device)
        hidden = None if mask is None else mask[shown].to(device)
        inputs = [value.to(device) for value in model.inputs(video, shown, mask)]
        loss = _loss(model, inputs, target, hidden, config)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        size = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        value, size = torch.stack([loss.detach(), size]).tolist()
        if not (math.isfinite(value) and math.isfinite(size)):
            raise FloatingPointError(
                f"fit_video: loss or gradient stopped being finite at step {step + 1}.\n  loss          : {value}\n"
                f"  gradient norm : {size}\nHINT: lower the learning rate; the weights are those of step {step}."
            )
        optimizer.step()
        losses.append(value)
        if callback:
            callback(step + 1, value)
    return losses


def _loss(
    model: FrameModel, inputs: Sequence[Tensor], target: Tensor, hidden: Tensor | None, config: FitConfig
) -> Tensor:
    shares = LOSSES[config.loss]
    autocast = torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=config.bf16)
    if model.ends_in_head and not shares["ssim"]:  # the pictures need not be written
        weight = None if hidden is None else (~hidden).float()
        with autocast:
            features, head = model.features(model.encode(*inputs)), model.head
            return upsample_conv_loss(
                features, head.weight, head.bias, target,
                pixel_weight=weight, squash=True, l1=shares["l1"], l2=shares["l2"],
            )  # fmt: skip
    with autocast:
        outputs = model.outputs(*inputs)
    return sum(share * picture_loss(picture, target, hidden, loss=config.loss) for share, picture in outputs)


@torch.no_grad()
def decode_video(
    model: FrameModel, video: Tensor, numbers: Sequence[int] | None = None, *, mask: Tensor | None = None
) -> Tensor:
    """What the model makes of frames `numbers` (None: all) of `video` [T, H, W, 3] uint8: the same layout."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    frames = []
    for number in range(model.frames) if numbers is None else numbers:
        inputs = model.inputs(video, torch.tensor([number], device=video.device), mask)
        picture = model(*(value.to(device) for value in inputs))
        frames.append((picture * 255).round().to(torch.uint8).permute(0, 2, 3, 1).to(video.device))
    model.train(training)
    return torch.cat(frames).contiguous()
