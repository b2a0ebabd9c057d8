"""Vectors as codes: nearest code, finite scalars, Dirichlet mixtures."""

from vidkernels.functional.quantize.dirichlet import dirichlet_kl, dirichlet_sample
from vidkernels.functional.quantize.fsq import FiniteScalarQuantized, fsq, fsq_codes
from vidkernels.functional.quantize.vq import (
    VectorQuantized,
    code_sums,
    ema_codebook,
    perplexity,
    straight_through,
    vector_quantize,
)

__all__ = [
    "FiniteScalarQuantized",
    "VectorQuantized",
    "code_sums",
    "dirichlet_kl",
    "dirichlet_sample",
    "ema_codebook",
    "fsq",
    "fsq_codes",
    "perplexity",
    "straight_through",
    "vector_quantize",
]
