"""Networks that are videos."""

from .boosted_nerv import BoostedNeRV
from .e_nerv import ENeRV
from .ff_nerv import FFNeRV
from .fit import FitConfig, decode_video, fit_video, picture_loss
from .flow_nerv import FlowDecoder, FlowNeRV
from .hi_nerv import HiNeRV
from .hnerv import ConvNeXtEncoder, HNeRV
from .latent_nerv import LatentDecoder, LatentNeRV
from .nerv import NeRV

__all__ = [
    "BoostedNeRV",
    "ConvNeXtEncoder",
    "ENeRV",
    "FFNeRV",
    "FitConfig",
    "FlowDecoder",
    "FlowNeRV",
    "HNeRV",
    "HiNeRV",
    "LatentDecoder",
    "LatentNeRV",
    "NeRV",
    "decode_video",
    "fit_video",
    "picture_loss",
]
