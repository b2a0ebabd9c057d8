"""Modules that cluster: k-means, prototypes, swapped prediction."""

from vidkernels.nn.clustering.prototypes import PrototypeHead, SigmaLoss, SinkhornAssigner, SwappedPredictionLoss

__all__ = [
    "PrototypeHead",
    "SigmaLoss",
    "SinkhornAssigner",
    "SwappedPredictionLoss",
]
