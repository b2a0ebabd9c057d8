"""How much work a fit of a network does, and how large the network is: from a goal, a clip, and a few timed steps."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from .. import _check
from . import layout
from .clip import Clip, color_of, timestamps, whole_audio
from .container import ContainerReader, Header
from .nerv_bits import Quantised
from .nerv_families import NETWORKS
from .nerv_model import Network
from .nerv_train import STAGES, Plan, Trainer
from .protocol import Goal

_LOOKS = 10  # at bytes and PSNR, in the stages that have them
_LEAST_LOOKS, _LOOKING = 3, 0.1  # where time is given as well: at least so many, or in so much of it
GLANCE = 24  # frames whose PSNR is asked for on the way; at the end of a stage it is that of all
_EPOCHS = 150  # where no time is given
_LEAST_STEPS, _MOST_STEPS = 1500, 20_000
_TIMED = 6  # steps, of which the fastest counts: other work on the machine only adds
_WEIGHT_BITS = 0.5  # of a weight, about, in a file that is to be small: most of them are 0
_USUAL = 132 * 160 * 320  # pixels of the clip that the rules below were measured on


def make_plan(
    model: str,
    clip: Clip,
    frames: torch.Tensor,
    counted: torch.Tensor | None,
    goal: Goal,
    gop: int,
    exact: bool,
    planes: int,
    keys: str | None,
    began: float,
) -> tuple[Plan, bytes]:
    """The plan, and what the file holds beside the network."""
    family = NETWORKS[model]
    exact = exact and family.exact
    pixels = math.prod(frames.shape[:3])
    most = pixels / 8  # weights; more could not be found from so few pixels
    steps = usual_steps(len(clip))
    room = None
    if goal.only_time:
        weights = 500_000 * math.sqrt(goal.seconds / 120)
    elif goal.bytes is not None:
        room = goal.bytes - Envelope(model, clip, {}, gop, exact).bytes([0] * planes, [0] * -(-len(clip) // gop))
        if room < 1000:
            _check.fail("fit", f"sound, times and hashes leave {room} bytes for the pictures.",
                        "allow more bytes, or cut a part out: only a whole clip keeps its audio.")  # fmt: skip
        weights = 8 * family.in_weights * family.rest * room / _WEIGHT_BITS
    else:
        weights = 300_000 * 10 ** ((goal.psnr - 30) / 8) * math.sqrt(pixels / _USUAL)  # the price does the rest
    config = family.config(clip.size, min(weights, most), len(clip)) | ({} if keys is None else {"coder": keys})
    plan = Plan(config, stages(steps, family.shares), gop, exact, check=looks(steps), bytes=goal.bytes, psnr=goal.psnr,
                planes=planes)  # fmt: skip
    side = family.side(config, frames, goal, room)
    if goal.seconds is not None:
        network = family.network(config, clip.size, torch.Generator().manual_seed(0), side)
        plan = timed(plan, family.shares, network, frames, counted, goal.seconds, began)
    return plan, side


def usual_steps(frames: int) -> int:
    """Of a fit that has no limit in time."""
    return max(_LEAST_STEPS, min(_MOST_STEPS, _EPOCHS * frames // 2))


def looks(steps: int) -> int:
    """Steps from one look at bytes and PSNR to the next."""
    return max(1, steps // _LOOKS)


def timed(
    plan: Plan,
    shares: Sequence[float],
    network: Network,
    frames: torch.Tensor,
    counted: torch.Tensor | None,
    seconds: float,
    began: float,
    base: dict[str, Quantised] | None = None,
) -> Plan:
    """The plan with as many steps as fit into so many seconds since `began`."""
    trainer = Trainer(network, frames, counted, replace(plan, steps=stages(0, shares)), base=base)
    each, look = _pace(trainer, 0.01 * seconds)
    left = 0.97 * seconds - (time.monotonic() - began) - 3 * look * max(1, len(frames) / GLANCE)
    count = 0
    if plan.bytes is not None or plan.psnr is not None:
        count = max(_LEAST_LOOKS, min(_LOOKS, int(_LOOKING * left / max(look, 1e-6))))
        left -= count * look
    steps = max(40, int(left / sum(t * share for t, share in zip(each, shares, strict=True))))
    watched = sum(stages(steps, shares)[1:3])
    return replace(plan, steps=stages(steps, shares), check=max(1, watched // count) if count else steps, timed=True)


def stages(steps: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Steps of each stage."""
    return tuple(max(4, round(share * steps)) if share else 0 for share in shares)


