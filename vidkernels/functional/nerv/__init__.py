"""Networks as videos: upsampling convolutions, rates of quantised weights, many-tensor optimiser steps."""

from vidkernels.functional.nerv.grids import temporal_grid
from vidkernels.functional.nerv.integer import (
    Integers,
    conv_int8,
    decode_integers,
    decode_tail,
    fixed_point,
    folded_bias,
)
from vidkernels.functional.nerv.optim import multi_tensor_adam, newton_schulz
from vidkernels.functional.nerv.rate import QuantizedRate, fake_quantize_rate
from vidkernels.functional.nerv.spectral import fourier_layer, spectral_multiply
from vidkernels.functional.nerv.subnet import masked_weight, top_k_mask
from vidkernels.functional.nerv.upsample_conv import upsample_conv, upsample_conv_loss
from vidkernels.functional.nerv.warp import flow_warp_aggregate

__all__ = [
    "Integers",
    "QuantizedRate",
    "conv_int8",
    "decode_integers",
    "decode_tail",
    "fake_quantize_rate",
    "fixed_point",
    "flow_warp_aggregate",
    "folded_bias",
    "fourier_layer",
    "masked_weight",
    "multi_tensor_adam",
    "newton_schulz",
    "spectral_multiply",
    "temporal_grid",
    "top_k_mask",
    "upsample_conv",
    "upsample_conv_loss",
]
