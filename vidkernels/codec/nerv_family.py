"""What a kind of network tells a fit and a reader, and what a header may ask of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .nerv_model import Network
from .protocol import Goal

_MOST_WEIGHTS = 1 << 26
_MOST_SIDE = 1 << 12
_MOST_WORK = 1 << 33  # numbers between two layers, of one picture
MOST_FRAMES = 1 << 31


class Family:
    """A kind of network.

    exact: whether its pictures can be drawn from integers alone. rest: share of the bytes that its numbers get.
    in_weights: share of these for weights, about. shares: of the steps, for each stage.
    """

    exact = True
    rest = 1.0
    in_weights = 0.7
    shares = (0.3, 0.5, 0.15, 0.05)

    def config(self, size: tuple[int, int], weights: float, frames: int) -> dict:
        """Of a network with about so many weights: JSON for the header."""
        raise NotImplementedError

    def network(
        self, config: dict, size: tuple[int, int], generator: torch.Generator | None = None, side: bytes = b""
    ) -> Network:
        """The layout of its numbers, from a config that may hold anything; without a generator no numbers are made.

        Raises:   ValueError: no network of a reasonable size, or `side` does not suit it.
        """
        raise NotImplementedError

    def side(self, config: dict, frames: Tensor, goal: Goal, room: int | None) -> bytes:
        """What the file holds beside the network: coded by something else, before the fit begins."""
        return b""


def checked(config: dict, size: tuple[int, int]) -> list[int]:
    """The strides of a config with `latent`, `channels` and `strides` whose numbers are within reason."""
    latent, channels = number(config, "latent"), numbers(config, "channels")
    strides = numbers(config, "strides")
    if len(strides) != len(channels) + 1:
        raise ValueError("`strides` of the header's config has not one number more than `channels`")
    within_reason(size, [latent, *channels, 3], strides, [3] * len(strides))
    return strides


def within_reason(
    size: tuple[int, int], widths: Sequence[int], strides: Sequence[int], kernels: Sequence[int], more: int = 0
) -> None:
    """ValueError for convolutions k x k from width to width, each with an enlargement, that are too much for anyone.

    `more`: weights beside theirs."""
    weights, grown = more, 1
    scale = math.prod(strides)
    cells = math.prod(-(-side // scale) for side in size)
    work = cells * widths[0]
    for (a, b), s, k in zip(itertools.pairwise(widths), strides, kernels, strict=True):
        weights, grown = weights + k * k * a * b * s * s, grown * s
        work = max(work, cells * grown * grown * b)
    if weights > _MOST_WEIGHTS or work > _MOST_WORK:
        raise ValueError("the header's config is of a network larger than this version draws")


def number(config: dict, name: str, most: int = _MOST_SIDE) -> int:
    value = config.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"`{name}` of the header's config is not from 1 to {most}")
    return value


def numbers(config: dict, name: str) -> list[int]:
    value = config.get(name)
    if type(value) is not list or not 1 <= len(value) <= 16:
        raise ValueError(f"`{name}` of the header's config is no list of 1 to 16 numbers")
    if any(type(n) is not int or not 1 <= n <= _MOST_SIDE for n in value):
        raise ValueError(f"`{name}` of the header's config is not from 1 to {_MOST_SIDE}")
    return value
