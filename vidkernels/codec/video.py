"""An opened `.vkv` file as a sequence of frames."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from threading import Lock

import torch

from .. import _check
from .container import ContainerReader, Gop, Report
from .gaussian_model import Grid, decode_gop
from .nerv_families import NETWORKS
from .nerv_pfnr_video import ProgressiveFile
from .nerv_video import NetworkFile
from .opened import OpenedFile

_KEPT_GOPS = 2
_KEPT_BYTES = 1 << 28  # of decoded Gaussians; what a file beyond it holds is decoded again where needed


def open(
    path: str | os.PathLike, *, planes: int | None = None, partial: bool = False
) -> GaussianFile | NetworkFile | ProgressiveFile:
    """Open a `.vkv` file: frames by index, slice and time, as uint8 tensors.

    Args:
        path: the file.
        planes: draw a network that was coded in planes (`fit --planes`) from the first so many; None: all.
        partial: take what is whole of a file that is cut short, a download that is not complete; a network that was
            coded in planes is drawn from those that are there.
    Returns:
        video: len(video) frames; video[i] is [H, W, 3], video[a:b] is [T, H, W, 3], video.at(seconds) a moment.
    Raises:
        ValueError: not a .vkv file, damaged (with the place), made by a newer version, or of a model that this version
            does not know; `planes` of a Gaussian video.
    Example:
        >>> from vidkernels.codec import open
        >>> open("clip.vkv")[10].shape  # doctest: +SKIP
        torch.Size([720, 1280, 3])
    """
    reader = ContainerReader(path, partial)
    if planes is not None and (planes < 1 or reader.header.model not in NETWORKS):
        reader.close()
        _check.fail("open", "expected at least 1 of the `planes` that a network can be coded in.",
                    planes=planes, model=reader.header.model)  # fmt: skip
    if reader.header.model == "gaussian":
        return GaussianFile(reader)
    if reader.header.model == ProgressiveFile.model:
        return ProgressiveFile(reader)
    if reader.header.model in NETWORKS:
        return NetworkFile(reader, planes)
    reader.close()
    _check.fail("open", f"{path} holds a model {reader.header.model!r} that this version cannot draw.",
                "it needs a newer vidkernels.")  # fmt: skip


class _Stretch:
    """The Gaussians of a GOP, decoded as far as they were asked for, and kept as far as memory is meant for it."""

    def __init__(self, make: Callable[[], Iterator[torch.Tensor]]):
        self._make = make
        self._restart()

    def _restart(self) -> None:
        self._frames, self._kept, self._at, self._last = self._make(), [], -1, None

    def __getitem__(self, k: int) -> torch.Tensor:
        if k < len(self._kept):
            return self._kept[k]
        if k < self._at:
            self._restart()
        try:
            while self._at < k:
                self._last = next(self._frames)
                self._at += 1
                if len(self._kept) == self._at and (self._at + 1) * self._last.numel() * 4 <= _KEPT_BYTES:
                    self._kept.append(self._last)
        except Exception:
            self._restart()
            raise
        return self._last


class GaussianFile(OpenedFile):
    """A Gaussian video in a file. The Gaussians of a GOP are decoded when one of its frames is asked for."""

    model = "gaussian"

    def __init__(self, reader: ContainerReader):
        super().__init__(reader)
        self._gops: OrderedDict[int, _Stretch] = OrderedDict()
        self._lock = Lock()  # iterating decodes ahead on a thread of its own
        try:
            self.grid = Grid.from_config(reader.header.config, self.size)
        except ValueError as error:
            reader.close()
            _check.fail("open", f"{reader.path}: {error}.")

    def numbers(self, frame: int) -> torch.Tensor:
        return self.gaussians(frame)

    def drawn(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.grid.draw(numbers)

    def at(self, seconds: float, size: tuple[int, int] | None = None) -> torch.Tensor:
        """The picture [H, W, 3] at a time from the first frame on, at any size (height, width): between two frames of a
        GOP, the Gaussians are half way, too."""
        gop, k, share = self.moment(seconds)
        now = self.gaussians(gop.first_frame + k)
        if share > 0 and k + 1 < gop.frames:
            now = torch.lerp(now, self.gaussians(gop.first_frame + k + 1), share)
        return self.grid.draw(now, size)

    def gaussians(self, frame: int) -> torch.Tensor:
        """[N, 8] float32 of a frame: x, y, l11, l21, l22 in pixels, Y, Co, Cg. Row i is the same Gaussian throughout a
        GOP."""
        gop = self.reader.gop_of_frame(frame)
        with self._lock:
            if gop.number not in self._gops:
                data = self.reader.read(gop)
                self._gops[gop.number] = _Stretch(lambda: self._decoded(gop, data))
                while len(self._gops) > _KEPT_GOPS:
                    self._gops.popitem(last=False)
            self._gops.move_to_end(gop.number)
            return self._gops[gop.number][frame - gop.first_frame]

    def _decoded(self, gop: Gop, data: memoryview) -> Iterator[torch.Tensor]:
        try:
            for q in decode_gop(data, gop.frames, self.grid):
                yield self.grid.values(q)
        except ValueError as error:
            self.damaged_layer(gop, error)

    def verify(self) -> Report:
        """Check every byte, and every frame against its hash."""
        return self.reader.verify(lambda gop, layers: map(self.grid.draw, self._decoded(gop, layers[0])))
