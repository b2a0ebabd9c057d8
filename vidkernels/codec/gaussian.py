"""The Gaussian codec: a video fitted by 2D Gaussians that live from frame to frame, in a `.vkv` file.

Each group of pictures holds a key frame and the changes of its Gaussians (gaussian_fit.py fits them, gaussian_bits.py
codes them); decoding is exact (gaussian_model.py). `fit` and `resume` follow vidkernels/codec/protocol.py: all
decisions depend on what the state file holds, so that an interrupted fit goes on to the same bytes. Only the steps of
a fit with a time limit follow the clock.
"""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from .. import _check
from .block_motion import Motion, block_motion
from .clip import Clip, color_of, decibels, ticks_behind, timestamps, whole_audio
from .container import ContainerReader, ContainerWriter, Header, frame_hash
from .gaussian_bits import Written, decode_key, encode_key
from .gaussian_fit import Moments, fit_change, fit_key
from .gaussian_model import FINE_LOG2, Grid, join_gop
from .gaussian_plan import KEY_BYTES, SEED, Clock, Plan, plan_for
from .onto import Onto
from .passes import Estimate, encode_passes
from .protocol import Goal, Progress, Source, state_path
from .state import reading_state, safetensors_for, state_facts, write_state

NAME = "gaussian"
_GOP = 66
_SAVE_EVERY = 5.0  # seconds


def fit(source: Source, out: Path, goal: Goal, *, gop: int | None) -> Generator[Progress, None, Source]:
    """Fit `source` and write `out`; see protocol.py."""
    began = time.monotonic()
    goal.single("fit", NAME)
    safetensors_for("fit")  # asked now, not when the first state is saved
    out = Path(out)
    clip = Clip(Source(Path(os.path.abspath(source.path)), source.start, source.end, source.size))
    gop = min(gop or _GOP, len(clip))
    grid = Grid(*clip.size) if goal.seconds is None else Grid(*clip.size, FINE_LOG2)
    clip.load(0, min(gop, len(clip)))
    audio = whole_audio(clip.source) if goal.bytes is not None else None
    if audio is not None:
        goal = Goal(bytes=goal.bytes - len(audio.to_bytes()))
    plan = plan_for(clip, grid, goal, gop)
    return (yield from Run(clip, out, grid, gop, plan, began).work())


def resume(state: Path) -> Generator[Progress, None, Source]:
    """Go on from a state file; see protocol.py."""
    began = time.monotonic()
    kind = Appending if "onto" in state_facts(state) else Run
    return (yield from kind.load(Path(state), began).work())


def append(path: Path, source: Source, goal: Goal, *, gop: int | None = None) -> Generator[Progress, None, Source]:
    """Fit more frames and add them to the file `path`; see protocol.py. They are scaled to the file's size."""
    began = time.monotonic()
    goal.single("append", NAME)
    safetensors_for("append")
    path = Path(path)
    with ContainerReader(path) as reader:
        header, onto = reader.header, Onto.of(reader)
        grid = Grid.from_config(header.config, (header.height, header.width))
    clip = Clip(Source(Path(os.path.abspath(source.path)), source.start, source.end, (grid.height, grid.width)))
    gop = min(gop or _GOP, len(clip))
    clip.load(0, len(clip))
    ticks_behind(clip.seconds, header.time_base, onto.end)  # asked now, not when all is done
    plan = plan_for(clip, grid, goal, gop)
    return (yield from Appending(clip, path, grid, gop, plan, began, onto=onto).work())


