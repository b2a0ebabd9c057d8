"""Training clips from video files."""

from __future__ import annotations

import hashlib
import math
import os
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from .._check import fail
from .reader import VideoReader
from .sampler import ClipSampler

_OPEN_DECODERS = 8  # per process; each holds a file handle and some frames


class VideoClipDataset(Dataset):
    """Clips [T, H, W, 3] uint8 from video files: sampled, cropped, resized and mirrored, the same for a whole clip.

    Item `index` of epoch `epoch` depends on (seed, epoch, index) alone, not on the number of workers, the order of
    requests or what was drawn before, so an interrupted run sees the same data when it resumes.
    Works with DataLoader workers started by fork and by spawn; `set_epoch` also reaches persistent workers.

    Args:     paths: video files.
              sampler: which frames; default ClipSampler(16, 4, "random").
              size: (height, width) of the clips, or one number for both.
              crop: "random": a box of an area of scale * frame and a width/height ratio in `ratio` (both drawn, the
                  ratio evenly in its logarithm), else the largest centred box of the target's shape when ten draws do
                  not fit; "center": that centred box; None: the whole frame, stretched.
              scale, ratio: ranges for crop="random".
              flip: chance of mirroring left-right.
              clips_per_video: items per file and epoch.
              short_side: decode scaled down to this short side; None decodes at full size.
              cache: decode every file once, now, and keep its frames (at `short_side`) in memory that workers share.
              seed: see above.
              threads: decoding threads per process.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike] | str | os.PathLike,
        sampler: ClipSampler | None = None,
        *,
        size: int | tuple[int, int] = 224,
        crop: str | None = "random",
        scale: tuple[float, float] = (0.5, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        clips_per_video: int = 1,
        short_side: int | None = None,
        cache: bool = False,
        seed: int = 0,
        threads: int = 1,
    ):
        self.paths = [os.fspath(paths)] if isinstance(paths, (str, os.PathLike)) else [os.fspath(p) for p in paths]
        self.sampler = sampler if sampler is not None else ClipSampler()
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.crop, self.scale, self.ratio, self.flip = crop, scale, ratio, flip
        self.clips_per_video, self.short_side = clips_per_video, short_side
        self.seed, self.threads = seed, threads
        self._check()
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._readers: OrderedDict[int, VideoReader] = OrderedDict()
        self._cached = [self._decode_whole(video) for video in range(len(self.paths))] if cache else None

    def _check(self) -> None:
        facts = {"size": self.size, "scale": self.scale, "ratio": self.ratio, "flip": self.flip}
        wrong = None
        if not self.paths:
            wrong = "expected at least one path."
        elif self.crop not in ("random", "center", None):
            wrong = f'expected `crop` of "random", "center" or None, got {self.crop!r}.'
        elif min(self.size) < 1 or self.clips_per_video < 1 or (self.short_side is not None and self.short_side < 1):
            wrong = "expected `size`, `clips_per_video` and `short_side` of at least 1."
        elif not (0 < self.scale[0] <= self.scale[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1]):
            wrong = "expected rising ranges, `scale` within (0, 1] and `ratio` above 0."
        elif not 0 <= self.flip <= 1:
            wrong = "expected `flip` between 0 and 1."
        if wrong:
            fail("VideoClipDataset", wrong, **facts)

    def __len__(self) -> int:
        return len(self.paths) * self.clips_per_video

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next; workers see it with the next item they make."""
        self._epoch.fill_(int(epoch))

    def __getitem__(self, index: int) -> torch.Tensor:
        if not 0 <= index < len(self):
            fail("VideoClipDataset", f"item {index} is out of range for {len(self)} items.", error=IndexError)
        generator = self._generator(index)
        video = index % len(self.paths)
        if self._cached is not None:
            whole = self._cached[video]
            clip = whole[self.sampler(len(whole), generator)]
        else:
            reader = self._reader(video)
            clip = reader.get_frames(self.sampler(len(reader), generator))
        top, left, height, width = self._box(clip.shape[1], clip.shape[2], generator)
        mirrored = bool(torch.rand((), generator=generator) < self.flip)
        clip = _resize(clip[:, top : top + height, left : left + width], self.size)
        return clip.flip(2) if mirrored else clip

    def _generator(self, index: int) -> torch.Generator:
        # A hash, so that neighbouring (seed, epoch, index) give unrelated draws.
        key = f"{self.seed} {self.epoch} {index}".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

    def _box(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        if self.crop is None:
            return 0, 0, height, width
        if self.crop == "random":
            low, high = (math.log(value) for value in self.ratio)
            for area, shape, y, x in torch.rand(10, 4, generator=generator, dtype=torch.float64).tolist():
                pixels = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * area)
                aspect = math.exp(low + (high - low) * shape)
                w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
                if 1 <= w <= width and 1 <= h <= height:
                    return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
        h = min(height, max(1, round(width * self.size[0] / self.size[1])))
        w = min(width, max(1, round(height * self.size[1] / self.size[0])))
        return (height - h) // 2, (width - w) // 2, h, w

    def _decode_whole(self, video: int) -> torch.Tensor:
        reader = self._reader(video)
        frames = reader.get_frames(range(len(reader)))
        reader._release()
        return frames.share_memory_()

    def _reader(self, video: int) -> VideoReader:
        reader = self._readers.get(video)
        if reader is None:
            reader = VideoReader(self.paths[video], threads=self.threads, size=self.short_side)
            self._readers[video] = reader
        # The indexes stay; only the least recently used decoders are given back.
        self._readers.move_to_end(video)
        for _, old in list(self._readers.items())[: -_OPEN_DECODERS or None]:
            old._release()
        return reader


def _resize(clip: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[T, H, W, 3] uint8 to another size, antialiased; torch works on uint8 directly."""
    if tuple(clip.shape[1:3]) == size:
        return clip.contiguous()
    images = F.interpolate(clip.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True, align_corners=False)
    return images.permute(0, 2, 3, 1).contiguous()
