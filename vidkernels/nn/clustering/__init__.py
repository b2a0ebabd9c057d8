"""Modules that cluster: k-means, prototypes, swapped prediction."""

from vidkernels.nn.clustering.kmeans import HierarchicalKMeans, KMeans
from vidkernels.nn.clustering.prototypes import PrototypeHead, SigmaLoss, SinkhornAssigner, SwappedPredictionLoss

__all__ = [
    "HierarchicalKMeans",
    "KMeans",
    "PrototypeHead",
    "SigmaLoss",
    "SinkhornAssigner",
    "SwappedPredictionLoss",
]
