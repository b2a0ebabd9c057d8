"""Modules that merge, learn, choose, roll and resample tokens."""

from vidkernels.nn.tokens.banzhaf import BanzhafInteraction
from vidkernels.nn.tokens.density import DPCKNNMerging
from vidkernels.nn.tokens.learner import TokenFuser, TokenLearner
from vidkernels.nn.tokens.merging import ProportionalAttention, TokenMerging
from vidkernels.nn.tokens.resampler import Resampler
from vidkernels.nn.tokens.roll import TemporalShift, TokenRoll

__all__ = [
    "BanzhafInteraction",
    "DPCKNNMerging",
    "ProportionalAttention",
    "Resampler",
    "TemporalShift",
    "TokenFuser",
    "TokenLearner",
    "TokenMerging",
    "TokenRoll",
]
