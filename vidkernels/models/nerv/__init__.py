"""Networks that are videos."""

from vidkernels.models.nerv.boosted_nerv import BoostedNeRV
from vidkernels.models.nerv.e_nerv import ENeRV
from vidkernels.models.nerv.ff_nerv import FFNeRV
from vidkernels.models.nerv.fit import LOSSES, FitConfig, decode_video, fit_video, picture_loss
from vidkernels.models.nerv.flow_nerv import FlowDecoder, FlowNeRV, neighbours
from vidkernels.models.nerv.frame_model import (
    Embedding,
    FrameModel,
    TimeEncoding,
    default_strides,
    initialise,
    mlp,
    to_picture,
)
from vidkernels.models.nerv.hi_nerv import HiNeRV
from vidkernels.models.nerv.hnerv import ConvNeXtEncoder, HNeRV, hnerv_kernels, hnerv_width, hnerv_widths
from vidkernels.models.nerv.latent_nerv import LatentDecoder, LatentNeRV, latent_strides, latent_widths
from vidkernels.models.nerv.nerv import NeRV
from vidkernels.models.nerv.pfnr import PFNR

__all__ = [
    "LOSSES",
    "PFNR",
    "BoostedNeRV",
    "ConvNeXtEncoder",
    "ENeRV",
    "Embedding",
    "FFNeRV",
    "FitConfig",
    "FlowDecoder",
    "FlowNeRV",
    "FrameModel",
    "HNeRV",
    "HiNeRV",
    "LatentDecoder",
    "LatentNeRV",
    "NeRV",
    "TimeEncoding",
    "decode_video",
    "default_strides",
    "fit_video",
    "hnerv_kernels",
    "hnerv_width",
    "hnerv_widths",
    "initialise",
    "latent_strides",
    "latent_widths",
    "mlp",
    "neighbours",
    "picture_loss",
    "to_picture",
]
