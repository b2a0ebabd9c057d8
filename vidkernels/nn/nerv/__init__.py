"""Blocks of network videos, quantised parameters, optimisers for many small tensors."""

from vidkernels.nn.nerv.block import NeRVBlock
from vidkernels.nn.nerv.optim import MultiTensorAdam, Muon
from vidkernels.nn.nerv.quantized import (
    IntegerValues,
    QuantizedParameter,
    fit_spreads,
    integer_values,
    quantize_parameter,
    quantize_weights,
    quantized_parameters,
    rate_bits,
    set_quantization,
)

__all__ = [
    "IntegerValues",
    "MultiTensorAdam",
    "Muon",
    "NeRVBlock",
    "QuantizedParameter",
    "fit_spreads",
    "integer_values",
    "quantize_parameter",
    "quantize_weights",
    "quantized_parameters",
    "rate_bits",
    "set_quantization",
]
