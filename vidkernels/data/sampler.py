"""Which frames of a video make a clip: index algebra, no decoding."""

from __future__ import annotations

import torch

from .._check import fail

_MODES = ("random", "uniform", "center")


class ClipSampler:
    """Choose the frame numbers of one clip.

        random : start + stride * k,             start drawn evenly from every place where the clip fits
        center : start + stride * k,             start = (length - span) // 2
        uniform: floor((k + 1/2) length / frames), over the whole video; `stride` plays no part
        span = stride * (frames - 1) + 1, k = 0 .. frames - 1

    A video shorter than `span` starts at 0, and numbers past its end repeat the last frame (short="repeat") or begin
    again at the first (short="loop"). `uniform` always fits: a short video repeats frames in order.
    With jitter, each number moves by an even draw from -jitter .. jitter and is kept inside the video; random and
    center need 2 * jitter < stride, so that frames stay in order; in uniform mode they are sorted.

    Args:     frames, stride, mode, jitter, short: as above.
              generator: draws for calls that bring none; None uses torch's global one.
    Example:
        >>> from vidkernels.data import ClipSampler
        >>> ClipSampler(frames=4, stride=2, mode="center")(11).tolist()
        [2, 4, 6, 8]
    """

    def __init__(
        self,
        frames: int = 16,
        stride: int = 4,
        mode: str = "random",
        *,
        jitter: int = 0,
        short: str = "repeat",
        generator: torch.Generator | None = None,
    ):
        if frames < 1 or stride < 1 or jitter < 0:
            fail(
                "ClipSampler",
                "expected `frames` >= 1, `stride` >= 1 and `jitter` >= 0.",
                frames=frames,
                stride=stride,
                jitter=jitter,
            )
        if mode not in _MODES:
            fail("ClipSampler", f"expected `mode` of {', '.join(_MODES)}, got {mode!r}.")
        if short not in ("repeat", "loop"):
            fail("ClipSampler", f'expected `short` of "repeat" or "loop", got {short!r}.')
        if mode != "uniform" and jitter and 2 * jitter >= stride:
            fail(
                "ClipSampler", "frames would lose their order: need 2 * jitter < stride.", jitter=jitter, stride=stride
            )
        self.frames, self.stride, self.mode = frames, stride, mode
        self.jitter, self.short, self.generator = jitter, short, generator

    @property
    def span(self) -> int:
        """Frames from the first to the last of a clip, both counted."""
        return self.stride * (self.frames - 1) + 1

    def __call__(self, length: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Frame numbers [frames] int64 for a video of `length` frames."""
        if length < 1:
            fail("ClipSampler", "expected `length` >= 1.", length=length)
        generator = generator if generator is not None else self.generator
        k = torch.arange(self.frames)
        if self.mode == "uniform":
            numbers = ((2 * k + 1) * length) // (2 * self.frames)
        else:
            room = max(length - self.span, 0)
            if self.mode == "random":
                start = int(torch.randint(room + 1, (), generator=generator))
            else:
                start = room // 2
            numbers = start + self.stride * k
            if length < self.span and self.short == "loop":
                numbers = numbers % length
        if self.jitter:
            numbers = numbers + torch.randint(-self.jitter, self.jitter + 1, (self.frames,), generator=generator)
            if self.mode == "uniform":
                numbers = numbers.sort().values
        return numbers.clamp(0, length - 1)

    def __repr__(self) -> str:
        return (
            f"ClipSampler(frames={self.frames}, stride={self.stride}, mode={self.mode!r}, jitter={self.jitter}, "
            f"short={self.short!r})"
        )
