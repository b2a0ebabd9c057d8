"""A video of a progressive network as bytes: which weights its subnetwork has, and the values of the new ones.

config   of the header: the layout of the network
session  its head in 16-bit floats, then for each tensor a step, the mask and the integers of the weights that are used
         for the first time. A mask has tables for weights that are free and for those that an earlier video has, of
         each one for weights that the first scores choose: learning moves a quarter of a mask, so these tell much
"""

from __future__ import annotations

import itertools
import math
import struct

import numpy as np
import torch

from ..functional.nerv.subnet import top_k_mask
from ..models.nerv.frame_model import default_strides
from ..models.nerv.pfnr import PFNR
from ..nn.nerv.subnet import SubnetParameter
from .entropy import decode_symbols, encode_symbols
from .nerv_bits import join, split

_STEP = struct.Struct("<f")
_MOST_WEIGHTS = 1 << 26
_MOST_SIDE = 1 << 12
_MOST_WORK = 1 << 33  # numbers between two layers, of one picture
_NUMBERS = ("width", "hidden", "lowest", "levels")
_LISTS = ("strides", "fourier", "modes")


def make_config(size: tuple[int, int], weights: float, share: float) -> dict:
    """Of the widest network with at most so many weights, or the narrowest one."""
    strides = default_strides(size)
    best = None
    for width in itertools.count(4, 2):
        config = {"width": width, "hidden": 2 * width, "lowest": min(12, width), "levels": 40, "strides": list(strides),
                  "fourier": [min(1, len(strides) - 1)], "modes": [8, 5], "share": share}  # fmt: skip
        if best is not None and _network(config, size, 1).stored_parameters() > weights:
            return best
        best = config


def make_network(config: dict, size: tuple[int, int], frames: int, generator: torch.Generator | None = None) -> PFNR:
    """The network of a config that may hold anything; without a generator its numbers are undefined, nothing is used.

    Raises:   ValueError: no network of a reasonable size.
    """
    _check(config, size)
    network = _network(config, size, frames, generator)
    if generator is None:
        network.to_empty(device="cpu")
        for tensor in network.tensors():
            tensor.stored.zero_()
            tensor.used.zero_()
    return network


def _network(config: dict, size: tuple[int, int], frames: int, generator: torch.Generator | None = None) -> PFNR:
    """Without memory if there is no generator."""
    options = {name: config[name] for name in (*_NUMBERS, *_LISTS, "share")}
    with torch.device("meta" if generator is None else "cpu"):
        return PFNR(frames, size, generator=generator, **options)


