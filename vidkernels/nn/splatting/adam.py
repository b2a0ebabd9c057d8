"""Adam for Gaussians that come, go and are not always in the picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vidkernels import _check
from vidkernels.functional.splatting.adam import adam_step
from vidkernels.nn._adam import AdamArguments

__all__ = ["GaussianAdam"]


class GaussianAdam(AdamArguments):
    """Adam or AdamW in one pass over each parameter, for the rows that a picture shows or for all.

    A drop-in for torch.optim.Adam in Gaussian splatting code: a group and a learning rate for each attribute, the same
    state (`step`, `exp_avg`, `exp_avg_sq`), and state dicts that either loads from the other. Equal to it to rounding.
    Convention: rows, the first axis of a parameter, are Gaussians. See `functional.adam_step`.

    Args:     params: parameters, or groups with own `lr`, `betas`, `eps`, `weight_decay`, `decoupled_weight_decay`.
              lr: learning rate.
              betas: decay of the two moments.
              eps: added to the root; 3D Gaussian splatting takes 1e-15.
              weight_decay: 0 for none.
              decoupled_weight_decay: AdamW instead of Adam.
    Raises:   ValueError: numbers out of range, or the state of an Adam with amsgrad or maximize.
    Source:   Kingma, Ba 2014, arXiv 1412.6980; rows by visibility as in Mallick et al. 2024, arXiv 2406.15643.
    Example:
        >>> means = torch.nn.Parameter(torch.zeros(2, 3))
        >>> optimizer = GaussianAdam([{"params": [means], "lr": 0.1}], eps=1e-15)
        >>> means.sum().backward()
        >>> optimizer.step(visibility=torch.tensor([True, False]))
        >>> means[:, 0].tolist() == [torch.tensor(-0.1).item(), 0.0]
        True
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, visibility: Tensor | None = None) -> Any:
        """Move every parameter that has a gradient.

        Args:     closure: computes the loss again, as for any optimiser.
                  visibility: [N] bool, the rows to move, of parameters with N rows each; None: all.
        Returns:  what `closure` returned.
        Raises:   ValueError: a parameter with another number of rows.
        """
        if isinstance(closure, Tensor):
            _check.fail("GaussianAdam.step", "expected a function, got a tensor.", "step(visibility=mask)",
                        error=TypeError, closure=closure)  # fmt: skip
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if visibility is not None:  # before anything moves
            self._check_rows(visibility)
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
                    state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
                state["step"] += 1
                adam_step(
                    param,
                    param.grad,
                    state["exp_avg"],
                    state["exp_avg_sq"],
                    step=int(state["step"]),
                    lr=float(group["lr"]),
                    betas=group["betas"],
                    eps=group["eps"],
                    weight_decay=group["weight_decay"],
                    decoupled_weight_decay=group["decoupled_weight_decay"],
                    visible=visibility,
                )
        return loss

    def _check_rows(self, visibility: Tensor) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None and param.shape[:1] != visibility.shape:
                    _check.fail(
                        "GaussianAdam.step", "expected `visibility` to have an entry for every row.",
                        "parameters that are not per Gaussian belong into an optimiser of their own",
                        param=param, visibility=visibility,
                    )  # fmt: skip

    def keep_rows(self, param: nn.Parameter, index: Tensor) -> nn.Parameter:
        """A parameter of some rows in the order given, in the place of `param`; moments follow their rows.

        Args:     param: one of the optimiser's; no longer in it afterwards.
                  index: [M] int64, or [N] bool.
        Returns:  the new parameter, without a gradient.
        """
        return swap_parameter(self, param, lambda value: value[index])

    def append_rows(self, param: nn.Parameter, rows: Tensor) -> nn.Parameter:
        """A parameter with further rows, in the place of `param`; their moments start from zero.

        Args:     param: one of the optimiser's; no longer in it afterwards.
                  rows: [M, ...].
        Returns:  the new parameter, without a gradient.
        """
        rows = rows.detach().to(param)
        return swap_parameter(
            self,
            param,
            lambda value: torch.cat([value, rows]),
            lambda value: torch.cat([value, torch.zeros_like(rows)]),
        )


@torch.no_grad()
def swap_parameter(
    optimizer: torch.optim.Optimizer | None,
    old: nn.Parameter,
    change: Callable[[Tensor], Tensor],
    change_moment: Callable[[Tensor], Tensor] | None = None,
) -> nn.Parameter:
    """Put change(parameter) in a parameter's place in an optimiser, and its moments with it.

    Args:     optimizer: any whose state tensors of the parameter's shape go by its rows; None: there is none.
              old: the parameter.
              change: makes the new value from the old one.
              change_moment: the same for the optimiser's tensors of the parameter's shape; None: `change`.
    Returns:  the new parameter.
    Example:
        >>> old = torch.nn.Parameter(torch.arange(2.0))
        >>> swap_parameter(torch.optim.Adam([old]), old, lambda value: value + 1).tolist()
        [1.0, 2.0]
    """
    new = nn.Parameter(change(old.detach()).contiguous(), requires_grad=old.requires_grad)
    if optimizer is None:
        return new
    for group in optimizer.param_groups:
        group["params"] = [new if value is old else value for value in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is not None:
        carry = change_moment or change
        optimizer.state[new] = {
            key: carry(value) if torch.is_tensor(value) and value.shape == old.shape else value
            for key, value in state.items()
        }
    return new
