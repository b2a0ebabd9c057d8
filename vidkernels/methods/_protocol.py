"""What every method class offers, so that one training loop and one example serve them all."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from ._card import Card


@runtime_checkable
class Method(Protocol):
    """A method is an `nn.Module` built from its frozen `Config`.

    `card`: the module's CARD. `Config`: a frozen dataclass with `Config.tiny()`, small enough for a test.
    `training_step(clip, generator)`: `[B, T, H, W, 3]` uint8 clips and the generator that all of the method's
    randomness comes from (same generator state, same step); returns at least `loss`, a scalar with gradient.
    """

    card: ClassVar[Card]
    Config: ClassVar[type[Any]]

    def training_step(self, clip: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]: ...
