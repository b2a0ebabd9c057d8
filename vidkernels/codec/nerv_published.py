"""NeRV and HNeRV as they were published, in a `.vkv` file."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..models.nerv.frame_model import FrameModel, default_strides
from ..models.nerv.hnerv import HNeRV, hnerv_kernels, hnerv_widths
from ..models.nerv.nerv import NeRV
from .nerv_family import MOST_FRAMES, Family, number, numbers, within_reason
from .nerv_model import Network

_MOST_WIDTH = 128  # of the networks that are made here
_LEVELS = 40  # of the time encoding
_LATENT = 16
_KERNELS, _REDUCTION = (1, 5), 1.2


class _Halves(nn.Module):
    """Frames to latents, latents or times to pictures: whichever half what is given belongs to."""

    def __init__(self, model: FrameModel):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.encode(x) if x.dtype is torch.uint8 else self.model.decode(x)


class _TimeNetwork(Network):
    """Pictures of times alone: a frame is its number's share of the frames that the fit had."""

    def pictures(self, weights, latents, times):
        return self.cut(functional_call(self.module, weights, (times.double() / self.config["frames"],)))


class NervFamily(Family):
    """models/nerv/nerv.py: no latents, all is in the weights."""

    exact = False
    in_weights = 1.0
    shares = (0.3, 0.5, 0.2, 0.0)

    def config(self, size, weights, frames):
        """NeRV-S, made smaller or larger as a whole."""
        strides = list(default_strides(size))
        return _widest(
            lambda width: {"frames": frames, "width": width, "hidden": min(512, 20 * width), "levels": _LEVELS,
                           "lowest": min(96, 4 * width), "strides": strides},
            range(2, _MOST_WIDTH + 1, 2), weights, lambda config: self.network(config, size),
        )  # fmt: skip

    def network(self, config, size, generator=None, side=b""):
        strides, scale = numbers(config, "strides"), math.prod(numbers(config, "strides"))
        width, hidden, levels, lowest = (number(config, name) for name in ("width", "hidden", "levels", "lowest"))
        frames = number(config, "frames", MOST_FRAMES)
        channels = [width, width]
        for stride in strides[1:]:
            channels.append(max(channels[-1] // (1 if stride == 1 else 2), lowest))
        stem = 2 * levels * hidden + hidden * width * math.prod(-(-side // scale) for side in size)
        within_reason(size, [*channels, 3], [*strides, 1], [3] * len(strides) + [1], stem)
        with torch.device("cpu" if generator is not None else "meta"):
            model = NeRV(frames, size, width=width, hidden=hidden, strides=strides, lowest=lowest, levels=levels,
                         generator=generator)  # fmt: skip
        return _TimeNetwork(_Halves(model), config, size, scale)


class HnervFamily(Family):
    """models/nerv/hnerv.py: what the encoder makes of a frame is in the file, the encoder is not."""

    exact = False

    def config(self, size, weights, frames):
        strides = list(default_strides(size))
        return _widest(
            lambda width: {"latent": _LATENT, "width": width, "lowest": min(12, width), "strides": strides},
            range(4, _MOST_WIDTH + 1), weights, lambda config: self.network(config, size),
        )  # fmt: skip

    def network(self, config, size, generator=None, side=b""):
        latent, width, lowest = (number(config, name) for name in ("latent", "width", "lowest"))
        strides = numbers(config, "strides")
        channels = hnerv_widths(width, len(strides), _REDUCTION, lowest)
        kernels = hnerv_kernels(len(strides), _KERNELS)
        within_reason(size, [latent, *channels, 3], [1, *strides, 1], [1, *kernels, 3])
        with torch.device("cpu" if generator is not None else "meta"):
            model = HNeRV(1, size, width=width, strides=strides, embedding=latent, kernels=_KERNELS,
                          reduction=_REDUCTION, lowest=lowest, generator=generator)  # fmt: skip
        return Network(_Halves(model), config, size, model.scale)


def _widest(config: Callable[[int], dict], widths: range, weights: float, network: Callable[[dict], Network]) -> dict:
    """The config of the widest network with at most so many weights, or of the narrowest one."""
    best = config(widths[0])
    for wider in map(config, widths[1:]):
        if sum(map(math.prod, network(wider).shapes.values())) > weights:
            break
        best = wider
    return best
