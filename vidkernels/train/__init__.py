"""The training loop, resumable to the bit, and its checkpoints."""

from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from .loop import NonFiniteLossError, TrainConfig, Trainer, TrainReport, fastest_precision

__all__ = [
    "CheckpointError",
    "NonFiniteLossError",
    "TrainConfig",
    "TrainReport",
    "Trainer",
    "fastest_precision",
    "load_checkpoint",
    "save_checkpoint",
]
