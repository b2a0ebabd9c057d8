"""Networks as videos: upsampling convolutions, rates of quantised weights, many-tensor optimiser steps."""

from vidkernels.functional.nerv.grids import temporal_grid
from vidkernels.functional.nerv.optim import multi_tensor_adam, newton_schulz
from vidkernels.functional.nerv.rate import QuantizedRate, fake_quantize_rate
from vidkernels.functional.nerv.subnet import masked_weight, top_k_mask
from vidkernels.functional.nerv.upsample_conv import upsample_conv

__all__ = [
    "QuantizedRate",
    "fake_quantize_rate",
    "masked_weight",
    "multi_tensor_adam",
    "newton_schulz",
    "temporal_grid",
    "top_k_mask",
    "upsample_conv",
]
