"""Modules around Gaussian splats: video models, layered rendering, density control."""

from vidkernels.nn.splatting.adam import GaussianAdam
from vidkernels.nn.splatting.canonical import CanonicalGaussianVideo
from vidkernels.nn.splatting.density import DensityControl
from vidkernels.nn.splatting.explicit import ExplicitGaussianVideo
from vidkernels.nn.splatting.gaussian2d import GaussianImage, GaussianVideo
from vidkernels.nn.splatting.hierarchical import CameraODE, HierarchicalGaussianVideo
from vidkernels.nn.splatting.layered import (
    InverseLBS,
    LayeredVolumeRenderer,
    MPIRenderer,
    PointRayRenderer,
    VolumeRenderer,
)

__all__ = [
    "CameraODE",
    "CanonicalGaussianVideo",
    "DensityControl",
    "ExplicitGaussianVideo",
    "GaussianAdam",
    "GaussianImage",
    "GaussianVideo",
    "HierarchicalGaussianVideo",
    "InverseLBS",
    "LayeredVolumeRenderer",
    "MPIRenderer",
    "PointRayRenderer",
    "VolumeRenderer",
]
