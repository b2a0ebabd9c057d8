"""The reconstruction loss of masked video pretraining."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidkernels import _check
from vidkernels.ops.masked_patch_loss import op as _op

_NAME = "masked_patch_loss"


def masked_patch_loss(
    pred: torch.Tensor,
    video: torch.Tensor,
    masked_index: torch.Tensor,
    *,
    tube: tuple[int, int, int] = (2, 16, 16),
    convention: str = "videomae",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    grad_out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Mean squared error between predicted tubes and the normalised pixels of the masked tubes.

    x      = pixels of one tube, [pt * ph * pw, C], in units of 0..1
    videomae: target = (x - m) / (s + 1e-6)         m, s: mean and unbiased std of each channel of the tube
    mae_st:   target = (x - m) / sqrt(s^2 + 1e-6)   m, s: mean and unbiased std of the whole tube, channels together
    loss   = mean over all B * Nm * pt * ph * pw * C elements of (pred - target)^2
    Convention: tubes count in (t, h, w) raster order; inside a tube the order is (t, y, x, channel), channel fastest,
        for both conventions ("(p0 p1 p2 c)" in VideoMAE, "thwupqc" in MAE-ST). A uint8 video is divided by 255. A
        float video is used as video * std + mean with `mean` and `std` given (the ones it was normalised with) and as
        it is without; they say nothing about a uint8 video. The released MAE-ST code takes its target from normalised
        frames: its 1e-6 is reproduced by a float video without `mean` and `std`.
    Args:
        pred: [B, Nm, pt * ph * pw * C], float16/bfloat16/float32/float64. The decoder's output.
        video: [B, T, H, W, C] uint8 or [B, C, T, H, W] float; T, H and W multiples of the tube; any strides.
        masked_index: [B, Nm], any integer dtype (int32 is used as it is), values in [0, T/pt * H/ph * W/pw).
        tube: frames, height, width of a tube. (1, p, p) for images.
        convention: "videomae" or "mae_st".
        mean: C numbers, per channel, in units of 0..1.
        std: C numbers, likewise.
        grad_out: [B, Nm, pt * ph * pw * C], contiguous, like `pred`. Receives d loss / d pred before the call returns,
            with or without autograd; a backward pass with another upstream gradient than 1 scales it (on a GPU in
            place, so that the graph can be walked once). It may be `pred` itself, which is then consumed: its values
            are gone. Without it large gradients on the CPU come from a pool of reused memory. Not for float16, not
            under torch.compile or torch.func.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        loss: scalar, float32 (float64 for a float64 `pred`). Differentiable in `pred`; the video is data and gets no
            gradient. 0 if there are no masked tubes.
    Raises:
        ValueError: shapes that do not fit each other, a video that the tube does not divide, an unknown convention,
            a statistic of a single pixel, an index outside the grid (found on the CPU; on a GPU such a tube makes the
            loss and its gradient NaN, because looking would stall the stream).
    Backends: reference, cpu, cuda (sm80+), triton (float32 and below). Deterministic: forward yes, backward yes, the
        same bits for any number of threads.
    Source: Tong et al. 2022, arXiv 2203.12602, and Feichtenhofer et al. 2022, arXiv 2205.09113, with the statistics of
        their released training code; differs: only masked tubes are normalised, and no float video is made.
    Example:
        >>> video = torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8)
        >>> pred = torch.full((1, 1, 24), 2.0)
        >>> masked_patch_loss(pred, video, torch.tensor([[3]]), tube=(2, 2, 2))
        tensor(4.)
    """
    _check.is_tensor(_NAME, "pred", pred, "[B, Nm, D]")
    _check.is_tensor(_NAME, "video", video, "[B, T, H, W, C]")
    _check.is_tensor(_NAME, "masked_index", masked_index, "[B, Nm]")
    if masked_index.dtype is not torch.int32:
        masked_index = _check.as_index(_NAME, "masked_index", masked_index)
    pt, ph, pw = tube
    _check_fit(pred, video, masked_index, (pt, ph, pw), convention)
    mean, std = _statistics(video, mean, std)
    rest = (video, masked_index, pt, ph, pw, convention, mean, std)
    if grad_out is None:
        return _op.masked_patch_loss(pred, *rest, backend=backend)
    _check_grad_out(pred, grad_out)
    return _op.loss_into(pred, grad_out, rest, backend)


def _check_fit(
    pred: torch.Tensor, video: torch.Tensor, index: torch.Tensor, tube: tuple[int, int, int], convention: str
) -> None:
    given = {"pred": pred, "video": video, "masked_index": index, "tube": tube}
    if video.dtype is torch.uint8:
        b, t, h, w, c = video.shape
    elif video.is_floating_point():
        b, c, t, h, w = video.shape
    else:
        _check.fail(_NAME, "expected `video` of dtype uint8 or a floating type.", **given)
    if convention not in ("videomae", "mae_st"):
        _check.fail(_NAME, f"expected `convention` to be 'videomae' or 'mae_st', got {convention!r}.")
    pt, ph, pw = tube
    if min(tube) < 1 or t % pt or h % ph or w % pw:
        _check.fail(
            _NAME,
            f"the tube {pt} x {ph} x {pw} does not divide a video of {t} frames, {h} x {w} pixels.",
            hint="crop or pad the video to multiples of the tube, or pick another tube.",
            **given,
        )
    if pt * ph * pw * (c if convention == "mae_st" else 1) < 2:
        _check.fail(_NAME, "an unbiased standard deviation needs at least two pixels.", **given)
    if pred.shape[0] != b or index.shape != pred.shape[:2] or pred.shape[2] != pt * ph * pw * c:
        _check.fail(
            _NAME,
            f"expected `pred` of shape [{b}, Nm, {pt * ph * pw * c}] and `masked_index` of shape [{b}, Nm].",
            hint="uint8 video is [B, T, H, W, C], float video is [B, C, T, H, W].",
            **given,
        )
    if not pred.is_floating_point():
        _check.fail(_NAME, "expected `pred` of a floating dtype.", **given)


def _statistics(
    video: torch.Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    if (mean is None) != (std is None):
        _check.fail(_NAME, "expected both `mean` and `std`, or neither.", mean=mean, std=std)
    if mean is None:
        return [], []
    channels = video.shape[4] if video.dtype is torch.uint8 else video.shape[1]
    if len(mean) != channels or len(std) != channels:
        _check.fail(_NAME, f"expected `mean` and `std` of {channels} numbers each.", video=video, mean=mean, std=std)
    if video.dtype is torch.uint8:
        return [], []
    return [float(m) for m in mean], [float(s) for s in std]


def _check_grad_out(pred: torch.Tensor, grad_out: torch.Tensor) -> None:
    if torch.compiler.is_compiling() or type(grad_out) not in (torch.Tensor, torch.nn.Parameter):
        raise RuntimeError(
            "masked_patch_loss: `grad_out` works in plain eager mode only.\n"
            "HINT: leave it out under torch.compile, torch.func and tensor subclasses: they plan memory themselves."
        )
    if pred.dtype is torch.float16:
        _check.fail(
            _NAME,
            "`grad_out` would lose a float16 gradient: 2 / n times the difference, before any loss scale.",
            hint="use bfloat16, or leave `grad_out` out.",
            pred=pred,
        )
    fits = grad_out.shape == pred.shape and grad_out.dtype is pred.dtype and grad_out.device == pred.device
    if not fits or not grad_out.is_contiguous():
        _check.fail(_NAME, "expected `grad_out` contiguous and like `pred`.", pred=pred, grad_out=grad_out)