class Stretch:
    """A group of pictures in work: its last integers, and all that is to be coded of it."""

    def __init__(self, grid: Grid, key: bytes, steps: np.ndarray):
        self.grid, self.key, self.q = grid, key, steps * grid.steps
        self.changes = grid.changes(len(steps))
        self.symbols: list[bytes] = []  # of each change; the contexts follow from them
        self._passes: list[tuple[np.ndarray, np.ndarray]] = []
        self._estimate = Estimate()

    def add(self, motion: Motion, change: np.ndarray) -> None:
        """The next frame."""
        written = Written()
        self.changes.step(written, motion, change)
        self._added(written.passes)

    def again(self, symbols: bytes) -> None:
        """The next frame from what `symbols` held of it."""
        values, at, written = np.frombuffer(zlib.decompress(symbols), np.int32), 0, Written()

        def read(contexts, _):
            nonlocal at
            at += len(contexts)
            return written(contexts, values[at - len(contexts) : at])

        self.changes.step(read)
        self._added(written.passes)

    def _added(self, passes: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.q = self.grid.moved(self.q, self.changes.motion) + self.changes.change * self.grid.steps
        self.symbols.append(zlib.compress(np.concatenate([s for s, _ in passes]).tobytes(), 1))
        self._passes += passes
        self._estimate.add(passes)

    def bytes(self) -> int:
        """What it takes, nearly."""
        return len(self.key) + self._estimate.bytes()

    def coded(self) -> bytes:
        return join_gop(len(self.q), self.key, encode_passes(self._passes))


class Run:
    """A fit in progress: what is done, and what the next frame needs."""

    def __init__(self, clip: Clip, out: Path, grid: Grid, gop: int, plan: Plan, began: float, spent: float = 0.0):
        self.clip, self.out, self.grid, self.gop, self.plan = clip, out, grid, gop, plan
        self.began, self.spent_before = began - spent, spent
        self.gops: list[dict] = []  # finished: first frame, pts, bytes, hashes
        self.stretch: Stretch | None = None  # the GOP in work
        self.hashes: list[bytes] = []
        self.moments: Moments | None = None
        self.squares: list[float] = []  # mean squared error of each finished frame
        self.bytes = 0
        self.clock = Clock()
        self.whole = True  # False while a frame or a GOP is being added: half of one is not to be saved

    @property
    def done(self) -> int:
        return len(self.squares)

    def psnr(self) -> float | None:
        return float(np.mean([decibels(s) for s in self.squares])) if self.squares else None

    def progress(self) -> Progress:
        elapsed = time.monotonic() - self.began
        return Progress(self.done, len(self.clip), self.done, len(self.gops), self.psnr(), self.bytes, elapsed)

    def work(self) -> Generator[Progress, None, Source]:
        saved = time.monotonic()
        self.save()
        try:
            while (first := len(self.gops) * self.gop) < len(self.clip):
                last = min(first + self.gop, len(self.clip))
                self.clip.load(first, last)
                while self.done < last:
                    self.frame(self.done, first)
                    yield self.progress()
                    if time.monotonic() - saved > _SAVE_EVERY:
                        self.save()
                        saved = time.monotonic()
                self.close_gop(first)
            self.write()
        except BaseException:
            if self.whole:
                self.save()
            raise
        state_path(self.out).unlink(missing_ok=True)
        yield self.progress()
        return self.clip.source

    def frame(self, i: int, first: int) -> None:
        began, target = time.monotonic(), self.clip[i]
        if i == first:
            generator = torch.Generator().manual_seed(SEED + i)
            key, moments = fit_key(target, self.grid, self.plan.count, self.plan.key_steps, generator)
            stretch = Stretch(self.grid, encode_key(key), key)
            q = stretch.q
        else:
            stretch = self.stretch
            motion = block_motion(self.clip[i - 1], target, stretch.changes.motion.coarse, self.grid.block)
            moved = self.grid.moved(stretch.q, motion)
            change, moments = fit_change(moved, self.moments, target, self.grid, self.plan.steps, self.plan.price)
            q = moved + change * self.grid.steps
        picture = self.grid.draw(self.grid.values(q))
        off = (picture.float() - target).flatten()
        square = float(off @ off) / off.numel() / 255**2
        if not math.isfinite(float(moments.variance.sum())):
            _check.fail("fit", f"the fit diverged at frame {i}; the frames before it are kept in the state.",
                        error=FloatingPointError)  # fmt: skip
        digest = frame_hash(picture)
        self.whole = False
        if i > first:
            fitted = time.monotonic()
            stretch.add(motion, change)
            self.clock.adding = time.monotonic() - fitted
        self.stretch, self.moments = stretch, moments
        self.hashes.append(digest)
        self.bytes = sum(len(g["data"]) for g in self.gops) + stretch.bytes()
        self.squares.append(square)
        self.plan = self._steered(time.monotonic() - began, i == first)
        self.whole = True

    def _steered(self, took: float, key: bool) -> Plan:
        """The plan for the next frame; `took`: seconds of the last one."""
        left = len(self.clip) - self.done
        if self.plan.bytes is not None:
            return self.plan.cheaper(*self._bytes_due(), self.done, left)
        if self.plan.psnr is not None:
            return self.plan.better(decibels(self.squares[-1]), self.psnr(), self.done, left)
        if key:
            self.clock.key = took
            return self.plan
        keys = -(-len(self.clip) // self.gop) - len(self.gops) - 1
        rest = self.plan.seconds - (time.monotonic() - self.began)
        allowed = self.clock.allowed(rest, left - keys, keys, len(self.hashes))
        return self.plan.quicker(took, allowed)

    def _bytes_due(self) -> tuple[int, float]:
        """Bytes spent so far and those that were meant, both with the slack of a few frames."""
        keys = -(-len(self.clip) // self.gop)
        key = self.plan.count * KEY_BYTES
        each = (self.plan.bytes * 0.97 - 600 - key * keys) / max(1, len(self.clip) - keys)
        begun = len(self.gops) + 1
        slack = 4 * max(each, 1.0)
        return int(self.bytes + slack), key * begun + each * (self.done - begun) + slack

    def close_gop(self, first: int) -> None:
        data = self.stretch.coded()
        self.whole = False
        self.gops.append({"first": first, "seconds": self.clip.seconds, "data": data, "hashes": self.hashes})
        self.bytes = sum(len(g["data"]) for g in self.gops)
        self.stretch, self.hashes, self.moments = None, [], None
        self.whole = True

    def write(self) -> None:
        seconds = [s for g in self.gops for s in g["seconds"]]
        base, pts = timestamps(seconds, self.clip.rate)
        header = Header(NAME, self.grid.width, self.grid.height, base, self.grid.config,
                        color=color_of(self.clip.source.path), exact=True)  # fmt: skip
        with ContainerWriter(self.out, header) as writer:
            self.add_gops(writer, 0, pts)
            audio = whole_audio(self.clip.source)
            if audio is not None:
                writer.set_audio(audio)

    def add_gops(self, writer: ContainerWriter, first: int, pts: list[int]) -> None:
        """All groups, of which the first one's first frame has the number `first` in the file."""
        for g in self.gops:
            at, n = g["first"], len(g["hashes"])
            writer.add_gop(first + at, pts[at : at + n], {0: g["data"]}, g["hashes"])

    # ---- the state file: safetensors, whole or not at all

    def save(self) -> None:
        facts = {
            **self.more_facts(), "out": str(self.out), "gop": self.gop,
            "plan": asdict(self.plan), "clock": asdict(self.clock), "grid": self.grid.config,
            "spent": time.monotonic() - self.began, "squares": self.squares, "bytes": self.bytes,
            "gops": [{"first": g["first"], "seconds": g["seconds"]} for g in self.gops],
            "variance_steps": self.moments.variance_steps if self.moments else 0,
        }  # fmt: skip
        arrays = {}
        for k, g in enumerate(self.gops):
            arrays[f"data{k}"] = np.frombuffer(g["data"], np.uint8)
            arrays[f"hashes{k}"] = np.frombuffer(b"".join(g["hashes"]), np.uint8)
        if self.stretch:
            arrays["key"] = np.frombuffer(self.stretch.key, np.uint8)
            arrays["lengths"] = np.array([len(c) for c in self.stretch.symbols])
            arrays["symbols"] = np.frombuffer(b"".join(self.stretch.symbols), np.uint8)
            arrays["hashes"] = np.frombuffer(b"".join(self.hashes), np.uint8)
            arrays["variance"] = self.moments.variance.numpy()
        write_state(state_path(self.out), self.clip, facts, arrays)

    def more_facts(self) -> dict:
        """What a state says beside what all fits say."""
        return {}

    @classmethod
    def again(cls, facts: dict, out: Path) -> dict:
        """Arguments that a state's facts stand for."""
        return {}

    @classmethod
    def load(cls, path: Path, began: float) -> Run:
        with reading_state(path) as (clip, facts, arrays):
            grid = Grid.from_config(facts["grid"], clip.size)
            out = path.with_suffix("")
            run = cls(clip, out, grid, facts["gop"], Plan(**facts["plan"]), began, facts["spent"],
                      **cls.again(facts, out))  # fmt: skip
            run.squares, run.bytes, run.clock = facts["squares"], facts["bytes"], Clock(**facts["clock"])
            for k, g in enumerate(facts["gops"]):
                run.gops.append({**g, "data": arrays[f"data{k}"].tobytes(), "hashes": _cut(arrays[f"hashes{k}"], 8)})
            if "key" in arrays:
                run.hashes = _cut(arrays["hashes"], 8)
                variance = torch.from_numpy(arrays["variance"].copy())
                run.moments = Moments(torch.zeros_like(variance), variance, 0, facts["variance_steps"])
                key = arrays["key"].tobytes()
                run.stretch = Stretch(grid, key, decode_key(memoryview(key), len(variance)))
                for symbols in _cut(arrays["symbols"], arrays["lengths"].tolist()):
                    run.stretch.again(symbols)
        return run


class Appending(Run):
    """An append in progress: the same fit, written behind what a file holds."""

    def __init__(self, *what, onto: Onto, **more):
        self.onto = onto
        super().__init__(*what, **more)

    def write(self) -> None:
        with self.onto.writer(self.out) as writer:
            seconds = [s for g in self.gops for s in g["seconds"]]
            self.add_gops(writer, self.onto.frames, ticks_behind(seconds, writer.header.time_base, self.onto.end))
        self.bytes = self.out.stat().st_size

    def more_facts(self) -> dict:
        return {"onto": asdict(self.onto)}

    @classmethod
    def again(cls, facts: dict, out: Path) -> dict:
        return {"onto": Onto(**facts["onto"]).same(out)}


def _cut(array: np.ndarray, sizes: int | list[int]) -> list[bytes]:
    data, parts, at = array.tobytes(), [], 0
    for size in [sizes] * (len(data) // sizes) if isinstance(sizes, int) else sizes:
        parts.append(data[at : at + size])
        at += size
    return parts
