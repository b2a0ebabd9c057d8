"""A tiny run for the tests of resuming; also a program, so that a test can kill it.

python tiny_run.py CHECKPOINT [--resume] [--signal NAME --at STEP]
"""

import argparse
import os
import signal
from pathlib import Path

import torch
from torch.utils.data import Dataset

from vidkernels import methods
from vidkernels.train import TrainConfig, Trainer

STEPS, EVERY = 23, 5


class Waves(Dataset):
    """Six random clips per epoch, a function of (epoch, index); sends a signal at one request."""

    def __init__(self, at=None, number=None):
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # loader processes see it too
        self.requests, self.at, self.number = 0, at, number

    def __len__(self):
        return 6

    def set_epoch(self, epoch):
        self.epoch.fill_(epoch)

    def __getitem__(self, index):
        self.requests += 1
        if self.requests == self.at:
            os.kill(os.getpid(), self.number)
        generator = torch.Generator().manual_seed(int(self.epoch) * 100 + index)
        return torch.randint(0, 256, (4, 16, 16, 3), generator=generator, dtype=torch.uint8)


class NoisyVideoMAE(methods.get("videomae")):
    """Also draws from torch's global generator, as dropout would."""

    def training_step(self, clip, generator=None):
        result = super().training_step(clip, generator)
        return {"loss": result["loss"] * (1 + 0.1 * torch.rand(()))}


def trainer(checkpoint, *, at=None, number=None, **changes):
    torch.manual_seed(7)
    model = NoisyVideoMAE(NoisyVideoMAE.Config.tiny())
    settings = {
        "steps": STEPS,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 4,
        "checkpoint_every": EVERY,
    }
    config = TrainConfig(**(settings | changes))
    # Two clips make a step, so request 2 * n belongs to step n.
    data = Waves(None if at is None else 2 * at, number)
    return Trainer(model, data, config, checkpoint=checkpoint, show_progress=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--signal")
    parser.add_argument("--at", type=int)
    options = parser.parse_args()
    number = None if options.signal is None else getattr(signal, options.signal)
    report = trainer(options.checkpoint, at=options.at, number=number).fit(resume=options.resume)
    print(f"step {report.step} interrupted {report.interrupted}")
