"""Modules of the masking family."""

from vidkernels.nn.masking.embed import VisibleTubeEmbed
from vidkernels.nn.masking.loss import MaskedPatchLoss

__all__ = ["MaskedPatchLoss", "VisibleTubeEmbed"]
