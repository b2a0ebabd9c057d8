"""Blocks of network videos, quantised parameters, optimisers for many small tensors."""

from vidkernels.nn.nerv.block import NeRVBlock
from vidkernels.nn.nerv.integer import IntegerDecoder, IntegerLayer, quantize_decoder
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
from vidkernels.nn.nerv.spectral import FourierLayer
from vidkernels.nn.nerv.subnet import SubnetParameter

__all__ = [
    "FourierLayer",
    "IntegerDecoder",
    "IntegerLayer",
    "IntegerValues",
    "MultiTensorAdam",
    "Muon",
    "NeRVBlock",
    "QuantizedParameter",
    "SubnetParameter",
    "fit_spreads",
    "integer_values",
    "quantize_decoder",
    "quantize_parameter",
    "quantize_weights",
    "quantized_parameters",
    "rate_bits",
    "set_quantization",
]
