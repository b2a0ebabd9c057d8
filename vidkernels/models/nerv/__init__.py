"""Networks that are videos."""

from vidkernels.models.nerv.flow_nerv import FlowDecoder, FlowNeRV, neighbours
from vidkernels.models.nerv.latent_nerv import LatentDecoder, LatentNeRV, latent_strides, latent_widths

__all__ = [
    "FlowDecoder",
    "FlowNeRV",
    "LatentDecoder",
    "LatentNeRV",
    "latent_strides",
    "latent_widths",
    "neighbours",
]
