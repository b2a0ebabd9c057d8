"""What all Adams of this library take and refuse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from vidkernels import _check


class AdamArguments(torch.optim.Optimizer):
    """Groups with the arguments of Adam and AdamW; state dicts of torch's go in. Subclasses define `step`."""

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
    ):
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= b < 1 for b in betas):
            _check.fail(
                type(self).__name__, "expected lr, eps and weight_decay of 0 or more, and betas in [0, 1).",
                lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
            )  # fmt: skip
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("decoupled_weight_decay", False)
            if group.get("amsgrad") or group.get("maximize"):
                _check.fail(type(self).__name__, "the state is that of an Adam with amsgrad or maximize.")
