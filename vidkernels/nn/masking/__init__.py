"""Modules of the masking family."""

from vidkernels.nn.masking.embed import VisibleTubeEmbed

__all__ = ["VisibleTubeEmbed"]
