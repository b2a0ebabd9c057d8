"""Prototype layers and the losses that read them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from vidkernels.functional.clustering.prototypes import sigma_loss, swapped_prediction_loss
from vidkernels.functional.clustering.sinkhorn import sinkhorn, sinkhorn_assign

__all__ = ["PrototypeHead", "SigmaLoss", "SinkhornAssigner", "SwappedPredictionLoss"]


class PrototypeHead(nn.Module):
    """Cosines between features and learned prototypes; the prototypes can stand still at first.

    Args:
        dim: width of a feature.
        count: prototypes.
        freeze_steps: training steps in which the prototypes get no gradient (SwAV: the first epoch). `advance()`
            after every optimiser step counts them; the count is part of the state.
    Example:
        >>> head = PrototypeHead(8, 5, freeze_steps=1)
        >>> scores = head(torch.ones(2, 8, requires_grad=True))
        >>> scores.shape, head.frozen
        (torch.Size([2, 5]), True)
    """

    def __init__(self, dim: int, count: int, freeze_steps: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))
        self.freeze_steps = freeze_steps
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._steps = 0  # the buffer's value, so that looking does not stall a GPU
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight, dim=1))

    @property
    def frozen(self) -> bool:
        return self._steps < self.freeze_steps

    def advance(self) -> None:
        """Count one training step."""
        self._steps += 1
        self.step.fill_(self._steps)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "step" in state_dict:
            self._steps = int(state_dict[prefix + "step"])

    def prototypes(self) -> torch.Tensor:
        """[K, D] of unit length; constant while frozen."""
        weight = F.normalize(self.weight, dim=1)
        return weight.detach() if self.frozen else weight

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., K]."""
        return F.linear(F.normalize(features, dim=-1), self.prototypes().to(features.dtype))

    def extra_repr(self) -> str:
        return f"dim={self.weight.shape[1]}, count={self.weight.shape[0]}, freeze_steps={self.freeze_steps}"


class _Balanced(nn.Module):
    """Keeps Sinkhorn's settings."""

    def __init__(self, epsilon: float, iterations: int, group: dist.ProcessGroup | None):
        super().__init__()
        self.epsilon, self.iterations, self.group = epsilon, iterations, group

    def extra_repr(self) -> str:
        return f"epsilon={self.epsilon}, iterations={self.iterations}"


class SinkhornAssigner(_Balanced):
    """Constant codes or labels of a batch; see functional.sinkhorn and functional.sinkhorn_assign.

    Args:
        epsilon, iterations, group: of Sinkhorn.
        labels: give [N] int64 labels instead of the [N, K] codes.
    Example:
        >>> SinkhornAssigner(labels=True)(torch.eye(3))
        tensor([0, 1, 2])
    """

    def __init__(
        self,
        epsilon: float = 0.05,
        iterations: int = 3,
        group: dist.ProcessGroup | None = None,
        labels: bool = False,
    ):
        super().__init__(epsilon, iterations, group)
        self.labels = labels

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        if self.labels:
            return sinkhorn_assign(scores, self.epsilon, self.iterations, group=self.group)
        return sinkhorn(scores, self.epsilon, self.iterations, group=self.group, gradient=None)


class SwappedPredictionLoss(_Balanced):
    """SwAV's loss over the scores of all crops; see functional.swapped_prediction_loss.

    Args:
        epsilon, iterations, group: of Sinkhorn.
        temperature: of the prediction.
        assign: the crops whose codes are predicted.
    Example:
        >>> SwappedPredictionLoss()([torch.zeros(4, 2), torch.zeros(4, 2)])
        tensor(0.6931)
    """

    def __init__(
        self,
        epsilon: float = 0.05,
        iterations: int = 3,
        temperature: float = 0.1,
        assign: tuple[int, ...] = (0, 1),
        group: dist.ProcessGroup | None = None,
    ):
        super().__init__(epsilon, iterations, group)
        self.temperature, self.assign = temperature, tuple(assign)

    def forward(self, scores, queue=None) -> torch.Tensor:
        return swapped_prediction_loss(
            scores, assign=self.assign, epsilon=self.epsilon, iterations=self.iterations,
            temperature=self.temperature, queue=queue, group=self.group,
        )  # fmt: skip


class SigmaLoss(_Balanced):
    """SIGMA's loss with its prototypes; see functional.sigma_loss.

    Args:
        dim: width of the projections.
        count: prototypes.
        epsilon, iterations, group: of Sinkhorn.
        temperature: of the cross-entropy.
        codes: "hard" or "soft".
    Example:
        >>> loss = SigmaLoss(8, 4)
        >>> loss(torch.randn(2, 6, 8), torch.randn(2, 6, 8)).shape
        torch.Size([])
    """

    def __init__(
        self,
        dim: int = 256,
        count: int = 3000,
        epsilon: float = 0.05,
        iterations: int = 10,
        temperature: float = 0.1,
        codes: str = "hard",
        group: dist.ProcessGroup | None = None,
    ):
        super().__init__(epsilon, iterations, group)
        self.temperature, self.codes = temperature, codes
        self.head = PrototypeHead(dim, count)

    def forward(self, video: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return sigma_loss(
            video, target, self.head.prototypes(), epsilon=self.epsilon, iterations=self.iterations,
            temperature=self.temperature, codes=self.codes, group=self.group,
        )  # fmt: skip
