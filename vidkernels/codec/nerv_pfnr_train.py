"""The steps of a fit of one video of a progressive network: first floats and scores, then multiples of a step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..models.nerv.fit import FitConfig, picture_loss
from ..models.nerv.pfnr import PFNR
from ..nn.nerv.optim import MultiTensorAdam
from .clip import decibels
from .nerv_pfnr_bits import encode_session, round_head
from .nerv_pfnr_video import draw

FLOAT_SHARE = 0.75  # of the steps; masks and steps of the weights are then fixed
_BATCH = 2
_BETAS = (0.9, 0.99)
_MOMENTS = ("exp_avg", "exp_avg_sq")
_FINENESS = [0.04 * 1.25**i for i in range(13)]  # steps, in standard deviations of a tensor's weights
_LOST = 0.7  # decibels that steps may cost before they are learned with, where neither bytes nor PSNR are given
_REGAINED = 0.3  # that learning with them brings back, at least
_SLOWER = 0.3  # rate of learning with steps, over that without


@dataclass(frozen=True)
class Plan:
    """A fit: the network's config, steps of optimisation of the two stages, frames of a group of pictures, goals;
    `timed`: the steps come from a time, which more of them would break."""

    config: dict
    steps: tuple[int, int]
    gop: int
    rate: float = 2e-3
    bytes: int | None = None
    psnr: float | None = None
    timed: bool = False


@dataclass(frozen=True)
class Written:
    """A session as bytes, and a network that has it as a reader will."""

    chunk: bytes
    network: PFNR


class Trainer:
    """A fit of the session that `network` has begun.

    Args:     frames: [T, H, W, 3] uint8. counted: [1 or T, H, W] bool, pixels that matter; None: all.
              around: a chunk -> the bytes that the goal is about.
    """

    def __init__(
        self, network: PFNR, frames: torch.Tensor, counted: torch.Tensor | None, plan: Plan, around: Callable = len
    ):
        self.network, self.frames, self.plan, self.around = network, frames, plan, around
        self.counted = None if counted is None else counted.expand(frames.shape[:3])
        self.at = self.stage = self.into = 0
        self.fineness: float | None = None
        self._start()

    def _start(self) -> None:
        chosen = self.stage == 0
        for tensor in self.network.tensors():
            tensor.scores.requires_grad_(chosen)
        self._learned = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        self._optimizer = MultiTensorAdam(self._learned.values(), betas=_BETAS)
        rate = self.plan.rate * (1 if chosen else _SLOWER)
        self._pace = FitConfig(max(1, self.plan.steps[self.stage]), _BATCH, rate, 0.1 if chosen else 0.0)

    def step(self) -> None:
        shown = self._numbers()
        hidden = None if self.counted is None else ~self.counted[shown]
        loss = picture_loss(self.network(shown), self.frames[shown], hidden)
        self._optimizer.zero_grad()
        loss.backward()
        size = torch.nn.utils.get_total_norm([p.grad for p in self._learned.values() if p.grad is not None])
        if not math.isfinite(float(loss.detach() + size)):
            raise FloatingPointError(f"loss or gradient stopped being finite at step {self.at + 1}")
        for group in self._optimizer.param_groups:
            group["lr"] = self._pace.learning_rate_at(self.into)
        self._optimizer.step()
        self.at, self.into = self.at + 1, self.into + 1

    def _numbers(self) -> torch.Tensor:
        """Every frame once, in an order of its own each time; depends on the number of the step alone."""
        count = len(self.frames)
        batch = min(_BATCH, count)
        each = count // batch
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.at // each))
        return order[self.at % each * batch :][:batch]

    def refine(self, fineness: float | None = None) -> None:
        """Begin the second stage, or once more; None chooses how coarse the weights become."""
        self.fineness = self._chosen() if fineness is None else fineness
        self._set_steps(self.fineness)
        self.stage, self.into = 1, 0
        self._start()

    def _chosen(self) -> float:
        plan, found = self.plan, None
        best = self.psnr(self.network)
        for fineness in _FINENESS if plan.bytes is None else reversed(_FINENESS):
            self._set_steps(fineness)
            if plan.bytes is not None:
                fits = self.around(self.written().chunk) <= plan.bytes
            else:
                wanted = best - _LOST if plan.psnr is None else plan.psnr - _REGAINED
                fits = self.psnr(self._finished()) >= wanted
            if not fits:
                break
            found = fineness
        return found or (_FINENESS[0] if plan.bytes is None else _FINENESS[-1])

    def _set_steps(self, fineness: float) -> None:
        share, reuse = self.network.share, self.network.reuse
        for tensor in self.network.tensors():
            new = tensor.weight.detach()[tensor.mask(share, reuse) & ~tensor.frozen]
            spread = float(new.std(correction=0)) if len(new) else 0.0
            tensor.step = float(np.float32(max(fineness * spread, 1e-6)))

    def _finished(self) -> PFNR:
        """A network in which the session is done."""
        network = copy.deepcopy(self.network)
        round_head(network)
        network.finish_session()
        return network

    def written(self) -> Written:
        network = self._finished()
        return Written(encode_session(network, network.session), network)

    def psnr(self, network: PFNR) -> float:
        """Mean over the frames, of what is counted."""
        total, count = 0.0, len(self.frames)
        for i, frame in enumerate(self.frames):
            error = ((draw(network, network.session, i / count).float() - frame.float()) / 255).square()
            total += decibels(float((error if self.counted is None else error[self.counted[i]]).mean()))
        return total / count

    # ---- what an interrupted fit goes on from

    def arrays(self) -> dict[str, np.ndarray]:
        kept = {f"network.{n}": v for n, v in self.network.state_dict().items() if isinstance(v, torch.Tensor)}
        for name, value in self._learned.items():
            state = self._optimizer.state.get(value, {})
            kept |= {f"{key}.{name}": state[key] for key in _MOMENTS if key in state}
        return {name: value.detach().numpy() for name, value in kept.items()}

    def facts(self) -> dict:
        steps = [tensor.step for tensor in self.network.tensors()]
        return {"at": self.at, "stage": self.stage, "into": self.into, "fineness": self.fineness, "steps": steps}

    def restore(self, arrays: dict[str, np.ndarray], facts: dict) -> None:
        own = self.network.state_dict()
        for name, value in own.items():
            if isinstance(value, torch.Tensor):
                value.copy_(torch.from_numpy(arrays[f"network.{name}"]))
        for tensor, step in zip(self.network.tensors(), facts["steps"], strict=True):
            tensor.step = step
        self.at, self.stage, self.into, self.fineness = (facts[k] for k in ("at", "stage", "into", "fineness"))
        self._start()
        for name, value in self._learned.items():
            if f"{_MOMENTS[0]}.{name}" in arrays:
                moments = {key: torch.from_numpy(arrays[f"{key}.{name}"].copy()) for key in _MOMENTS}
                self._optimizer.state[value] = {"step": self.into, **moments}


def split_steps(plan: Plan, steps: int) -> Plan:
    first = max(4, round(FLOAT_SHARE * steps))
    return replace(plan, steps=(first, max(4, steps - first)))