def _pace(trainer: Trainer, most: float) -> tuple[list[float], float]:
    """Seconds of a step of each stage, and of a look at what would be written; `most`: to spend on a stage's steps."""
    each = []
    for stage in range(len(STAGES)):
        if not trainer.plan.steps[stage]:
            each.append(0.0)
            continue
        trainer.enter(stage)
        tries, end = [], time.monotonic() + most
        while len(tries) < 2 or (len(tries) < _TIMED and time.monotonic() < end):
            tries.append(_seconds(trainer.step))
        each.append(min(tries))
    return each, _seconds(lambda: trainer.psnr(trainer.written(), GLANCE))


def _seconds(work) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


class Envelope:
    """What a file holds beside the model's own bytes: times, hashes, sound, index."""

    def __init__(self, model: str, clip: Clip, config: dict, gop: int, exact: bool, side: bytes = b""):
        self._start = layout.PRELUDE.size
        height, width = clip.size
        base, pts = timestamps(clip.seconds, clip.rate)
        header = Header(model, width, height, base, config, color=color_of(clip.source.path), exact=exact)
        self._heads = [len(header.to_bytes())]
        groups = [pts[k : k + gop] for k in range(0, len(pts), gop)]
        self._heads += [gop_head(times, header.hash_bytes) for times in groups]
        audio = whole_audio(clip.source)
        self._heads += [] if audio is None else [len(audio.to_bytes())]
        own = bool(side) + (audio is not None)
        self._heads += [len(side)] if side else []
        index = layout.INDEX.size + len(groups) * (layout.GOP_RECORD.itemsize + layout.LAYER_RECORD.itemsize)
        self._heads += [layout.TAIL.size]
        self._index = index + own * layout.OTHER_RECORD.itemsize

    def bytes(self, chunks: Sequence[int], layers: Sequence[int]) -> int:
        """Of the file with shared chunks and layers of these lengths."""
        index = self._index + len(chunks) * layout.OTHER_RECORD.itemsize
        pieces = [*self._heads, index, *chunks, *(layout.LAYER.size + n for n in layers)]
        return self._start + sum(layout.HEAD.size + n + layout.padding(n) for n in pieces)


class AppendedEnvelope(Envelope):
    """What a file holds beside the bytes that a model adds to it: all that was there, and what comes around the new.

    Args:     reader: of the file. pts: of the new frames. gop: how many of them make a group.
    """

    def __init__(self, reader: ContainerReader, pts: Sequence[int], gop: int):
        self._start = reader.end
        groups = [pts[k : k + gop] for k in range(0, len(pts), gop)]
        self._heads = [gop_head(times, reader.header.hash_bytes) for times in groups]
        old = reader.index
        index = layout.INDEX.size + (len(old.gops) + len(groups)) * layout.GOP_RECORD.itemsize
        index += (len(old.layers) + len(groups)) * layout.LAYER_RECORD.itemsize
        self._heads += [layout.TAIL.size]
        self._index = index + len(old.others) * layout.OTHER_RECORD.itemsize


def gop_head(times: Sequence[int], hash_bytes: int) -> int:
    """Bytes of the head of a group whose frames have these times."""
    uneven = len({b - a for a, b in itertools.pairwise(times)}) > 1
    return layout.GOP.size + (4 * (len(times) - 1) if uneven else 0) + hash_bytes * len(times)
