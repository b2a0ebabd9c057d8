"""Networks that are videos."""

from .fit import FitConfig, decode_video, fit_video, picture_loss
from .flow_nerv import FlowDecoder, FlowNeRV
from .hnerv import ConvNeXtEncoder, HNeRV
from .latent_nerv import LatentDecoder, LatentNeRV
from .nerv import NeRV

__all__ = [
    "ConvNeXtEncoder",
    "FitConfig",
    "FlowDecoder",
    "FlowNeRV",
    "HNeRV",
    "LatentDecoder",
    "LatentNeRV",
    "NeRV",
    "decode_video",
    "fit_video",
    "picture_loss",
]
