"""Gaussian splats: from Gaussians to images, the geometry around them, layers, losses."""

from vidkernels.functional.splatting.adam import adam_step
from vidkernels.functional.splatting.composite import alpha_from_density, composite
from vidkernels.functional.splatting.decode import decode_splats
from vidkernels.functional.splatting.frame_loss import frame_loss
from vidkernels.functional.splatting.harmonics import spherical_harmonics
from vidkernels.functional.splatting.losses import (
    arap_loss,
    knn_graph,
    label_loss,
    photometric_loss,
    rendered_flow_loss,
    scale_shift_invariant_loss,
)
from vidkernels.functional.splatting.motion import motion_eval
from vidkernels.functional.splatting.mpi import mpi_homographies, render_mpi, warp_planes
from vidkernels.functional.splatting.points import farthest_points, nearest_points, unproject_depth
from vidkernels.functional.splatting.project import project_gaussians
from vidkernels.functional.splatting.rasterization import rasterization
from vidkernels.functional.splatting.skeleton import bone_transforms, inverse_skinning
from vidkernels.functional.splatting.slice import slice_spacetime
from vidkernels.functional.splatting.splat import splat_2d
from vidkernels.functional.splatting.tiles import isect_offset_encode, isect_tiles
from vidkernels.functional.splatting.volume import (
    contract,
    importance_samples,
    merge_samples,
    pixel_rays,
    render_rays,
    stratified_samples,
)

__all__ = [
    "adam_step",
    "alpha_from_density",
    "arap_loss",
    "bone_transforms",
    "composite",
    "contract",
    "decode_splats",
    "farthest_points",
    "frame_loss",
    "importance_samples",
    "inverse_skinning",
    "isect_offset_encode",
    "isect_tiles",
    "knn_graph",
    "label_loss",
    "merge_samples",
    "motion_eval",
    "mpi_homographies",
    "nearest_points",
    "photometric_loss",
    "pixel_rays",
    "project_gaussians",
    "rasterization",
    "render_mpi",
    "render_rays",
    "rendered_flow_loss",
    "scale_shift_invariant_loss",
    "slice_spacetime",
    "spherical_harmonics",
    "splat_2d",
    "stratified_samples",
    "unproject_depth",
    "warp_planes",
]
