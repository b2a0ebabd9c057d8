"""Modules of the masking family."""

from vidkernels.nn.masking.masks import BlockMasking, RandomMasking, RunningCellMasking, TubeMasking

__all__ = ["BlockMasking", "RandomMasking", "RunningCellMasking", "TubeMasking"]
