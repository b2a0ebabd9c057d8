"""What the numbers of a network video mean: from a header's config and its coded weights to pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

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
from .nerv_planes import coarser, decode_refinement, encode_refinement

CHUNK, SIDE = "NETW", "KEYS"  # kinds of chunks
FINER = "NET1", "NET2", "NET3"  # what makes the weights of CHUNK finer
_HELD = 127  # by a weight of the exact profile
APPENDED = re.compile("D[0-9]{3}")  # weights of what was appended: where it begins, then its differences to NETW


class Network:
    """The layout of a model's numbers: a module that draws pictures [B, 3, H, W] from latents [B, C, h, w].

    The module's own parameters are never looked at: those to draw with are passed. `scale`: how much larger a picture
    is than its latents; a network whose pictures depend on time alone has latents of 0 channels. `layers`: where the
    module is nothing but convolutions, these in order, each with the enlargement behind it; all but the last are
    followed by GELU. `encoder`: how the names of parameters begin that only a fit needs. `half`: whether bfloat16 is good
    enough to draw with, where the processor has it.
    """

    half = False

    def __init__(
        self,
        module: nn.Module,
        config: dict,
        size: tuple[int, int],
        scale: int,
        layers: list[tuple[str, int]] = (),
        encoder: str = "model.encoder.",
    ):
        self.module, self.config, self.size, self.layers = module, config, size, layers
        self.latent_shape = (config.get("latent", 0), -(-size[0] // scale), -(-size[1] // scale))
        named = module.named_parameters()
        self.shapes = {name: tuple(p.shape) for name, p in named if not name.startswith(encoder)}

    def encoded(self, weights: dict[str, Tensor], frames: Tensor) -> Tensor:
        """Latents of frames [B, H, W, 3] uint8, by the parameters of the encoder. Only where there is one."""
        return functional_call(self.module, weights, (frames,))

    def pictures(self, weights: dict[str, Tensor], latents: Tensor, times: Tensor) -> Tensor:
        """[B, 3, H, W] of latents at times [B], counted in frames of the file, or of what was appended to it."""
        return self.cut(functional_call(self.module, weights, (latents,)))

    def cut(self, pictures: Tensor) -> Tensor:
        """Without what hangs over the right and lower edge."""
        return pictures[:, :, : self.size[0], : self.size[1]]


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

    def chunks(self, planes: int = 1, base: dict[str, Quantised] | None = None) -> list[bytes]:
        """A NETW chunk and those that make its weights finer; with `base`, the part of a chunk of weights that differ
        from these, in the same steps."""
        if base is not None:
            change = {name: Quantised(w.values - base[name].values, w.step) for name, w in self.weights.items()}
            return [self._joined(change)]
        fine, finer = self.weights, []
        for _ in range(planes - 1):
            coarse = {name: Quantised(coarser(w.values), w.step) if _split(w) else w for name, w in fine.items()}
            parts = [encode_refinement(w.values, coarse[name].values) for name, w in fine.items() if _split(w)]
            finer.insert(0, join(*parts))
            fine = coarse
        return [self._joined(fine), *finer]

    def _joined(self, weights: dict[str, Quantised]) -> bytes:
        exact = [] if self.layers is None else [encode_layers(self.layers, self.stretch)]
        return join(encode_latent_code(self.code), *map(encode_tensor, weights.values()), *exact)

    @classmethod
    def from_bytes(
        cls, data: memoryview, network: Network, exact: bool, base: dict[str, Quantised] | None = None
    ) -> Numbers:
        """ValueError where the bytes cannot be this network's."""
        parts = split(data, 1 + len(network.shapes) + exact)
        code = decode_latent_code(parts[0], network.latent_shape[0])
        tensors = zip(parts[1:], network.shapes.items(), strict=False)
        weights = {name: decode_tensor(part, shape) for part, (name, shape) in tensors}
        if base is not None:
            weights = {name: _sum(base[name], change) for name, change in weights.items()}
        return cls(weights, code, *(decode_layers(parts[-1], len(network.layers)) if exact else ()))

    def refined(self, finer: Sequence[memoryview], planes: int) -> Numbers:
        """With weights made finer by some of the chunks that a file of so many planes has behind NETW. ValueError where
        they cannot be these."""
        weights = dict(self.weights)
        for data in finer:
            names = [name for name, w in weights.items() if _split(w)]
            for name, part in zip(names, split(data, len(names)), strict=True):
                weights[name] = Quantised(decode_refinement(part, weights[name].values), weights[name].step)
        missing = 3 ** (planes - 1 - len(finer))
        if missing == 1:
            return replace(self, weights=weights)
        wide = {name: Quantised(w.values * missing, w.step) if _split(w) else w for name, w in weights.items()}
        return replace(self, weights=wide).held()

    def held(self) -> Numbers:
        """With weights that the exact profile can draw by; those of a file are, sums with coarse ones need not be."""
        weights = {name: Quantised(w.values.clip(-_HELD, _HELD), w.step) for name, w in self.weights.items()}
        return replace(self, weights=weights)


def _split(weight: Quantised) -> bool:
    """Whether it comes in planes: biases are too few."""
    return weight.values.ndim > 1


def _sum(base: Quantised, change: Quantised) -> Quantised:
    values = base.values.astype(np.int64) + change.values
    if np.abs(values).max() >> 24:
        raise ValueError("a weight is far outside of what a decoder takes")
    return Quantised(values.astype(np.int32), base.step)


class Drawer:
    """Pictures of the float profile: the same in the encoder, which hashes them, and in a reader on such a machine."""

    def __init__(self, network: Network, weights: dict[str, Quantised], step: float):
        self.network, self._step = network, step
        self._half = network.half and torch.cpu._is_avx512_bf16_supported()
        self._weights = {name: torch.from_numpy(q.floats()) for name, q in weights.items()}

    @torch.no_grad()
    def draw(self, latents: Tensor, time: float) -> Tensor:
        """[H, W, 3] uint8 of latents [C, h, w] in steps, which may be fractions, at a time in frames."""
        times = torch.tensor([time], dtype=torch.float64)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._half):
            picture = self.network.pictures(self._weights, latents[None].float() * self._step, times)
        return picture[0].float().permute(1, 2, 0).mul(255).round_().clamp_(0, 255).to(torch.uint8).contiguous()
