"""Nearest codes, k-means, balanced assignment and what is learned from it."""

from vidkernels.functional.clustering.matching import linear_assignment
from vidkernels.functional.clustering.nearest import nearest, nearest_code
from vidkernels.functional.clustering.sinkhorn import sinkhorn, sinkhorn_assign

__all__ = [
    "linear_assignment",
    "nearest",
    "nearest_code",
    "sinkhorn",
    "sinkhorn_assign",
]
