"""Gaussian splats: from Gaussians to images, and the geometry around it."""

from vidkernels.functional.splatting.splat import splat_2d

__all__ = ["splat_2d"]
