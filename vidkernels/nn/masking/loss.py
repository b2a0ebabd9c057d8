"""The reconstruction loss as a module."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vidkernels import functional


class MaskedPatchLoss(torch.nn.Module):
    """Mean squared error between predicted tubes and the normalised pixels of the masked tubes.

    See vidkernels.functional.masked_patch_loss, which this calls, for the formula and the conventions.
    Convention: float video given to `forward` was normalised with `mean` and `std`; without them it is used as it is.
    Args:
        tube: frames, height, width of a tube.
        convention: "videomae" or "mae_st".
        mean: per channel, in units of 0..1, or None.
        std: per channel, or None.
    Returns:
        loss: scalar, float32. Differentiable in `pred`.
    Raises:
        ValueError: only one of `mean` and `std`, or an unknown convention.
    Example:
        >>> loss = MaskedPatchLoss(tube=(2, 2, 2))
        >>> loss(torch.full((1, 1, 24), 2.0), torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8), torch.tensor([[3]]))
        tensor(4.)
    """

    def __init__(
        self,
        tube: tuple[int, int, int] = (2, 16, 16),
        convention: str = "videomae",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError("MaskedPatchLoss: expected both `mean` and `std`, or neither.")
        if convention not in ("videomae", "mae_st"):
            raise ValueError(f"MaskedPatchLoss: expected 'videomae' or 'mae_st', got {convention!r}.")
        self.tube = tuple(tube)
        self.convention = convention
        self.mean = None if mean is None else tuple(mean)
        self.std = None if std is None else tuple(std)

    def forward(
        self,
        pred: torch.Tensor,
        video: torch.Tensor,
        masked_index: torch.Tensor,
        grad_out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return functional.masked_patch_loss(
            pred, video, masked_index, tube=self.tube, convention=self.convention, mean=self.mean, std=self.std,
            grad_out=grad_out,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"tube={self.tube}, convention={self.convention!r}, mean={self.mean}, std={self.std}"
