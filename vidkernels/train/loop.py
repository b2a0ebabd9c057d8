"""One loop for every method: AdamW, warm-up and cosine, checkpoints, resume to the bit, several processes.

What a step computes depends only on the state after the step before, and all of that state is in the
checkpoint: weights, optimiser, random generators, position in the data. So a run that was stopped and resumed
ends with the same bits as one that was not (same machine, same thread count).
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from vidkernels._half import multiplies

from .checkpoint import CheckpointError, load_checkpoint, previous, save_checkpoint
from .order import ClipBatches
from .progress import progress_bar

_FORMAT = 1
# How a run is carried out, not what it computes: these may change on resume.
_FREE = ("checkpoint_every", "workers")


class NonFiniteLossError(RuntimeError):
    """The loss or a gradient became NaN or infinite; the weights are those of the step before."""


def fastest_precision(device: torch.device | str) -> str:
    """The `precision` of `TrainConfig` in which matrix products are fastest.

    Args:
        device: where the model is.
    Returns:
        "bf16" on GPUs and on CPUs with instructions for it (AVX-512 and later), else "fp32".
    Raises:
        RuntimeError: from torch, for a device that it does not know.
    Backends: torch. Deterministic: yes.
    Source: ours.
    Example:
        >>> fastest_precision("cpu") in ("bf16", "fp32")
        True
    """
    return "bf16" if multiplies(torch.bfloat16, torch.device(device).type) else "fp32"


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to train. `batch_size` is per process."""

    steps: int
    batch_size: int
    learning_rate: float = 1.5e-4
    warmup_steps: int = 0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    precision: str = "fp32"
    checkpoint_every: int = 100
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(
                f"TrainConfig: expected `precision` 'fp32' or 'bf16', got {self.precision!r}.\n"
                "HINT: bf16 runs the matrix products in bfloat16 and keeps the weights in float32."
            )
        if min(self.steps, self.batch_size, self.checkpoint_every) < 1:
            raise ValueError(
                "TrainConfig: expected `steps`, `batch_size` and `checkpoint_every` of at least 1.\n"
                f"  steps            : {self.steps}\n  batch_size       : {self.batch_size}\n"
                f"  checkpoint_every : {self.checkpoint_every}\nHINT: train for one step to try things out."
            )

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to zero at `steps`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class TrainReport:
    """How a run ended: steps done in all, every step's loss, seconds spent now, stopped by Ctrl-C or not."""

    step: int
    losses: list[float]
    seconds: float
    interrupted: bool


