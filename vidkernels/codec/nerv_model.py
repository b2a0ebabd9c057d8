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
from .nerv_integer import IntegerDrawer, Layer, decode_layers, encode_layers

CHUNK = "NETW"
_MOST_WEIGHTS = 1 << 26
_MOST_WIDTH = 128  # of the networks that are made here
_MOST_SIDE = 1 << 12
_MOST_WORK = 1 << 33  # numbers between two layers, of one picture


class Network:
    """The layout of a model's numbers: a module that draws pictures [B, 3, H, W] from latents [B, C, h, w].

    The module's own parameters are never looked at: those to draw with are passed. `layers`: its convolutions in order,
    each with the enlargement behind it; all but the last are followed by GELU.
    """

    def __init__(self, module: nn.Module, config: dict, size: tuple[int, int], layers: list[tuple[str, int]]):
        self.module, self.config, self.size, self.layers = module, config, size, layers
        scale = math.prod(s for _, s in layers)
        self.latent_shape = (config["latent"], -(-size[0] // scale), -(-size[1] // scale))
        self.shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}

    def pictures(self, weights: dict[str, Tensor], latents: Tensor) -> Tensor:
        return self.cut(functional_call(self.module, weights, (latents,)))

    def cut(self, pictures: Tensor) -> Tensor:
        """Without what hangs over the right and lower edge."""
        return pictures[:, :, : self.size[0], : self.size[1]]


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
    blocks = [(f"blocks.{i}.conv", s) for i, s in enumerate(strides[:-1])]
    return Network(module, config, size, [*blocks, ("head", strides[-1])])


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


@dataclass(frozen=True)
class Numbers:
    """All that a network's pictures depend on beside the latents. `layers` and `stretch` belong to the exact profile;
    without them it is the float profile."""

    weights: dict[str, Quantised]
    code: LatentCode
    layers: list[Layer] | None = None
    stretch: int = 1

    def drawer(self, network: Network) -> Drawer | IntegerDrawer:
        if self.layers is None:
            return Drawer(network, self.weights, self.code.step)
        return IntegerDrawer(network.layers, self.weights, self.layers, self.stretch, network.size)

    def to_bytes(self) -> bytes:
        """The NETW chunk."""
        exact = [] if self.layers is None else [encode_layers(self.layers, self.stretch)]
        return join(encode_latent_code(self.code), *map(encode_tensor, self.weights.values()), *exact)

    @classmethod
    def from_bytes(cls, data: memoryview, network: Network, exact: bool) -> Numbers:
        """ValueError where the bytes cannot be this network's."""
        parts = split(data, 1 + len(network.shapes) + exact)
        code = decode_latent_code(parts[0], network.latent_shape[0])
        tensors = zip(parts[1:], network.shapes.items(), strict=False)
        weights = {name: decode_tensor(part, shape) for part, (name, shape) in tensors}
        return cls(weights, code, *(decode_layers(parts[-1], len(network.layers)) if exact else ()))


class Drawer:
    """Pictures of the float profile: the same in the encoder, which hashes them, and in a reader on such a machine."""

    def __init__(self, network: Network, weights: dict[str, Quantised], step: float):
        self.network, self._step = network, step
        self._weights = {name: torch.from_numpy(q.floats()) for name, q in weights.items()}

    @torch.no_grad()
    def draw(self, latents: Tensor) -> Tensor:
        """[H, W, 3] uint8 of latents [C, h, w] in steps, which may be fractions."""
        picture = self.network.pictures(self._weights, latents[None].float() * self._step)
        return picture[0].permute(1, 2, 0).mul(255).round_().clamp_(0, 255).to(torch.uint8).contiguous()
