"""Nearest codes, k-means, balanced assignment and what is learned from it."""

from vidkernels.functional.clustering.hierarchical import (
    HierarchicalKMeansResult,
    hierarchical_assign,
    hierarchical_kmeans,
)
from vidkernels.functional.clustering.kmeans import KMeansResult, kmeans
from vidkernels.functional.clustering.matching import linear_assignment
from vidkernels.functional.clustering.minibatch import minibatch_kmeans
from vidkernels.functional.clustering.nearest import nearest, nearest_code
from vidkernels.functional.clustering.prototypes import sigma_loss, swapped_prediction_loss
from vidkernels.functional.clustering.seeding import kmeans_plus_plus
from vidkernels.functional.clustering.sinkhorn import sinkhorn, sinkhorn_assign

__all__ = [
    "HierarchicalKMeansResult",
    "KMeansResult",
    "hierarchical_assign",
    "hierarchical_kmeans",
    "kmeans",
    "kmeans_plus_plus",
    "linear_assignment",
    "minibatch_kmeans",
    "nearest",
    "nearest_code",
    "sigma_loss",
    "sinkhorn",
    "sinkhorn_assign",
    "swapped_prediction_loss",
]
