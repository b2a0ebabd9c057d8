"""Modules around Gaussian splats: video models, layered rendering, density control."""

from vidkernels.nn.splatting.canonical import CanonicalGaussianVideo
from vidkernels.nn.splatting.density import (
    DensityControl,
    append_gaussians,
    keep_gaussians,
    replace_parameter,
    sample_error,
)
from vidkernels.nn.splatting.explicit import ExplicitGaussianVideo, Rendering
from vidkernels.nn.splatting.gaussian2d import GaussianImage, GaussianVideo
from vidkernels.nn.splatting.hierarchical import CameraODE, HierarchicalGaussianVideo, refine_bspline
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
    "GaussianImage",
    "GaussianVideo",
    "HierarchicalGaussianVideo",
    "InverseLBS",
    "LayeredVolumeRenderer",
    "MPIRenderer",
    "PointRayRenderer",
    "Rendering",
    "VolumeRenderer",
    "append_gaussians",
    "keep_gaussians",
    "refine_bspline",
    "replace_parameter",
    "sample_error",
]