def _check(config: dict, size: tuple[int, int]) -> None:
    numbers = [config.get(name) for name in _NUMBERS]
    for name in _LISTS:
        value = config.get(name)
        if type(value) is not list or len(value) > 16:
            raise ValueError(f"`{name}` of the header's config is no list of at most 16 numbers")
        numbers += [n + 1 if name == "fourier" and type(n) is int else n for n in value]
    if any(type(n) is not int or not 1 <= n <= _MOST_SIDE for n in numbers):
        raise ValueError(f"a number of the header's config is not from 1 to {_MOST_SIDE}")
    share, strides = config.get("share"), config["strides"]
    if type(share) not in (int, float) or not 0 < share <= 1:
        raise ValueError("`share` of the header's config is not above 0 and at most 1")
    if not strides or len(config["modes"]) != 2 or any(i >= len(strides) for i in config["fourier"]):
        raise ValueError("`strides`, `modes` and `fourier` of the header's config do not fit together")
    cells = math.prod(-(-side // math.prod(strides)) for side in size)
    width = max(config["width"], config["lowest"])
    weights = config["hidden"] * (4 * config["levels"] + config["width"] * cells)
    weights += sum(9 * width * width * s * s for s in strides)
    weights += len(config["fourier"]) * 2 * math.prod(config["modes"]) * width * width
    work = cells * math.prod(strides) ** 2 * width
    if weights > _MOST_WEIGHTS or work > _MOST_WORK:
        raise ValueError("the header's config is of a network larger than this version draws")


@torch.no_grad()
def draw_scores(network: PFNR) -> None:
    """First scores of the session that has begun, which whoever reads its mask can draw, too."""
    for number, tensor in enumerate(network.tensors()):
        tensor.scores.copy_(_first_scores(tensor.used.shape, network.session, number) * tensor.reach)


def _first_scores(shape: tuple[int, ...], session: int, number: int) -> torch.Tensor:
    """From -1 to 1: of each output of Philox 4x64 with the key (session, number), 24 bits and a sign."""
    raw = np.random.Philox(key=[session, number]).random_raw(math.prod(shape))
    values = ((raw >> np.uint64(40)).astype(np.float32) + 1) * np.float32(2**-24)
    values = np.where(raw & np.uint64(1), -values, values)
    return torch.from_numpy(values).view(shape)


def _contexts(tensor: SubnetParameter, network: PFNR, session: int, number: int, earlier: torch.Tensor) -> torch.Tensor:
    """uint8, by what a weight's bit in a mask is told: whether an earlier video has it, and its first score."""
    began = top_k_mask(_first_scores(tensor.used.shape, session, number), network.share)
    return (earlier.to(torch.uint8) + 2 * began.to(torch.uint8)).reshape(-1)


@torch.no_grad()
def round_head(network: PFNR) -> None:
    """Leave of the last head what 16 bits hold, which is what a file has of it."""
    for value in network.heads[-1].parameters():
        value.copy_(value.half())


def encode_session(network: PFNR, session: int) -> bytes:
    """Of a finished session, whose head was rounded before."""
    parts = [_flat(network.heads[session]).to(torch.float16).numpy().astype("<f2").tobytes()]
    for number, tensor in enumerate(network.tensors()):
        mask = tensor.finished(session)[1]
        earlier = _earlier(tensor, session)
        new = mask & ~earlier
        values = (tensor.stored[new] / tensor.step).round().to(torch.int32).numpy()
        bits = encode_symbols(mask.reshape(-1).to(torch.int32), _contexts(tensor, network, session, number, earlier))
        parts.append(_STEP.pack(tensor.step) + join(bits, encode_symbols(values)))
    return join(*parts)


def decode_session(network: PFNR, data: memoryview, frames: int) -> None:
    """Add a session; ValueError where the bytes cannot be this network's."""
    tensors, last = network.tensors(), network.heads[-1]
    head, *parts = split(data, 1 + len(tensors))
    if len(head) != 2 * _flat(last).numel():
        raise ValueError("a head is cut short")
    numbers = torch.from_numpy(np.frombuffer(head, "<f2").astype(np.float32))
    if not torch.isfinite(numbers).all():
        raise ValueError("a head holds something that is not a number")
    masks, values = [], []
    for number, (tensor, part) in enumerate(zip(tensors, parts, strict=True)):
        contexts = _contexts(tensor, network, network.finished, number, tensor.frozen)
        mask, value = _decode(tensor, part, contexts)
        masks.append(mask)
        values.append(value)
    cut = last.weight.numel()
    network.adopt_session(frames, masks, values, (numbers[:cut].view_as(last.weight), numbers[cut:]))


def _flat(head: torch.nn.Conv2d) -> torch.Tensor:
    return torch.cat([head.weight.detach().reshape(-1), head.bias.detach()])


def _decode(tensor: SubnetParameter, data: memoryview, contexts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if len(data) < _STEP.size:
        raise ValueError("a step is cut short")
    (step,) = _STEP.unpack_from(data)
    if not 1e-12 < step < 1e12:
        raise ValueError("a step is out of range")
    bits, symbols = split(data[_STEP.size :], 2)
    chosen = decode_symbols(bits, tensor.used.numel(), contexts)
    if ((chosen < 0) | (chosen > 1)).any():
        raise ValueError("a mask holds something that is not a bit")
    mask = torch.from_numpy(chosen).bool().view(tensor.used.shape)
    new = mask & ~tensor.frozen
    integers = decode_symbols(symbols, int(new.sum()))
    if len(integers) and int(np.abs(integers.astype(np.int64)).max()) >> 24:
        raise ValueError("a weight is far outside of what a decoder takes")
    values = torch.zeros(tensor.used.shape)
    values[new] = torch.from_numpy(integers).float() * step
    return mask, values


def _earlier(tensor: SubnetParameter, session: int) -> torch.Tensor:
    return (tensor.used & ((1 << session) - 1)) != 0
