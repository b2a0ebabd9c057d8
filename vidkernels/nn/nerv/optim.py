"""Optimisers whose step is a few native calls, however many parameters there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from vidkernels import _check
from vidkernels.functional.nerv.optim import QUINTIC, multi_tensor_adam, multi_tensor_muon
from vidkernels.nn._adam import AdamArguments

__all__ = ["MultiTensorAdam", "Muon"]

_ADJUST = (None, "original", "match_rms_adamw")


class MultiTensorAdam(AdamArguments):
    """Adam or AdamW with one native call for a step of all parameters of all groups.

    A drop-in for torch.optim.Adam and AdamW: the same state (`step`, `exp_avg`, `exp_avg_sq`), and state dicts that
    either loads from the other. Equal to them to rounding.

    Args:     params: parameters, or groups with own `lr`, `betas`, `eps`, `weight_decay`, `decoupled_weight_decay`.
              lr: learning rate.
              betas: decay of the two moments.
              eps: added to the root.
              weight_decay: 0 for none.
              decoupled_weight_decay: AdamW instead of Adam.
    Raises:   ValueError: numbers out of range, or the state of an Adam with amsgrad or maximize.
    Source:   Kingma, Ba 2014, arXiv 1412.6980; Loshchilov, Hutter 2017, arXiv 1711.05101.
    Example:
        >>> net = torch.nn.Linear(3, 2)
        >>> optimizer = MultiTensorAdam([{"params": [net.weight], "lr": 0.1}, {"params": [net.bias]}])
        >>> before = net.weight.detach().clone()
        >>> net(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()
        >>> torch.allclose(before - net.weight, torch.tensor(0.1))
        True
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for values in self.state.values():  # torch keeps a tensor; a number is quicker
            values["step"] = int(values["step"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient.

        Args:     closure: computes the loss again, as for any optimiser.
        Returns:  what `closure` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params, grads, means, squares, settings = [], [], [], [], []
        for group in self.param_groups:
            lr, betas, eps, decay, decoupled = (
                group[key] for key in ("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay")
            )
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
                    state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
                state["step"] += 1
                params.append(param)
                grads.append(param.grad)
                means.append(state["exp_avg"])
                squares.append(state["exp_avg_sq"])
                settings.append((float(lr), *betas, eps, decay, decoupled, state["step"]))
        multi_tensor_adam(params, grads, means, squares, settings)
        return loss


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is made orthogonal, for the weights of hidden layers; one native call for all of them.

    momentum = lerp(momentum, grad, 1 - mu);  update = lerp(grad, momentum, mu) (nesterov) or momentum
    W = (1 - lr weight_decay) W - lr r newton_schulz(update)
    r = sqrt(max(1, M / N)), or 0.2 sqrt(max(M, N)) to match AdamW
    A drop-in for torch.optim.Muon (the same state, `momentum_buffer`) that also takes the weights of convolutions:
    whatever has more than two axes is a matrix [M, rest]. It works in float32 where torch's works in bfloat16.
    Biases, scales, latents and the last layer belong into an Adam of their own.

    Args:     params: parameters of two axes or more, or groups with own settings.
              lr: learning rate.
              weight_decay: decoupled.
              momentum: mu.
              nesterov: whether the gradient looks ahead.
              ns_coefficients: of the iteration, see `functional.newton_schulz`.
              eps: least length of an update.
              ns_steps: of the iteration.
              adjust_lr_fn: "original" (None) or "match_rms_adamw", which moves weights about as far as AdamW, so that
                  its learning rates and weight decays can be kept.
    Raises:   ValueError: numbers out of range, or a parameter without two axes.
    Source:   Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et al. 2025,
              arXiv 2502.16982 (match_rms_adamw).
    Example:
        >>> conv = torch.nn.Conv2d(4, 8, 3, bias=False)
        >>> optimizer = Muon(conv.parameters(), lr=0.1, weight_decay=0.0)
        >>> before = conv.weight.detach().clone()
        >>> conv(torch.ones(1, 4, 5, 5)).square().sum().backward()
        >>> optimizer.step()
        >>> moved = (before - conv.weight).detach().flatten(1)
        >>> bool(torch.linalg.matrix_norm(moved, 2) < 0.13)
        True
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = QUINTIC,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ):
        fine = lr >= 0 and weight_decay >= 0 and 0 <= momentum < 1 and eps > 0 and ns_steps >= 1
        if not fine or adjust_lr_fn not in _ADJUST:
            _check.fail(
                "Muon",
                "expected lr and weight_decay of 0 or more, momentum in [0, 1), positive eps and ns_steps, and "
                "adjust_lr_fn of None, original or match_rms_adamw.",
                lr=lr, weight_decay=weight_decay, momentum=momentum, eps=eps, ns_steps=ns_steps, adjust=adjust_lr_fn,
            )  # fmt: skip
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__(params, defaults)

    def add_param_group(self, group: dict[str, Any]) -> None:
        super().add_param_group(group)
        for param in self.param_groups[-1]["params"]:
            if param.dim() < 2:
                _check.fail(
                    "Muon", "expected parameters of two axes or more.",
                    "biases, scales and latents go to MultiTensorAdam", param=param,
                )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient.

        Args:     closure: computes the loss again, as for any optimiser.
        Returns:  what `closure` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for key, groups in self._alike().items():
            self._move(groups, *key)
        return loss

    def _alike(self) -> dict[tuple, list[dict[str, Any]]]:
        """Groups whose updates can be made orthogonal together."""
        alike: dict[tuple, list[dict[str, Any]]] = {}
        for group in self.param_groups:
            alike.setdefault((group["ns_steps"], tuple(group["ns_coefficients"]), group["eps"]), []).append(group)
        return alike

    def _move(self, groups: list[dict[str, Any]], steps: int, coefficients: tuple, eps: float) -> None:
        params, grads, momenta, settings = [], [], [], []
        for group in groups:
            lr = float(group["lr"])
            keep = 1 - lr * group["weight_decay"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                params.append(param)
                grads.append(param.grad)
                momenta.append(self._buffer(param))
                rate = -lr * _ratio(param, group["adjust_lr_fn"])
                settings.append((group["momentum"], group["nesterov"], keep, rate))
        multi_tensor_muon(params, grads, momenta, settings, steps=steps, coefficients=coefficients, eps=eps)

    def _buffer(self, param: torch.Tensor) -> torch.Tensor:
        state = self.state[param]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state["momentum_buffer"]


def _ratio(param: torch.Tensor, adjust: str | None) -> float:
    rows, cols = param.shape[0], math.prod(param.shape[1:])
    if adjust == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, cols))
    return math.sqrt(max(1, rows / max(1, cols)))