class Trainer:
    """Trains a method on a dataset of clips.

    Started by torchrun, every process trains on its share of the clips (DistributedDataParallel over nccl or
    gloo) and the first one writes the checkpoints. Ctrl-C finishes the step, saves, and returns; a second one
    stops at once.

    Args:     model: a method (see `vidkernels.methods.Method`), already on its device.
              dataset: items are uint8 clips [T, H, W, 3].
              config: see TrainConfig.
              checkpoint: file to write every `checkpoint_every` steps and at the end; None writes nothing.
              show_progress: a progress bar with loss and remaining time on the terminal.
    Raises:   NonFiniteLossError: from `fit`, before the bad update; weights and file stay as they were.
              CheckpointError: from `fit(resume=True)`, when the file is unusable or of another run.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        config: TrainConfig,
        *,
        checkpoint: str | os.PathLike | None = None,
        show_progress: bool = True,
    ):
        self.model, self.config = model, config
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.device = next(model.parameters()).device
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.show_progress = show_progress and self.rank == 0
        self.optimizer = _optimizer(model, config)
        self.generator = torch.Generator(self.device).manual_seed(config.seed * 7919 + self.rank)
        self.batches = ClipBatches(
            dataset,
            config.batch_size,
            seed=config.seed,
            workers=config.workers,
            rank=self.rank,
            world=self.world,
        )
        self.step = 0
        self.losses: list[float] = []

    def fit(self, *, resume: bool = False) -> TrainReport:
        """Train up to `config.steps`; with `resume`, from the checkpoint on if there is one."""
        began = time.perf_counter()
        with _process_group(self.device, self.world), _interrupt_flag() as interrupt:
            if resume and self.checkpoint is not None:
                self._restore()
            # In a function of its own, so that DistributedDataParallel is gone before its process group:
            # as the last owner of the group it would wait for gloo's thread while that waits for the GIL.
            stopped = self._run(interrupt)
        return TrainReport(self.step, list(self.losses), time.perf_counter() - began, stopped)

    def _run(self, interrupt: threading.Event) -> bool:
        forward, stop = self._forward(), False
        with progress_bar(self.config.steps, self.step, self.show_progress) as show:
            clips = self.batches.iterate(self.batches.state_at(self.step))
            while self.step < self.config.steps and not stop:
                stop = self._train_step(forward, next(clips), interrupt)
                show(self.step, self.losses[-1])
                if stop or self.step == self.config.steps or self.step % self.config.checkpoint_every == 0:
                    self._save()
        return stop

    def _forward(self) -> nn.Module:
        if self.world == 1:
            return self.model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.model, device_ids=ids)

    def _train_step(self, forward: nn.Module, clip: Tensor, interrupt: threading.Event) -> bool:
        """One update; returns whether any process was asked to stop."""
        rate = self.config.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        clip = clip.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            loss = forward(clip, self.generator)["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        asked = float(interrupt.is_set())
        status = torch.stack([loss.detach().float(), norm.float(), torch.full_like(norm, asked)])
        if self.world > 1:
            dist.all_reduce(status)
            status /= self.world
        value, size, asked = status.tolist()
        if not (math.isfinite(value) and math.isfinite(size)):
            raise self._not_finite(value, size)
        self.optimizer.step()
        self.step += 1
        self.losses.append(value)
        return asked > 0

    def _not_finite(self, loss: float, norm: float) -> NonFiniteLossError:
        kept = "no checkpoint was asked for"
        if self.checkpoint is not None:
            exists = self.checkpoint.exists()
            kept = f"{self.checkpoint} was left alone" if exists else "no checkpoint had been written yet"
        return NonFiniteLossError(
            f"Trainer: the loss or a gradient stopped being finite at step {self.step + 1}.\n"
            f"  loss          : {loss}\n  gradient norm : {norm}\n"
            f"  learning rate : {self.config.learning_rate_at(self.step):.3g}\n"
            f"The update was not made; {kept}.\n"
            "HINT: lower the learning rate, lengthen the warm-up, or use precision='fp32'."
        )

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        random = {"torch": torch.get_rng_state(), "mask": self.generator.get_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        everyone: list[Any] = [random] * self.world
        if self.world > 1:
            dist.all_gather_object(everyone, random)
        if self.rank == 0:
            state = {
                "format": _FORMAT,
                "step": self.step,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "learning_rate": self.config.learning_rate_at(self.step),
                "sampler": self.batches.state_at(self.step),
                "random": everyone,
                "losses": torch.tensor(self.losses, dtype=torch.float64),
                "run": self._identity(),
            }
            save_checkpoint(self.checkpoint, state)

    def _identity(self) -> dict[str, str]:
        """What must be equal for "the same final weights" to make sense."""
        fields = {key: value for key, value in asdict(self.config).items() if key not in _FREE}
        fields["model"] = f"{type(self.model).__name__}({getattr(self.model, 'config', '')})"
        fields |= {"processes": self.world, "clips": len(self.batches.dataset)}
        return {key: str(value) for key, value in fields.items()}

    def _restore(self) -> None:
        assert self.checkpoint is not None
        if not self.checkpoint.exists() and not previous(self.checkpoint).exists():
            return
        state = load_checkpoint(self.checkpoint)
        saved, now = state.get("run", {}), self._identity()
        different = [key for key in now if saved.get(key) != now[key]]
        if state.get("format") != _FORMAT or different:
            rows = "\n".join(f"  {key} : {saved.get(key)} in the file, {now[key]} now" for key in different)
            raise CheckpointError(
                f"Trainer: {self.checkpoint} belongs to another run.\n{rows}\n"
                "HINT: resume with the settings it was written with, or train into another folder."
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        random = state["random"][self.rank]
        torch.set_rng_state(random["torch"])
        self.generator.set_state(random["mask"])
        if "cuda" in random and self.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], self.device)
        self.step = state["step"]
        self.losses = state["losses"].tolist()


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    # Biases, norms and the mask token are not pulled towards zero.
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    plain = [value for name, value in named if value.dim() <= 1 or name.endswith("mask_token")]
    decayed = [value for name, value in named if value.dim() > 1 and not name.endswith("mask_token")]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


@contextlib.contextmanager
def _process_group(device: torch.device, world: int) -> Iterator[None]:
    own = world > 1 and not dist.is_initialized()
    if own:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        if own:
            dist.destroy_process_group()


@contextlib.contextmanager
def _interrupt_flag() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one interrupts as usual."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # only the main thread may take over a signal
        return

    before = signal.getsignal(signal.SIGINT)

    def first(*_: Any) -> None:
        flag.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, first)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
