"""The codec model "pfnr": videos added to one file one after another, each drawn by a subnetwork of one network.

An appended video is its mask, the weights that it is the first to use, and a head; the pictures of the earlier ones
stay what they were, bit for bit. `fit` and `resume` follow vidkernels/codec/protocol.py.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, replace
from pathlib import Path

import torch

from .. import _check
from ..models.nerv.pfnr import PFNR
from . import nerv_plan
from .bits import pack_varint
from .clip import Clip, color_of, ticks_behind, timestamps, whole_audio
from .container import ContainerWriter, Header, frame_hash
from .nerv import pictures
from .nerv_model import CHUNK
from .nerv_pfnr_bits import draw_scores, make_config, make_network
from .nerv_pfnr_train import Plan, Trainer, Written, split_steps
from .nerv_pfnr_video import ProgressiveFile, draw
from .nerv_work import Work
from .onto import Onto
from .protocol import Goal, Progress, Source, state_path
from .state import reading_state, safetensors_for, state_facts, write_state
from .video import open as open_video

_GOP = 66
_MOST = 63  # videos of a file
_SHARE = 0.6  # of the weights, for each video
_ROUNDS = 4  # more of the second stage, at most, for a goal that was missed
_COARSER, _FINER = 1.2, 0.75
_BITS = 3.2  # of a weight, about: its place in the mask, and its value if it is used
_TIMED = 5  # steps, of which the fastest counts


def fit(
    source: Source, out: Path, goal: Goal, *, gop: int | None, mask: Path | None = None, exact: bool = False
) -> Generator[Progress, None, Source]:
    """Fit `source` as the first video of a new file; see protocol.py.

    Args:     mask: a picture or video; pixels under its bright parts do not count.
              exact: taken for False: Fourier transforms are not drawn from integers.
    """
    began = time.monotonic()
    safetensors_for("fit")  # asked now, not when the first state is saved
    clip = Clip(replace(source, path=Path(os.path.abspath(source.path))))
    mask = None if mask is None else Path(os.path.abspath(mask))
    frames, counted = pictures(clip, mask)
    plan = _plan(clip, frames, counted, goal, min(gop or _GOP, len(clip)), began)
    return (yield from _Run(clip, Path(out), plan, frames, counted, began, mask=mask).work())


def resume(state: Path) -> Generator[Progress, None, Source]:
    """Go on from a state file; see protocol.py."""
    kind = _Appending if "onto" in state_facts(state) else _Run
    return (yield from kind.load(Path(state), time.monotonic()).work())


def append(
    path: str | os.PathLike, source: Source, goal: Goal, *, gop: int | None = None, mask: Path | None = None
) -> Generator[Progress, None, Source]:
    """Learn one more video with the network of `path` and add it to the file, which is what it was until the end.

    Args:     path: a file of this model. source: the frames; they are scaled to the file's size. goal: `bytes` are
              those that the file may grow by. gop, mask: as of `fit`.
    Raises:   ValueError: a file of another model, one that holds 63 videos, or a clip whose frames come faster than the
              file's clock ticks.
    """
    began, path = time.monotonic(), Path(path)
    safetensors_for("append")
    with _opened(path) as video:
        onto, header, size = Onto.of(video.reader), video.reader.header, video.size
    clip = Clip(replace(source, path=Path(os.path.abspath(source.path)), size=size))
    mask = None if mask is None else Path(os.path.abspath(mask))
    frames, counted = pictures(clip, mask)
    ticks_behind(clip.seconds, header.time_base, onto.end)  # asked now, not when all is done
    plan = Plan(header.config, (0, 0), min(gop or _GOP, len(clip)), bytes=goal.bytes, psnr=goal.psnr)
    plan = _stepped(plan, goal, lambda: _continued(path, len(clip)), frames, counted, began)
    return (yield from _Appending(clip, path, plan, frames, counted, began, mask=mask, onto=onto).work())


def _opened(path: Path) -> ProgressiveFile:
    video = open_video(path)
    if not isinstance(video, ProgressiveFile):
        _check.fail("append", f"expected a file of the model 'pfnr', got {video.model!r}.", path=str(path))
    if len(video.first) == _MOST:
        _check.fail("append", f"the file holds {_MOST} videos already.", path=str(path))
    return video


def _continued(path: Path, frames: int) -> PFNR:
    """A network with the videos of a file, which has begun another."""
    with _opened(path) as video:
        generator = torch.Generator().manual_seed(len(video.first))
        network = make_network(video.reader.header.config, video.size, 1, generator)
        for old, new in zip(video.network.tensors(), network.tensors(), strict=True):
            new.stored.copy_(old.stored)
            new.used.copy_(old.used)
        network.set_extra_state(video.network.get_extra_state())
        network.heads.load_state_dict(video.network.heads.state_dict())
    network.start_session(frames, generator=generator)
    draw_scores(network)
    return network


def _plan(clip: Clip, frames: torch.Tensor, counted: torch.Tensor | None, goal: Goal, gop: int, began: float) -> Plan:
    pixels = math.prod(frames.shape[:3])
    if goal.only_time:
        weights = 300_000 * math.sqrt(goal.seconds / 120)
    elif goal.bytes is not None:
        room = goal.bytes - _around(clip, {}, gop)(b"")
        if room < 2000:
            _check.fail("fit", f"sound, times and hashes leave {room} bytes for the network.", "allow more bytes.")
        weights = 8 * room / _BITS
    else:
        weights = 300_000 * 10 ** ((goal.psnr - 30) / 8) * math.sqrt(pixels / nerv_plan._USUAL)
    config = make_config(clip.size, min(weights, pixels / 8), _SHARE)
    plan = Plan(config, (0, 0), gop, bytes=goal.bytes, psnr=goal.psnr)
    return _stepped(plan, goal, lambda: _new(plan, clip.size, len(frames)), frames, counted, began)


def _stepped(plan: Plan, goal: Goal, network, frames: torch.Tensor, counted: torch.Tensor | None, began: float) -> Plan:
    """The plan with the usual steps, or with as many as a limit in time allows a network that `network` makes."""
    if goal.seconds is None:
        return split_steps(plan, nerv_plan.usual_steps(len(frames)))
    trainer = Trainer(network(), frames, counted, replace(plan, steps=(_TIMED, _TIMED)))
    each, look = min(_seconds(trainer.step) for _ in range(_TIMED)), _seconds(lambda: trainer.psnr(trainer.network))
    left = 0.95 * goal.seconds - (time.monotonic() - began) - 8 * look
    return replace(split_steps(plan, max(40, int(left / each))), timed=True)


def _new(plan: Plan, size: tuple[int, int], frames: int) -> PFNR:
    network = make_network(plan.config, size, frames, torch.Generator().manual_seed(0))
    draw_scores(network)
    return network


def _seconds(work) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _around(clip: Clip, config: dict, gop: int) -> Callable[[bytes], int]:
    """A chunk -> bytes of a file that holds it."""
    envelope, layers = nerv_plan.Envelope("pfnr", clip, config, gop, False), [0] * -(-len(clip) // gop)
    return lambda chunk: envelope.bytes([1 + len(chunk)], layers)


def _write(writer: ContainerWriter, kind: str, written: Written, first: int, pts: list[int], gop: int) -> None:
    """A session's chunk, and its frames' times and hashes, as a reader will draw them."""
    session, count = written.network.session, len(pts)
    writer.add_chunk(kind, pack_varint(first) + written.chunk)
    for k in range(0, count, gop):
        group = range(k, min(k + gop, count))
        hashes = [frame_hash(draw(written.network, session, i / count)) for i in group]
        writer.add_gop(first + k, [pts[i] for i in group], {0: b""}, hashes)


class _Run(Work):
    """A fit of a first video in progress."""

    def __init__(
        self,
        clip: Clip,
        out: Path,
        plan: Plan,
        frames: torch.Tensor,
        counted: torch.Tensor | None,
        began: float,
        *,
        mask: Path | None = None,
        spent: float = 0.0,
    ):
        self.clip, self.out, self.mask, self.began = clip, out, mask, began - spent
        self.trainer = Trainer(self.network(plan), frames, counted, plan, self.around(plan))
        self.rounds, self.best = 0, None  # added to the second stage; PSNR after the round before

    def network(self, plan: Plan) -> PFNR:
        return _new(plan, self.clip.size, len(self.clip))

    def around(self, plan: Plan) -> Callable[[bytes], int]:
        """A session's bytes -> those that the goal is about."""
        return _around(self.clip, plan.config, plan.gop)

    def _after_stage(self) -> Written | None:
        """Begin the second stage, or once more if a goal was missed; at the end, what is to be written."""
        t = self.trainer
        if t.stage == 0:
            t.refine()
            return None
        written = t.written()
        psnr, size = t.psnr(written.network), t.around(written.chunk)
        self.seen = psnr, size
        large = t.plan.bytes is not None and size > t.plan.bytes
        # A round that brings nothing shows that the network can do no better.
        poor = t.plan.psnr is not None and psnr < t.plan.psnr and (self.best is None or psnr > self.best + 0.02)
        if (large or (poor and not t.plan.timed)) and self.rounds < _ROUNDS:
            self.rounds, self.best = self.rounds + 1, psnr
            t.refine(t.fineness * (_COARSER if large else _FINER))
            return None
        if large:
            _check.fail("fit", f"the network did not come below {size} bytes.", "allow more.", bytes=t.plan.bytes)
        return written

    def write(self, written: Written) -> None:
        base, pts = timestamps(self.clip.seconds, self.clip.rate)
        height, width = self.clip.size
        plan = self.trainer.plan
        header = Header("pfnr", width, height, base, plan.config, color=color_of(self.clip.source.path))
        with ContainerWriter(self.out, header) as writer:
            _write(writer, CHUNK, written, 0, pts, plan.gop)
            audio = whole_audio(self.clip.source)
            if audio is not None:
                writer.set_audio(audio)
        self.seen = self.seen[0], self.out.stat().st_size

    # ---- the state file

    def save(self) -> None:
        facts = {
            **self.more_facts(), "model": "pfnr", "plan": asdict(self.trainer.plan), "rounds": self.rounds,
            "best": self.best, "seen": self.seen, "trainer": self.trainer.facts(),
            "spent": time.monotonic() - self.began,
            "mask": self.mask_fact(),
        }  # fmt: skip
        write_state(state_path(self.out), self.clip, facts, self.trainer.arrays())

    @classmethod
    def load(cls, path: Path, began: float) -> _Run:
        with reading_state(path) as (clip, facts, arrays):
            mask = cls.same_mask(facts)
            plan = Plan(**{**facts["plan"], "steps": tuple(facts["plan"]["steps"])})
            out = path.with_suffix("")
            run = cls(clip, out, plan, *pictures(clip, mask), began, mask=mask, spent=facts["spent"],
                      **cls.again(facts, out))  # fmt: skip
            run.rounds, run.best = facts["rounds"], facts["best"]
            run.seen = None if facts["seen"] is None else tuple(facts["seen"])
            run.trainer.restore(arrays, facts["trainer"])
        return run


