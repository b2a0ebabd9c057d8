"""The network codecs: a video as a small decoder that all frames share and latents for each group of pictures.

`fit` and `resume` follow vidkernels/codec/protocol.py. nerv_train.py does the steps, nerv_bits.py codes the numbers,
nerv_model.py draws, nerv_plan.py decides beforehand how much work there is; after that nothing depends on the clock, so
that an interrupted fit goes on to the same bytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from .. import _check
from .clip import Clip, color_of, timestamps, whole_audio
from .container import ContainerWriter, Header, frame_hash
from .keys import CODERS
from .nerv_bits import Quantised
from .nerv_families import NETWORKS
from .nerv_integer import Ranges
from .nerv_mask import counted_pixels
from .nerv_model import CHUNK, FINER, SIDE
from .nerv_plan import GLANCE, Envelope, make_plan
from .nerv_planes import MOST_PLANES
from .nerv_train import STAGES, Plan, Trainer, Written
from .nerv_work import Work
from .protocol import Goal, Progress, Source, state_path
from .state import reading_state, safetensors_for, state_facts, write_state

_GOP = 66
_SEED = 0
_ROUNDS = 8  # more of a stage, at most, for a goal that was missed
_COARSER = 1.25  # steps of a round that is to save bytes


def fit(
    model: str,
    source: Source,
    out: Path,
    goal: Goal,
    *,
    gop: int | None,
    mask: Path | None = None,
    exact: bool = True,
    planes: int = 1,
    keys: str | None = None,
) -> Generator[Progress, None, Source]:
    """Fit `source` with a network and write `out`; see protocol.py.

    Args:     mask: a picture or video; pixels under its bright parts do not count.
              exact: the file is drawn from integers, to the same bits everywhere; False: from floats.
              planes: in so many the weights are coded, coarse ones first, so that the beginning of a file shows
              something; 1 to 4.
              keys: the coder of the key frames (keys.py), of the model "flow" alone; None: "av1".
    """
    began = time.monotonic()
    safetensors_for("fit")  # asked now, not when the first state is saved
    if not 1 <= planes <= MOST_PLANES:
        _check.fail("fit", f"expected 1 to {MOST_PLANES} planes.", planes=planes)
    if keys is not None and (model != "flow" or keys not in CODERS):
        _check.fail("fit", f"expected `keys` to be one of {', '.join(CODERS)}, and the model flow.",
                    keys=keys, model=model)  # fmt: skip
    path = Path(os.path.abspath(source.path))
    clip = Clip(Source(path, source.start, source.end, source.size))
    mask = None if mask is None else Path(os.path.abspath(mask))
    frames, counted = pictures(clip, mask)
    plan, side = make_plan(model, clip, frames, counted, goal, min(gop or _GOP, len(clip)), exact, planes, keys, began)
    return (yield from Run(model, clip, Path(out), plan, side, frames, counted, began, mask=mask).work())


def resume(state: Path) -> Generator[Progress, None, Source]:
    """Go on from a state file; see protocol.py."""
    from .nerv_append import Appending

    kind = Appending if "onto" in state_facts(state) else Run
    return (yield from kind.load(Path(state), time.monotonic()).work())


def pictures(clip: Clip, mask: Path | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    frames = clip.load(0, len(clip))
    return frames, None if mask is None else counted_pixels(mask, len(clip), clip.size)


def header_config(plan: Plan) -> dict:
    """Of the network, and of how it is coded where that is not the usual way."""
    return plan.config if plan.planes == 1 else {**plan.config, "planes": plan.planes}


class Run(Work):
    """A fit in progress. `base`: weights that the fit's are coded as differences to."""

    def __init__(
        self,
        model: str,
        clip: Clip,
        out: Path,
        plan: Plan,
        side: bytes,
        frames: torch.Tensor,
        counted: torch.Tensor | None,
        began: float,
        *,
        mask: Path | None = None,
        spent: float = 0.0,
        base: dict[str, Quantised] | None = None,
    ):
        self.model, self.clip, self.out, self.mask, self.side = model, clip, out, mask, side
        self.began, self.seconds = began - spent, clip.seconds
        network = NETWORKS[model].network(plan.config, clip.size, torch.Generator().manual_seed(_SEED), side)
        self.trainer = Trainer(network, frames, counted, plan, _SEED, base)
        self.envelope = self.surroundings()
        self.rounds = 0  # added to the last two stages
        self.best: float | None = None  # PSNR after the round before

    def surroundings(self) -> Envelope:
        """What the file holds beside the model's bytes."""
        plan = self.trainer.plan
        return Envelope(self.model, self.clip, header_config(plan), plan.gop, plan.exact, self.side)

    # ---- what there is to do

    def _step(self) -> None:
        trainer = self.trainer
        look = STAGES[trainer.stage] in ("noise", "round") and (trainer.into + 1) % trainer.plan.check == 0
        trainer.step()
        if look:
            trainer.plan = trainer.plan.steered(*self._look(trainer.written(), GLANCE))

    def _look(self, written: Written, most: int | None = None) -> tuple[int, float]:
        """(bytes that the goal is about, mean PSNR of all or `most` frames) if the file were written now."""
        values = self.trainer.psnr(written, most)
        size = self.envelope.bytes(list(map(len, self.chunks(written))), list(map(len, written.layers)))
        self.seen = sum(values) / len(values), size
        return size, self.seen[0]

    def _after_stage(self) -> Written | None:
        """Begin the next stage, or once more the one that missed its goal; at the end, what is to be written."""
        trainer, plan, name = self.trainer, self.trainer.plan, STAGES[self.trainer.stage]
        if name in ("float", "noise"):
            trainer.enter(trainer.stage + 1)
            return None
        written = trainer.written()
        size, psnr = self._look(written)
        large = plan.bytes is not None and size > plan.bytes
        # A round that brings nothing shows that the network can do no better.
        poor = plan.psnr is not None and psnr < plan.psnr and (self.best is None or psnr > self.best + 0.02)
        if (large or (poor and name == "round" and not plan.timed)) and self.rounds < _ROUNDS:
            self.rounds, self.best = self.rounds + 1, psnr
            trainer.plan = plan.dearer(1.6) if large else plan.dearer(0.5)
            if large and name == "round":
                trainer.coarsen(_COARSER)
            trainer.enter(trainer.stage)
            return None
        if name == "round":
            self.rounds, self.best = 0, None
            trainer.enter(trainer.stage + 1)
            return None
        if large:
            _check.fail("fit", f"the network did not come below {size} bytes.", "allow more bytes.", bytes=plan.bytes)
        return written

    def chunks(self, written: Written) -> list[bytes]:
        """What is shared by all frames, as the file holds it."""
        return written.chunks

    def write(self, written: Written) -> None:
        """The file, with the hash of every frame as a reader will draw it."""
        plan = self.trainer.plan
        base, pts = timestamps(self.seconds, self.clip.rate)
        height, width = self.clip.size
        header = Header(self.model, width, height, base, header_config(plan),
                        color=color_of(self.clip.source.path), exact=plan.exact)  # fmt: skip
        with ContainerWriter(self.out, header) as writer:
            coarse, *finer = self.chunks(written)
            writer.add_chunk(CHUNK, coarse)
            if self.side:
                writer.add_chunk(SIDE, self.side)
            self.add_gops(writer, written, 0, pts)
            audio = whole_audio(self.clip.source)
            if audio is not None:
                writer.set_audio(audio)
            for kind, data in zip(FINER, finer, strict=False):
                writer.add_chunk(kind, data)
        self.seen = self.seen[0], self.out.stat().st_size

    def add_gops(self, writer: ContainerWriter, written: Written, first: int, pts: list[int]) -> None:
        """The latents of all frames, whose first one has the number `first` in the file."""
        drawer, gop = written.numbers.drawer(self.trainer.network), self.trainer.plan.gop
        for k, layer in enumerate(written.layers):
            at = k * gop
            latents = torch.from_numpy(written.latents[at : at + gop])
            hashes = [frame_hash(drawer.draw(x, at + i)) for i, x in enumerate(latents)]
            writer.add_gop(first + at, pts[at : at + len(hashes)], {0: layer}, hashes)

    # ---- the state file

    def save(self) -> None:
        t = self.trainer
        try:
            arrays = t.arrays()
        except FloatingPointError as error:
            _check.fail("fit", f"the fit diverged: {error}; the last good numbers are kept in the state.",
                        error=FloatingPointError, state=str(state_path(self.out)))  # fmt: skip
        facts = {
            **self.more_facts(), "model": self.model, "plan": asdict(t.plan),
            "at": t.at, "stage": t.stage, "into": t.into, "rounds": self.rounds, "seen": self.seen,
            "ranges": None if t.ranges is None else asdict(t.ranges), "best": self.best,
            "spent": time.monotonic() - self.began,
            "mask": self.mask_fact(),
        }  # fmt: skip
        arrays["side"] = np.frombuffer(self.side, np.uint8)
        write_state(state_path(self.out), self.clip, facts, arrays)

    @classmethod
    def load(cls, path: Path, began: float) -> Run:
        with reading_state(path) as (clip, facts, arrays):
            mask = cls.same_mask(facts)
            plan = Plan(**{**facts["plan"], "steps": tuple(facts["plan"]["steps"])})
            side = arrays["side"].tobytes()
            run = cls(facts["model"], clip, path.with_suffix(""), plan, side, *pictures(clip, mask), began, mask=mask,
                      spent=facts["spent"], **cls.again(facts, path.with_suffix("")))  # fmt: skip
            run.rounds, run.best = facts["rounds"], facts["best"]
            run.seen = None if facts["seen"] is None else tuple(facts["seen"])
            run.trainer.restore(arrays, facts["at"], facts["stage"], facts["into"],
                                None if facts["ranges"] is None else Ranges(**facts["ranges"]))  # fmt: skip
        return run
