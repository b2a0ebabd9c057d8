"""The order in which clips are drawn: a function of (seed, epoch, rank), so a position is two numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset


class _Order:
    """Batch sampler of one epoch: one shuffle for all ranks, dealt out in turn, from batch `start` on."""

    def __init__(self, length: int, batch_size: int, seed: int, rank: int, world: int):
        self.batches = length // (batch_size * world)
        if self.batches == 0:
            raise ValueError(
                "Trainer: expected at least one full batch per epoch.\n"
                f"  clips per epoch : {length}\n  batch_size      : {batch_size}\n"
                f"  processes       : {world}\n"
                "HINT: lower batch_size or give the dataset more clips per video."
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world = rank, world
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.batches - self.start

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator).tolist()
        mine = order[self.rank :: self.world]
        for batch in range(self.start, self.batches):
            yield mine[batch * self.batch_size : (batch + 1) * self.batch_size]


def _ignore_interrupt(_: int) -> None:
    # Ctrl-C reaches the workers too; they must live until the main process has finished its step.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


class ClipBatches:
    """Endless batches of a dataset, from any position.

    Args:     dataset: has a length; `set_epoch(epoch)`, if it has that, is called before each epoch.
              batch_size: clips per batch and process.
              seed: of the shuffles.
              workers: loader processes; 0 loads in this process.
              rank, world: this process and how many share an epoch.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, *, seed: int, workers: int = 0, rank: int = 0, world: int = 1
    ):
        self.dataset = dataset
        self.order = _Order(len(dataset), batch_size, seed, rank, world)
        self.loader = DataLoader(
            dataset,
            batch_sampler=self.order,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_interrupt,
            # Its own generator: every new iterator draws from it, and a resumed run makes one iterator more;
            # on torch's global generator that would shift all later numbers.
            generator=torch.Generator().manual_seed(seed),
        )

    def state_at(self, step: int) -> dict[str, int]:
        """Position after `step` batches."""
        epoch, batch = divmod(step, self.order.batches)
        return {"epoch": epoch, "batch": batch}

    def iterate(self, position: dict[str, int]) -> Iterator[torch.Tensor]:
        """Batches from a position on."""
        self.order.epoch, self.order.start = position["epoch"], position["batch"]
        while True:
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(self.order.epoch)
            yield from self.loader
            self.order.epoch, self.order.start = self.order.epoch + 1, 0
