"""What all metrics of clips ask of their arguments."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vidkernels import _check


def checked_pair(name: str, decoded: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as [T, H, W, C], of one shape and one dtype that has a peak value."""
    for label, clip in (("decoded", decoded), ("source", source)):
        if not isinstance(clip, torch.Tensor):
            _check.fail(name, f"expected `{label}` to be a torch.Tensor, got {type(clip).__name__}.", error=TypeError)
    if decoded.shape != source.shape or decoded.dtype != source.dtype:
        _check.fail(name, "expected two clips of one shape and dtype.", decoded=decoded, source=source)
    if decoded.dtype is not torch.uint8 and not decoded.is_floating_point():
        _check.fail(name, "expected uint8 (peak 255) or floating (peak 1) frames.", decoded=decoded)
    if decoded.dim() not in (3, 4) or decoded.numel() == 0:
        _check.fail(name, "expected frames [T, H, W, C] or one [H, W, C], not empty.", decoded=decoded)
    if decoded.dim() == 3:
        return decoded[None], source[None]
    return decoded, source


def peak(clip: torch.Tensor) -> float:
    return 255.0 if clip.dtype is torch.uint8 else 1.0


def planes(decoded: torch.Tensor, source: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Frame by frame [1, C, H, W], so that a long clip needs the memory of one frame. float32; float64 stays."""
    dtype = torch.float64 if decoded.dtype is torch.float64 else torch.float32
    for pair in zip(decoded, source):
        yield tuple(frame.permute(2, 0, 1)[None].to(dtype).contiguous() for frame in pair)
