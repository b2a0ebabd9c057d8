"""More video behind a finished file: the decoder's weights stay, and what the new frames need is coded as a difference.

Nothing that was in the file changes, so the frames that it had stay what they were, bit for bit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path

import torch

from .. import _check
from .bits import pack_varint
from .clip import Clip, ticks_behind
from .container import ContainerReader, Header
from .nerv import Run, pictures
from .nerv_bits import Quantised
from .nerv_families import NETWORKS
from .nerv_model import APPENDED, SIDE
from .nerv_plan import AppendedEnvelope, Envelope, looks, stages, timed, usual_steps
from .nerv_train import Plan, Written
from .nerv_video import NetworkFile
from .onto import Onto
from .protocol import Goal, Progress, Source
from .state import safetensors_for

_GOP = 66
_RATE = 2e-3  # of learning: the weights are good ones already


def append(
    path: str | os.PathLike, source: Source, goal: Goal, *, gop: int | None = None, mask: Path | None = None
) -> Generator[Progress, None, Source]:
    """Fit more frames with the network of `path` and add them to the file; see protocol.py.

    Args:     path: a `.vkv` file of a network without key frames. source: the frames; they are scaled to the file's
              size. goal: `bytes` are those that the file may grow by. gop: frames of a group of pictures.
              mask: a picture or video; pixels under its bright parts do not count.
    Returns:  the source, at the generator's end. Until then the file is what it was, also after an interruption.
    Raises:   ValueError: a file of another model, one to which 999 videos were appended, or a clip whose frames come
              faster than the file's clock ticks.
    """
    began = time.monotonic()
    safetensors_for("append")
    onto, header, base, _ = _opened(Path(path))
    family = NETWORKS[header.model]
    clip = Clip(Source(Path(os.path.abspath(source.path)), source.start, source.end, (header.height, header.width)))
    mask = None if mask is None else Path(os.path.abspath(mask))
    frames, counted = pictures(clip, mask)
    ticks_behind(clip.seconds, header.time_base, onto.end)  # asked now, not when all is done
    steps = usual_steps(len(clip))
    plan = Plan(header.config, stages(steps, family.shares), min(gop or _GOP, len(clip)), header.exact, rate=_RATE,
                check=looks(steps), bytes=goal.bytes, psnr=goal.psnr)  # fmt: skip
    if goal.seconds is not None:
        network = family.network(header.config, clip.size, torch.Generator().manual_seed(0))
        plan = timed(plan, family.shares, network, frames, counted, goal.seconds, began, base)
    run = Appending(header.model, clip, Path(path), plan, b"", frames, counted, began, mask=mask, onto=onto)
    return (yield from run.work())


def _opened(path: Path) -> tuple[Onto, Header, dict[str, Quantised], int]:
    """(what the file is like, its header, its weights, how many videos were appended to it)."""
    from .video import open as open_video

    with open_video(path) as video:
        if not isinstance(video, NetworkFile) or video.reader.chunk(SIDE) is not None:
            _check.fail("append", f"a file of the model {video.model!r} takes no more frames.", path=str(path))
        parts = sum(map(bool, map(APPENDED.fullmatch, video.reader.kinds)))
        if parts == 999:
            _check.fail("append", "the file holds 999 appended videos already.", path=str(path))
        return Onto.of(video.reader), video.reader.header, video.parts[0][1].weights, parts


class Appending(Run):
    """An append in progress."""

    def __init__(self, model: str, clip: Clip, out: Path, *rest, onto: Onto, **more):
        self.onto = onto
        _, self.header, base, self.before = _opened(out)
        super().__init__(model, clip, out, *rest, base=base, **more)

    @property
    def times(self) -> list[int]:
        return ticks_behind(self.clip.seconds, self.header.time_base, self.onto.end)

    def surroundings(self) -> Envelope:
        with ContainerReader(self.out) as reader:
            return AppendedEnvelope(reader, self.times, self.trainer.plan.gop)

    def _look(self, written: Written, most: int | None = None) -> tuple[int, float]:
        size, psnr = super()._look(written, most)
        return size - self.onto.bytes, psnr

    def chunks(self, written: Written) -> list[bytes]:
        return [pack_varint(self.onto.frames) + written.chunks[0]]

    def write(self, written: Written) -> None:
        with self.onto.writer(self.out) as writer:
            writer.add_chunk(f"D{self.before + 1:03}", self.chunks(written)[0])
            self.add_gops(writer, written, self.onto.frames, self.times)
        self.seen = self.seen[0], self.out.stat().st_size

    def more_facts(self) -> dict:
        return {"onto": asdict(self.onto)}

    @classmethod
    def again(cls, facts: dict, out: Path) -> dict:
        return {"onto": Onto(**facts["onto"]).same(out)}
