"""What the numbers of a network video mean: from a header's config and its coded weights to pictures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..models.nerv.latent_nerv import LatentDecoder, latent_strides, latent_widths
from .nerv_bits import (
    LatentCode,
    Quantised,
    decode_latent_code,
    decode_tensor,
    encode_latent_code,
    encode_tensor,
    join,
    split,
)

CHUNK = "NETW"
_MOST_WEIGHTS = 1 << 26
_MOST_WIDTH = 128  # of the networks that are made here
_MOST_SIDE = 1 << 12
_MOST_WORK = 1 << 33  # numbers between two layers, of one picture


class Network:
    """The layout of a model's numbers: a module that draws pictures [B, 3, H, W] from latents [B, C, h, w].

    The module's own parameters are never looked at: those to draw with are passed.
    """

    def __init__(self, module: nn.Module, config: dict, size: tuple[int, int], scale: int):
        self.module, self.config, self.size = module, config, size
        self.latent_shape = (config["latent"], -(-size[0] // scale), -(-size[1] // scale))
        self.shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}

    def pictures(self, weights: dict[str, Tensor], latents: Tensor) -> Tensor:
        return functional_call(self.module, weights, (latents,))[:, :, : self.size[0], : self.size[1]]


def latent_network(config: dict, size: tuple[int, int], generator: torch.Generator | None = None) -> Network:
    """From a header's config, which may hold anything; ValueError if it is no network of a reasonable size."""
    latent, channels, strides = (config.get(name) for name in ("latent", "channels", "strides"))
    numbers = [latent, *_list("channels", channels), *_list("strides", strides)]
    if any(type(n) is not int or not 1 <= n <= _MOST_SIDE for n in numbers):
        raise ValueError(f"`latent`, `channels` or `strides` of the header's config is not from 1 to {_MOST_SIDE}")
    if len(strides) != len(channels) + 1:
        raise ValueError("`strides` of the header's config has not one number more than `channels`")
    widths, weights, grown = [latent, *channels, 3], 0, 1
    scale = math.prod(strides)
    cells = math.prod(-(-side // scale) for side in size)
    work = cells * latent
    for (a, b), s in zip(itertools.pairwise(widths), strides, strict=True):
        weights, grown = weights + 9 * a * b * s * s, grown * s
        work = max(work, cells * grown * grown * b)
    if weights > _MOST_WEIGHTS or work > _MOST_WORK:
        raise ValueError("the header's config is of a network larger than this version draws")
    with torch.device("cpu" if generator is not None else "meta"):
        module = LatentDecoder(latent, channels, strides, generator=generator)
    return Network(module, config, size, scale)


def _list(name: str, value) -> list:
    if type(value) is not list or not 1 <= len(value) <= 16:
        raise ValueError(f"`{name}` of the header's config is no list of 1 to 16 numbers")
    return value


def latent_config(size: tuple[int, int], weights: float) -> dict:
    """The widest network with at most so many weights, or the narrowest one."""
    strides = latent_strides(size)
    best = None
    for width in range(8, _MOST_WIDTH + 1, 8):
        channels = latent_widths(width, len(strides) - 1)
        latent = min(32, width)
        pairs = itertools.pairwise([latent, *channels, 3])
        count = sum(9 * a * b * s * s for (a, b), s in zip(pairs, strides, strict=True))
        if best is None or count <= weights:
            best = {"latent": latent, "channels": list(channels), "strides": list(strides)}
    return best


@dataclass(frozen=True)
class Family:
    """A kind of network. config(size, weights): of one with about so many weights, JSON for the header.
    network(config, size, generator): the layout of its numbers; without a generator, no numbers are made."""

    config: Callable[[tuple[int, int], float], dict]
    network: Callable[..., Network]


NETWORKS = {"latent": Family(latent_config, latent_network)}


def encode_network(weights: dict[str, Quantised], code: LatentCode) -> bytes:
    """The NETW chunk."""
    return join(encode_latent_code(code), *map(encode_tensor, weights.values()))


def decode_network(data: memoryview, network: Network) -> tuple[dict[str, Quantised], LatentCode]:
    """The tensors by name and the latents' code; ValueError where the bytes cannot be this network's."""
    parts = split(data, 1 + len(network.shapes))
    weights = {
        name: decode_tensor(part, shape) for part, (name, shape) in zip(parts[1:], network.shapes.items(), strict=True)
    }
    return weights, decode_latent_code(parts[0], network.latent_shape[0])


class Drawer:
    """Decoded weights, ready to draw: the same pictures in the encoder, which hashes them, and in every reader of this
    kind of machine."""

    def __init__(self, network: Network, weights: dict[str, Quantised], code: LatentCode):
        self.network, self.step = network, code.step
        self._weights = {name: torch.from_numpy(q.floats()) for name, q in weights.items()}

    @torch.no_grad()
    def draw(self, latents: Tensor) -> Tensor:
        """[H, W, 3] uint8 of latents [C, h, w] in steps, which may be fractions."""
        picture = self.network.pictures(self._weights, latents[None].float() * self.step)
        return picture[0].permute(1, 2, 0).mul(255).round_().clamp_(0, 255).to(torch.uint8).contiguous()
