"""How much work a fit of Gaussians does, and how it is steered to its goal from one frame to the next."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch

from .. import _check
from .clip import Clip
from .gaussian_fit import descend, fit_key
from .gaussian_model import Grid
from .protocol import Goal

SEED = 0
KEY_BYTES = 6.0  # of one Gaussian
_PIXELS_PER_GAUSSIAN = 40.0
_PIXELS_IN_HASTE = 24.0  # where time, not size, is the limit
_ENOUGH = 40  # steps of a frame for so many Gaussians, if there were time for nothing else
_KEY_STEPS, _LATER_STEPS = 800, 50  # where no time is given; twice as many later ones took 6% more bytes
_KEY_SHARE = 0.3  # of the bytes, at most, for key frames
_KEY_TIME = 0.08  # of the time, for key frames
_PRICES = (3e-4, 0.05)  # between which steering stays
_GAIN = 0.15  # of the price, logarithmically, for a decibel off the aim
MARGIN = 0.02  # decibels, of the aim over the goal
_MOST_OFF = 0.5  # decibels that the aim may be off the goal, to make up for earlier frames
_HURRY = 8.0  # times what the price changes for the same share of bytes too many, at the end
_STEPS = (4, 400)  # between which those of a later frame stay
_CODING = 3.0  # times what it takes to add a frame to its GOP: its part of coding that


@dataclass(frozen=True)
class Plan:
    """What the next frames are fitted with.

    count: Gaussians of a key frame. key_steps, steps: of a key frame and of a later one. price: see fit_change.
    bytes, psnr: what the price is steered to; None: it stays. seconds: what the steps are steered to.
    """

    count: int
    key_steps: int
    steps: int
    price: float
    bytes: int | None = None
    psnr: float | None = None
    seconds: float | None = None

    def cheaper(self, spent: int, due: float, done: int, left: int) -> Plan:
        """For the next frame: `spent` bytes where `due` were meant. The fewer frames are left, the more it matters."""
        return self._priced((spent / max(1.0, due) - 1) * min(_HURRY, (done + left) / max(1, left)))

    def better(self, last: float, mean: float, done: int, left: int) -> Plan:
        """For the next frame: PSNR of the last one and of all that are done. What is left makes up for those."""
        aim = self.psnr + MARGIN
        missing = (aim - mean) * done / max(1, left)
        return self._priced(_GAIN * (last - aim - max(-_MOST_OFF, min(_MOST_OFF, missing))))

    def _priced(self, off: float) -> Plan:
        factor = math.exp(max(-0.2, min(0.2, off)))
        return replace(self, price=min(_PRICES[1], max(_PRICES[0], self.price * factor)))

    def quicker(self, took: float, allowed: float) -> Plan:
        """For the next frame: a later frame `took` seconds where `allowed` are left for each."""
        steps = round(self.steps * max(0.5, min(1.5, allowed / took)))
        return replace(self, steps=max(_STEPS[0], min(_STEPS[1], steps)))


@dataclass
class Clock:
    """What a fit with a time limit has seen: seconds of the last key frame, and of adding a later one to its GOP."""

    key: float = 0.0
    adding: float = 0.0

    def allowed(self, left: float, frames: int, keys: int, uncoded: int) -> float:
        """Seconds for each of `frames` later ones, where `left` are left for them, for `keys` and to code all that is
        not coded yet, `uncoded` frames of them done."""
        coding = _CODING * self.adding * (frames + uncoded)
        return max(0.0, left - self.key * keys - coding) / max(1, frames)


def plan_for(clip: Clip, grid: Grid, goal: Goal, gop: int) -> Plan:
    """The plan at the beginning."""
    frames, pixels = len(clip), clip.size[0] * clip.size[1]
    keys = -(-frames // gop)
    count = max(16, round(pixels / _PIXELS_PER_GAUSSIAN))
    if goal.seconds is not None:
        count = max(16, round(pixels / _PIXELS_IN_HASTE))
        step = _seconds_of_a_step(clip, grid, count)
        few = max(1.0, min(4.0, _ENOUGH * step * frames / goal.seconds))
        count = max(16, round(count / few**0.7))  # where there is no time for enough steps; measured on one clip
        key_steps = max(40, min(1200, round(_KEY_TIME * goal.seconds / keys / step)))
        plan = Plan(count, key_steps, 1, price=1e-5, seconds=goal.seconds)
        return replace(plan, steps=max(_STEPS[0], min(_STEPS[1], round(0.7 * goal.seconds / frames / step))))
    if goal.bytes is not None:
        room = goal.bytes
        if room < 1000 + 100 * keys:
            _check.fail("fit", f"the audio track leaves {room} bytes for the pictures.",
                        "allow more bytes, or cut a part out: only a whole clip keeps its audio.")  # fmt: skip
        bits = 8 * room / (frames * pixels)
        suits = round(pixels / 40 * (bits / 0.15) ** 0.75)  # measured on one clip; the price does the rest
        affordable = int(_KEY_SHARE * room / keys / KEY_BYTES)
        return Plan(max(16, min(suits, affordable)), _KEY_STEPS, _LATER_STEPS, price=0.002, bytes=room)
    density, price = 10 ** ((goal.psnr - 35.1) / 9), 0.001 * 10 ** ((35 - goal.psnr) / 6)  # measured on one clip
    price = min(_PRICES[1], max(_PRICES[0], price))
    return Plan(max(16, round(count * min(8.0, density))), _KEY_STEPS, _LATER_STEPS, price, psnr=goal.psnr)


def _seconds_of_a_step(clip: Clip, grid: Grid, count: int) -> float:
    q, moments = fit_key(clip[0], grid, count, 12, torch.Generator().manual_seed(SEED))
    numbers, pace = grid.values(q * grid.steps), torch.ones(6)
    began = time.monotonic()
    descend(numbers, None, moments, clip[0], pace)
    return (time.monotonic() - began) / len(pace)
