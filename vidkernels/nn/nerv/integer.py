"""Decoders of videos in integers: one layer after another, the same pictures on every machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels import _check
from vidkernels.functional.nerv.integer import Integers, decode_integers, fixed_point, folded_bias
from vidkernels.nn.nerv.block import NeRVBlock

__all__ = ["IntegerDecoder", "IntegerLayer", "quantize_decoder"]

_ACTIVATIONS = {"gelu": F.gelu, "sine": torch.sin, "relu": F.relu, "none": lambda z: z}
_FLAT = {"gelu": -3.2, "relu": 0.0}  # below, the activation is 0 as far as a byte goes
_PICTURES = {"tanh": lambda z: 0.5 * torch.tanh(z) + 0.5, "half": lambda z: z + 0.5}
_OUTSIDE = 1e-4  # of the values before an activation, at either end, beyond the range of its table
_SAMPLES = 1 << 18
_LARGEST = 1 << 24  # of a bias, in units of its sum


class IntegerLayer(nn.Module):
    """`conv_int8` with its numbers as buffers.

    Args:
        weight: [O, kh, kw, I] int8.
        bias, multiplier, shift: [O] int32.
        table: [256] uint8.
        zero_point: 0 to 255.
        scale: of the pixel shuffle.
    Shape: [B, H, W, I] uint8 -> [B, H * scale, W * scale, O / scale^2] uint8.
    Example:
        >>> one = torch.ones(4, dtype=torch.int32)
        >>> layer = IntegerLayer(torch.ones(4, 3, 3, 2, dtype=torch.int8), one, one, one,
        ...                      torch.arange(256, dtype=torch.uint8), scale=2)
        >>> layer(torch.zeros(1, 5, 6, 2, dtype=torch.uint8)).shape
        torch.Size([1, 10, 12, 1])
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        multiplier: Tensor,
        shift: Tensor,
        table: Tensor,
        *,
        zero_point: int = 0,
        scale: int = 1,
    ):
        super().__init__()
        named = {"weight": weight, "bias": bias, "multiplier": multiplier, "shift": shift, "table": table}
        for name, value in named.items():
            self.register_buffer(name, value)
        self.zero_point, self.scale = zero_point, scale

    @property
    def integers(self) -> Integers:
        return Integers(
            self.weight, self.bias, self.multiplier, self.shift, self.table, self.zero_point, self.scale
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return decode_integers(x, [self.integers])

    def get_extra_state(self) -> dict[str, int]:
        return {"zero_point": self.zero_point, "scale": self.scale}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.zero_point, self.scale = state["zero_point"], state["scale"]

    def extra_repr(self) -> str:
        filters, kh, kw, channels = self.weight.shape
        return f"{channels} -> {filters}, kernel={kh}x{kw}, scale={self.scale}, zero_point={self.zero_point}"


class IntegerDecoder(nn.Module):
    """Latents of bytes to frames of bytes by integers alone: equal bits on every backend and number of threads.

    All that the frames depend on is in the state: `IntegerDecoder.from_state_dict(decoder.state_dict())` is it again.
    Convention: a latent v is the byte round(v / step) + zero, held within 0 to 255; zero is that of the first layer.
    Args:
        layers: of the decoder, the last one's channels are the frame's.
        step: what one unit of a latent's byte is worth.
        size: (H, W) of a frame; what the layers draw beyond, at the right and lower edge, is cut off. None: all.
    Shape:
        [B, h, w, C] uint8, from `encode` -> [B, H, W, 3] uint8.
    Raises:
        ValueError: no layer.
    Example:
        >>> blocks, head = [vk.nn.NeRVBlock(4, 6, 2)], torch.nn.Conv2d(6, 3, 3, padding=1)
        >>> latents = torch.randn(5, 4, 3, 4)
        >>> decoder = vk.nn.quantize_decoder(blocks, head, latents, size=(5, 8))
        >>> decoder(decoder.encode(latents)).shape
        torch.Size([5, 5, 8, 3])
    """

    def __init__(self, layers: Iterable[IntegerLayer], *, step: float, size: tuple[int, int] | None = None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if not self.layers:
            _check.fail("IntegerDecoder", "expected at least one layer.")
        self.step, self.size = step, None if size is None else tuple(size)

    def encode(self, latents: Tensor) -> Tensor:
        """[B, h, w, C] uint8 of latents [B, C, h, w]. Not part of the exact road: store the bytes."""
        _check.is_tensor("IntegerDecoder", "latents", latents, "[B, C, h, w]")
        index = (latents.detach().double() / self.step).round() + self.layers[0].zero_point
        return index.clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def forward(self, latents: Tensor) -> Tensor:
        frames = decode_integers(latents, [layer.integers for layer in self.layers])
        return frames if self.size is None else frames[:, : self.size[0], : self.size[1]]

    def get_extra_state(self) -> dict:
        return {"step": self.step, "size": self.size}

    def set_extra_state(self, state: dict) -> None:
        self.step, self.size = state["step"], state["size"]

    @classmethod
    def from_state_dict(cls, state: dict) -> IntegerDecoder:
        """The decoder of a `state_dict()`."""
        layers = []
        while f"layers.{len(layers)}.weight" in state:
            prefix = f"layers.{len(layers)}."
            names = "weight", "bias", "multiplier", "shift", "table"
            layers.append(IntegerLayer(*(state[prefix + name] for name in names), **state[prefix + "_extra_state"]))
        return cls(layers, **state["_extra_state"])


@torch.no_grad()
def quantize_decoder(
    blocks: Iterable[NeRVBlock],
    head: nn.Conv2d,
    calibration: Tensor,
    *,
    head_scale: int = 1,
    picture: str = "tanh",
    size: tuple[int, int] | None = None,
) -> IntegerDecoder:
    """The integers that stand for a decoder of NeRVBlocks and an RGB head.

    Weights take 8 bits with a step for each filter; what goes from layer to layer takes 8 bits with one step. Before an
    activation, index 0 to 255 spans the values that calibration shows (but for the outermost ten thousandths), the
    table holds the activation, and each bias makes up for the mean error of its filter over the calibration.
    Args:
        blocks: in order; for HNeRV `[model.stem, *model.blocks]`.
        head: the last convolution, to the 3 * head_scale^2 channels of a picture.
        calibration: [B, C, h, w], typical inputs of the first block, which give the range of the latents, too.
        head_scale: pixel shuffle behind the head.
        picture: what follows the head: "tanh" ((tanh + 1) / 2, NeRV and HNeRV) or "half" (+ 1/2, LatentNeRV).
        size: (H, W) of a frame, see IntegerDecoder.
    Returns:
        decoder: its tables and numbers are made here once, and stored.
    Raises:
        ValueError: calibration that is empty or not finite, a convolution that is not plain, another `picture`.
    Backends: torch.
    Source: Jacob et al. 2018, arXiv 1712.05877, sections 2 and 3; the bias's part: Nagel et al. 2019, arXiv 1906.04721,
        section 4.2.
    Example:
        >>> block, head = vk.nn.NeRVBlock(4, 6, 2), torch.nn.Conv2d(6, 3, 3, padding=1)
        >>> x = torch.randn(2, 4, 3, 4)
        >>> decoder = quantize_decoder([block], head, x)
        >>> wanted = (0.5 * torch.tanh(head(block(x))) + 0.5).permute(0, 2, 3, 1) * 255
        >>> bool((decoder(decoder.encode(x)) - wanted).abs().mean() < 2)
        True
    """
    name = "quantize_decoder"
    _check.is_tensor(name, "calibration", calibration, "[B, C, h, w]")
    if calibration.numel() == 0 or not bool(calibration.isfinite().all()):
        _check.fail(name, "expected `calibration` to hold finite numbers.", calibration=calibration)
    if picture not in _PICTURES:
        _check.fail(name, f"expected `picture` to be one of {', '.join(_PICTURES)}, got {picture!r}.")
    stages = [(block.conv, block.scale, block.activation) for block in blocks] + [(head, head_scale, picture)]
    exact = calibration.float()
    step, zero = _byte_range(exact)
    first, layers = step, []
    drawn = (exact / step).round().add(zero).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    for conv, scale, activation in stages:
        _plain(name, conv)
        layer, exact, step, zero = _layer(conv, scale, activation, exact, drawn, step, zero)
        drawn = layer(drawn)
        layers.append(layer)
    return IntegerDecoder(layers, step=first, size=size)


def _plain(name: str, conv: nn.Conv2d) -> None:
    sides = conv.kernel_size
    fits = conv.groups == 1 and conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    if not fits or conv.padding != (sides[0] // 2, sides[1] // 2) or not all(side % 2 for side in sides):
        _check.fail(name, f"expected convolutions that keep the size, without groups or dilation, got {conv}.")


def _byte_range(values: Tensor) -> tuple[float, int]:
    """(step, zero) of bytes for these values; 0 is one of them."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    step = max(high - low, 1e-6) / 255
    return step, round(-low / step)


def _index_range(z: Tensor, activation: str) -> tuple[float, float]:
    """(low, step) of indices for values before an activation."""
    if activation == "half":
        return -0.5, 1 / 255  # the index is the byte
    flat = z.flatten()
    values = flat[:: 1 + flat.numel() // _SAMPLES].sort().values
    cut = round(_OUTSIDE * (len(values) - 1))
    low = max(float(values[cut]), _FLAT.get(activation, -torch.inf))
    high = max(float(values[len(values) - 1 - cut]), low + 1e-3)
    return low, (high - low) / 255


def _layer(
    conv: nn.Conv2d, scale: int, activation: str, exact: Tensor, drawn: Tensor, step: float, zero: int
) -> tuple[IntegerLayer, Tensor, float, int]:
    """The layer in integers, its output in floats, and step and zero of its output's bytes.

    `exact`: the layer's input in floats; `drawn`: in bytes, as the layers before give it.
    """
    weight = conv.weight.float()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.float()

    def convolved(x: Tensor, k: Tensor) -> Tensor:
        return F.conv2d(x.contiguous(memory_format=torch.channels_last), k, bias, padding=conv.padding)

    z = convolved(exact, weight)
    low, span = _index_range(z, activation)
    # A filter without weights still needs a unit in which its bias is a number of moderate size.
    unit = torch.maximum(weight.abs().amax((1, 2, 3)) / 127, (bias.abs() + abs(low) + 1e-6) / (step * _LARGEST))
    integers = (weight / unit.view(-1, 1, 1, 1)).round().clamp(-127, 127)
    seen = (drawn.permute(0, 3, 1, 2).float() - zero) * step
    error = (z - convolved(seen, integers * unit.view(-1, 1, 1, 1))).mean((0, 2, 3), dtype=torch.float64)
    unit = unit.double() * step  # of a sum
    offset = ((bias + error - low) / unit).round()
    integers = integers.to(torch.int8).permute(0, 2, 3, 1).contiguous()
    table, step, behind = _table(activation, low, span)
    layer = IntegerLayer(
        integers, folded_bias(offset.long(), integers, zero), *fixed_point(unit / span), table,
        zero_point=zero, scale=scale,
    )  # fmt: skip
    return layer, F.pixel_shuffle(_function(activation)(z), scale), step, behind


def _function(activation: str) -> Callable[[Tensor], Tensor]:
    return _ACTIVATIONS.get(activation) or _PICTURES[activation]


def _table(activation: str, low: float, span: float) -> tuple[Tensor, float, int]:
    """(bytes, step, zero) of an activation's values at the indices."""
    values = _function(activation)(low + span * torch.arange(256, dtype=torch.float64))
    step, zero = (1 / 255, 0) if activation in _PICTURES else _byte_range(values)
    return (values / step + zero).round().clamp(0, 255).to(torch.uint8), step, zero
