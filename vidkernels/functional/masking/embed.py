"""Patch embedding of the visible tubes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidkernels import _check
from vidkernels.ops.embed_visible_tubes.op import embed_visible_tubes as _embed

_NAME = "embed_visible_tubes"


def _per_channel(name: str, value, channels: int, default: float) -> list[float]:
    if value is None:
        return [default] * channels
    values = value.tolist() if isinstance(value, torch.Tensor) else value
    values = [float(values)] * channels if isinstance(values, int | float) else [float(v) for v in values]
    if len(values) != channels:
        _check.fail(_NAME, f"expected one `{name}` per channel ({channels}), got {len(values)}.", **{name: values})
    return values


def embed_visible_tubes(
    video: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    visible_index: torch.Tensor,
    *,
    tube: Sequence[int] = (2, 16, 16),
    mean: Sequence[float] | torch.Tensor | None = None,
    std: Sequence[float] | torch.Tensor | None = None,
    position: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Patch embedding of the visible tubes of a clip: Conv3d with stride = kernel, evaluated only where it is needed.

    out[b, k] = weight . normalise(tube visible_index[b, k] of clip b) + bias + position[visible_index[b, k]]
    normalise(u) = (u / 255 - mean) / std for uint8 pixels, (x - mean) / std for float pixels
    Convention: tubes are numbered in (t, h, w) raster order; an image is a one-frame clip with tube (1, p, p). The
        normalisation is folded into a copy of the weight, so no float clip is ever made.
    Args:
        video: [B, T, H, W, C] uint8, or [B, C, T, H, W] in the dtype of `weight`. T, H, W are multiples of `tube`.
        weight: [D, C, pt, ph, pw] (a Conv3d weight), float16/bfloat16/float32/float64.
        bias: [D] or None, the dtype of `weight`.
        visible_index: [B, Nv], any integer dtype, values in [0, N), N = (T/pt)(H/ph)(W/pw).
        tube: (pt, ph, pw), frames, rows and columns of one tube.
        mean: per channel, in units of 0..1; None means 0.
        std: per channel, in units of 0..1; None means 1.
        position: [N, D] or [1, N, D], added at the visible places; None adds nothing.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        tokens: [B, Nv, D], the dtype of `weight` (under autocast: autocast's). Differentiable in weight, bias and
        position; not in the video, whose gradient is refused rather than left out.
    Raises:
        ValueError: sizes that do not fit together, a clip that is not a whole number of tubes, a video that requires
            a gradient, an index outside [0, N) (found on the CPU; on a GPU such a token is bias alone, because
            looking would stall the stream).
    Backends: reference, cpu, cuda (sm80+). Deterministic: forward yes, backward yes (one fixed order of addition).
    Source: Tong et al. 2022 (VideoMAE), arXiv 2203.12602, section 3.2, cube embedding of the kept tokens; differs:
        the masked tokens are never embedded.
    Example:
        >>> video = torch.full((1, 2, 4, 4, 1), 255, dtype=torch.uint8)
        >>> weight = torch.ones(1, 1, 2, 2, 2)
        >>> embed_visible_tubes(video, weight, None, torch.tensor([[0, 3]]), tube=(2, 2, 2))
        tensor([[[8.],
                 [8.]]])
    """
    tube = [int(p) for p in tube]
    _check.is_tensor(_NAME, "video", video, "[B, T, H, W, C]")
    _check.is_tensor(_NAME, "weight", weight, "[D, C, pt, ph, pw]")
    _check.is_tensor(_NAME, "visible_index", visible_index, "[B, Nv]")
    if video.dtype is not torch.uint8 and not video.is_floating_point():
        _check.fail(
            _NAME, "expected `video` [B, T, H, W, C] in uint8 or [B, C, T, H, W] in a floating type.", video=video
        )
    if len(tube) != 3 or min(tube) < 1 or list(weight.shape[2:]) != tube:
        _check.fail(_NAME, f"expected `weight` of shape [D, C, {', '.join(map(str, tube))}].", weight=weight, tube=tube,
                    hint="an image kernel [D, C, p, p] is weight.unsqueeze(2) with tube (1, p, p).")  # fmt: skip
    if not weight.is_floating_point():
        _check.fail(_NAME, "expected `weight` in a floating type.", weight=weight)
    last = video.dtype is torch.uint8
    channels, size = video.shape[4 if last else 1], video.shape[1:4] if last else video.shape[2:]
    if channels != weight.shape[1]:
        _check.fail(_NAME, f"`video` has {channels} channels, `weight` expects {weight.shape[1]}.",
                    video=video, weight=weight,
                    hint="uint8 clips are [B, T, H, W, C], float clips [B, C, T, H, W].")  # fmt: skip
    if any(n % p for n, p in zip(size, tube)):
        _check.fail(_NAME, f"a clip of {' x '.join(map(str, size))} is not a whole number of tubes.",
                    video=video, tube=tube, hint="crop or resize the clip to multiples of the tube.")  # fmt: skip
    if visible_index.shape[0] != video.shape[0]:
        _check.fail(
            _NAME, "`visible_index` and `video` differ in batch size.", visible_index=visible_index, video=video
        )
    visible_index = _check.as_index(_NAME, "visible_index", visible_index)
    if video.requires_grad:
        _check.fail(_NAME, "`video` requires a gradient, but the embedding is not differentiable in it.", video=video,
                    hint="use video.detach(), or torch.nn.functional.conv3d if the gradient is needed.")  # fmt: skip
    length = (size[0] // tube[0]) * (size[1] // tube[1]) * (size[2] // tube[2])
    if bias is not None and bias.shape != (weight.shape[0],):
        _check.fail(_NAME, f"expected `bias` of shape [{weight.shape[0]}].", bias=bias, weight=weight)
    if position is not None:
        if position.dim() == 3 and position.shape[0] == 1:
            position = position[0]
        if position.shape != (length, weight.shape[0]):
            _check.fail(_NAME, f"expected `position` of shape [{length}, {weight.shape[0]}].", position=position,
                        video=video, hint="leave out the class token's position.")  # fmt: skip
    if not torch.is_autocast_enabled(weight.device.type):
        named = {"video": video, "bias": bias, "position": position}
        wrong = {n: t for n, t in named.items() if t is not None and t.is_floating_point() and t.dtype != weight.dtype}
        if wrong:
            _check.fail(_NAME, f"`{next(iter(wrong))}` and `weight` differ in dtype.", weight=weight, **wrong)
    mean, std = _per_channel("mean", mean, channels, 0.0), _per_channel("std", std, channels, 1.0)
    if not all(s > 0 for s in std):
        _check.fail(_NAME, "expected `std` to be positive.", std=std)
    return _embed(video, weight, bias, visible_index, position, tube, mean, std, backend=backend)