class _Appending(_Run):
    """An append in progress."""

    def __init__(self, clip: Clip, out: Path, *rest, onto: Onto, **more):
        self.onto = onto
        with _opened(out) as video:
            self.session, base = len(video.first), video.reader.header.time_base
        self.times = ticks_behind(clip.seconds, base, onto.end)
        super().__init__(clip, out, *rest, **more)

    def network(self, plan: Plan) -> PFNR:
        return _continued(self.out, len(self.clip))

    def around(self, plan: Plan) -> Callable[[bytes], int]:
        """What the file grows by."""
        with _opened(self.out) as video:
            envelope = nerv_plan.AppendedEnvelope(video.reader, self.times, plan.gop)
        before, layers = len(pack_varint(self.onto.frames)), [0] * -(-len(self.clip) // plan.gop)
        return lambda chunk: envelope.bytes([before + len(chunk)], layers) - self.onto.bytes

    def write(self, written: Written) -> None:
        with self.onto.writer(self.out) as writer:
            _write(writer, f"D{self.session:03}", written, self.onto.frames, self.times, self.trainer.plan.gop)
        self.seen = self.seen[0], self.out.stat().st_size

    def more_facts(self) -> dict:
        return {"onto": asdict(self.onto)}

    @classmethod
    def again(cls, facts: dict, out: Path) -> dict:
        return {"onto": Onto(**facts["onto"]).same(out)}
