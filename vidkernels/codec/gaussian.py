"""The Gaussian codec: a video fitted by 2D Gaussians that live from frame to frame, in a `.vkv` file.

Each group of pictures holds a key frame and the changes of its Gaussians (gaussian_fit.py fits them, gaussian_bits.py
codes them); decoding is exact (gaussian_model.py). `fit` and `resume` follow vidkernels/codec/protocol.py: all
decisions depend on what the state file holds, never on the clock after the start, so that an interrupted fit goes on
to the same bytes.
"""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Generator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from .. import _check
from .block_motion import Motion, block_motion, still
from .clip import Clip, color_of, decibels, ticks_behind, timestamps, whole_audio
from .container import ContainerReader, ContainerWriter, Header, frame_hash
from .gaussian_bits import Written, decode_key, encode_key
from .gaussian_fit import Moments, Plan, descend, fit_change, fit_key
from .gaussian_model import FINE_LOG2, Grid, join_gop
from .onto import Onto
from .passes import Estimate, encode_passes
from .protocol import Goal, Progress, Source, state_path
from .state import reading_state, safetensors_for, state_facts, write_state

NAME = "gaussian"
_GOP = 66
_SEED = 0
_SAVE_EVERY = 5.0  # seconds
_PIXELS_PER_GAUSSIAN = 30.0
_PIXELS_IN_HASTE = 24.0  # where time, not size, is the limit
_KEY_SHARE = 0.3  # of the bytes, at most, for key frames
_KEY_BYTES = 6.0  # of one Gaussian


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
    plan = _plan(clip, grid, goal, gop)
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
    plan = _plan(clip, grid, goal, gop)
    return (yield from Appending(clip, path, grid, gop, plan, began, onto=onto).work())


def _plan(clip: Clip, grid: Grid, goal: Goal, gop: int) -> Plan:
    frames, pixels = len(clip), clip.size[0] * clip.size[1]
    keys = -(-frames // gop)
    count = max(16, round(pixels / _PIXELS_PER_GAUSSIAN))
    if goal.seconds is not None:
        count = max(16, round(pixels / _PIXELS_IN_HASTE))
        q, moments = fit_key(clip[0], grid, count, 30, torch.Generator().manual_seed(_SEED))
        numbers, pace = grid.values(q * grid.steps), torch.ones(12)
        descend(numbers, None, moments, clip[0], pace)  # warms up
        step = _seconds(lambda: descend(numbers, None, moments, clip[0], pace)) / len(pace)

        def beside():  # what a frame needs beside its steps
            stretch = Stretch(grid, b"", q)
            stretch.add(still(*clip.size, grid.block), q)
            return grid.draw(numbers), grid.draw(numbers), stretch.coded()

        each = _seconds(beside)
        steps_all = max(0.0, 1.04 * goal.seconds - frames * each) / step
        steps = max(4, round(0.92 * steps_all / frames))
        key_steps = max(40, round(min(steps_all * 0.08 / keys, 1200)))
        return Plan(count, key_steps, min(steps, 400), price=1e-5, haste=1.5 if steps < 60 else 1.0)
    if goal.bytes is not None:
        room = goal.bytes
        if room < 1000 + 100 * keys:
            _check.fail("fit", f"the audio track leaves {room} bytes for the pictures.",
                        "allow more bytes, or cut a part out: only a whole clip keeps its audio.")  # fmt: skip
        bits = 8 * room / (frames * pixels)
        suits = round(pixels / 41 * (bits / 0.12) ** 1.25)  # measured on one clip; the price does the rest
        affordable = int(_KEY_SHARE * room / keys / _KEY_BYTES)
        return Plan(max(16, min(suits, affordable)), 800, 100, price=0.002, bytes=room)
    density = 10 ** ((goal.psnr - 35.1) / 9)  # measured on one clip; the price does the rest
    return Plan(max(16, round(count * min(8.0, density))), 800, 100, price=0.002, psnr=goal.psnr)


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
        target = self.clip[i]
        if i == first:
            generator = torch.Generator().manual_seed(_SEED + i)
            key, moments = fit_key(target, self.grid, self.plan.count, self.plan.key_steps, generator)
            stretch = Stretch(self.grid, encode_key(key), key)
            q = stretch.q
        else:
            stretch = self.stretch
            # On a copy: interrupted within a frame, the state must be that of the frame before.
            moments = replace(self.moments, mean=self.moments.mean.clone(), variance=self.moments.variance.clone())
            motion = still(*self.clip.size, self.grid.block)
            if self.plan.haste == 1:  # looking for it takes as long as ten steps
                motion = block_motion(self.clip[i - 1], target, stretch.changes.motion.coarse, self.grid.block)
            moved = self.grid.moved(stretch.q, motion)
            change = fit_change(moved, moments, target, self.grid, self.plan.steps, self.plan.price,
                                self.plan.haste)  # fmt: skip
            q = moved + change * self.grid.steps
        picture = self.grid.draw(self.grid.values(q))
        square = float((picture.float() - target.float()).square().mean(dtype=torch.float64)) / 255**2
        if not math.isfinite(float(moments.variance.sum())):
            _check.fail("fit", f"the fit diverged at frame {i}; the frames before it are kept in the state.",
                        error=FloatingPointError)  # fmt: skip
        digest = frame_hash(picture)
        self.whole = False
        if i > first:
            stretch.add(motion, change)
        self.stretch, self.moments = stretch, moments
        self.hashes.append(digest)
        self.bytes = sum(len(g["data"]) for g in self.gops) + stretch.bytes()
        self.squares.append(square)
        self.plan = self.plan.steered(*self._bytes_due(), decibels(square))
        self.whole = True

    def _bytes_due(self) -> tuple[int, float]:
        """Bytes spent so far and those that were meant, both with the slack of a few frames."""
        if self.plan.bytes is None:
            return 0, 0.0
        keys = -(-len(self.clip) // self.gop)
        key = self.plan.count * _KEY_BYTES
        each = (self.plan.bytes * 0.98 - 600 - key * keys) / max(1, len(self.clip) - keys)
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
            "plan": asdict(self.plan), "grid": self.grid.config,
            "spent": time.monotonic() - self.began, "squares": self.squares, "bytes": self.bytes,
            "gops": [{"first": g["first"], "seconds": g["seconds"]} for g in self.gops],
            "moment_steps": self.moments.steps if self.moments else 0,
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
            arrays["mean"], arrays["variance"] = self.moments.mean.numpy(), self.moments.variance.numpy()
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
            run.squares, run.bytes = facts["squares"], facts["bytes"]
            for k, g in enumerate(facts["gops"]):
                run.gops.append({**g, "data": arrays[f"data{k}"].tobytes(), "hashes": _cut(arrays[f"hashes{k}"], 8)})
            if "key" in arrays:
                run.hashes = _cut(arrays["hashes"], 8)
                mean, variance = (torch.from_numpy(arrays[k].copy()) for k in ("mean", "variance"))
                run.moments = Moments(mean, variance, facts["moment_steps"])
                key = arrays["key"].tobytes()
                run.stretch = Stretch(grid, key, decode_key(memoryview(key), len(mean)))
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


def _seconds(work) -> float:
    """The shortest of three tries: other work on the machine only adds."""
    tries = []
    for _ in range(3):
        start = time.monotonic()
        work()
        tries.append(time.monotonic() - start)
    return min(tries)
