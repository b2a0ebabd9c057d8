"""The kinds of networks that a `.vkv` file may hold, and how large one is made."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call

from .. import _check
from ..metrics import frame_psnr
from ..models.nerv.flow_nerv import FlowDecoder, neighbours
from ..models.nerv.latent_nerv import LatentDecoder, latent_strides, latent_widths
from .keys import CODERS, chosen_quality, decode_keys, encode_keys
from .nerv_family import Family, checked
from .nerv_model import Network
from .nerv_published import HnervFamily, NervFamily

_MOST_WIDTH = 128  # of the networks that are made here
_KEY_DISTANCE = 44  # frames, at most
_MOST_KEYS = 1 << 12
_KEY_SHARE = 0.4  # of the bytes
_KEY_LEAD = 1.5  # decibels that key frames are better than the goal
_KEY_QUALITY = 40  # where neither bytes nor decibels are asked for


class LatentFamily(Family):
    """models/nerv/latent_nerv.py"""

    share = 32  # channels of the latents, at most

    def config(self, size, weights, frames):
        """The widest network with at most so many weights, or the narrowest one."""
        strides = latent_strides(size)
        best = None
        for width in range(8, _MOST_WIDTH + 1, 8):
            config = {"latent": min(self.share, width), "channels": list(latent_widths(width, len(strides) - 1)),
                      "strides": list(strides)}  # fmt: skip
            if best is None or self._weights(config) <= weights:
                best = config
        return best

    def _weights(self, config: dict) -> int:
        pairs = itertools.pairwise([config["latent"], *config["channels"], 3])
        return sum(9 * a * b * s * s for (a, b), s in zip(pairs, config["strides"], strict=True))

    def network(self, config, size, generator=None, side=b""):
        strides = checked(config, size)
        with torch.device("cpu" if generator is not None else "meta"):
            module = LatentDecoder(config["latent"], config["channels"], strides, generator=generator)
        blocks = [(f"blocks.{i}.conv", s) for i, s in enumerate(strides[:-1])]
        return Network(module, config, size, module.scale, [*blocks, ("head", strides[-1])])


class _FlowNetwork(Network):
    """Draws between the key frames that `side` holds, which make up most of a picture and are kept in float32."""

    half = True

    def __init__(self, module: FlowDecoder, config: dict, size: tuple[int, int], keys: Tensor):
        super().__init__(module, config, size, module.scale)
        self._keys = (keys.permute(0, 3, 1, 2).float() / 255).contiguous()

    def pictures(self, weights, latents, times):
        before, after = neighbours(times.double(), self.config["keys"])
        keys = ([self._keys[i] for i in side.tolist()] for side in (before, after))
        return functional_call(self.module, weights, (latents, *keys))


class FlowFamily(LatentFamily):
    """models/nerv/flow_nerv.py, with key frames by one of the coders of keys.py"""

    exact = False
    rest = 1 - _KEY_SHARE
    share = 16

    def config(self, size, weights, frames):
        count = 1 if frames == 1 else 1 + -(-(frames - 1) // _KEY_DISTANCE)
        keys = sorted({round(k * (frames - 1) / max(1, count - 1)) for k in range(count)})
        return {**super().config(size, weights, frames), "keys": keys}

    def network(self, config, size, generator=None, side=b""):
        strides = checked(config, size)
        keys = config.get("keys")
        rising = type(keys) is list and 1 <= len(keys) <= _MOST_KEYS and all(type(k) is int for k in keys)
        if not rising or keys[0] < 0 or any(b <= a for a, b in itertools.pairwise(keys)) or keys[-1] >= 1 << 31:
            raise ValueError("`keys` of the header's config is no list of rising frame numbers")
        pictures = decode_keys(side, size, len(keys), _coder(config))
        with torch.device("cpu" if generator is not None else "meta"):
            module = FlowDecoder(config["latent"], config["channels"], strides, generator=generator)
        return _FlowNetwork(module, config, size, pictures)

    def side(self, config, frames, goal, room):
        chosen, coder = frames[config["keys"]], _coder(config)
        if goal.only_time:
            return encode_keys(chosen, _KEY_QUALITY, coder)
        if room is not None:
            coded = chosen_quality(chosen, lambda data: len(data) <= _KEY_SHARE * room, coder)
            if len(coded) > _KEY_SHARE * room:
                _check.fail("fit", f"the key frames alone need {len(coded)} bytes.", "allow more bytes.", room=room)
            return coded
        return chosen_quality(chosen, _worse_than(chosen, goal.psnr + _KEY_LEAD, coder), coder)


def _coder(config: dict) -> str:
    """Of the key frames; files that do not say have AV1's."""
    coder = config.get("coder", "av1")
    if coder not in CODERS:
        raise ValueError("`coder` of the header's config names none that this version knows")
    return coder


def _worse_than(chosen: Tensor, psnr: float, coder: str) -> Callable[[bytes], bool]:
    """Whether coded key frames are no better than they have to be."""
    size, count = tuple(chosen.shape[1:3]), len(chosen)
    return lambda data: float(frame_psnr(decode_keys(data, size, count, coder), chosen).mean()) <= psnr


NETWORKS: dict[str, Family] = {
    "latent": LatentFamily(),
    "flow": FlowFamily(),
    "nerv": NervFamily(),
    "hnerv": HnervFamily(),
}
