"""Codebooks: learned by averages or loss, residual, product, scalar, Dirichlet."""

from vidkernels.nn.quantize.composed import ProductVQ, ResidualVQ
from vidkernels.nn.quantize.dirichlet import DirichletCodebook, DirichletFeature
from vidkernels.nn.quantize.fsq import FSQ
from vidkernels.nn.quantize.vector_quantizer import VectorQuantizer

__all__ = [
    "FSQ",
    "DirichletCodebook",
    "DirichletFeature",
    "ProductVQ",
    "ResidualVQ",
    "VectorQuantizer",
]
