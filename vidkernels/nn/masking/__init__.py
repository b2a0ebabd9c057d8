"""Modules of the masking family."""

from vidkernels.nn.masking.embed import VisibleTubeEmbed
from vidkernels.nn.masking.loss import MaskedPatchLoss
from vidkernels.nn.masking.masks import BlockMasking, RandomMasking, RunningCellMasking, TubeMasking

__all__ = [
    "BlockMasking",
    "MaskedPatchLoss",
    "RandomMasking",
    "RunningCellMasking",
    "TubeMasking",
    "VisibleTubeEmbed",
]
