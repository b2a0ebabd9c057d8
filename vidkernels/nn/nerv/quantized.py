"""Parameters that are trained for the bytes they will take in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vidkernels import _check
from vidkernels.functional.nerv.rate import fake_quantize_rate

__all__ = [
    "IntegerValues",
    "QuantizedParameter",
    "fit_spreads",
    "integer_values",
    "quantize_parameter",
    "quantize_weights",
    "quantized_parameters",
    "rate_bits",
    "set_quantization",
]

_MODES = ("float", "noise", "round")
_LEAST = 1e-12  # a step of a parameter that is all zeros
_NARROWEST = 0.05  # spread to begin with, in steps: narrower ones have almost no gradient


class IntegerValues(NamedTuple):
    """A parameter as a file holds it: integers, and what they are multiplied by.

    Args:
        values: the parameter's shape, int32.
        step: float, a number of float32.
        spread: [C] float32, mean magnitude of a channel's integers as it was learned.
        axis: the axis of the channels.
    Returns: a tuple of the four.
    Example:
        >>> IntegerValues(torch.tensor([[2, -1]], dtype=torch.int32), 0.5, torch.ones(1), 0).dequantized()
        tensor([[ 1.0000, -0.5000]])
    """

    values: Tensor
    step: float
    spread: Tensor
    axis: int

    def dequantized(self) -> Tensor:
        """The parameter, to the bit what the mode "round" computes with, in float32."""
        return self.values.float() * self.step

    def contexts(self) -> Tensor:
        """[number of values] uint8 for `codec.entropy.encode_symbols`: channels of like spread share a table.

        A class is half an octave of spreads, numbered from 0 without gaps; it follows from `spread` alone.
        """
        halves = (2 * self.spread.log2()).round().int()
        classes = torch.unique(halves, return_inverse=True)[1].to(torch.uint8)
        shape = [-1 if axis == self.axis else 1 for axis in range(self.values.dim())]
        return classes.view(shape).expand(self.values.shape).reshape(-1)


class QuantizedParameter(nn.Module):
    """A parametrisation (torch.nn.utils.parametrize) that puts a parameter on a learned grid and counts its bits.

    "float" leaves the parameter as it is, "noise" adds uniform noise of one step, "round" rounds it to the grid and
    passes gradients through; see `functional.fake_quantize_rate`. The step, one for the parameter, and the spread of
    each channel are learned as logarithms (`log_step` [], `log_spread` [C]), by the same optimiser as the rest.
    Convention: axis `axis` of the parameter has the C channels.

    Args:     value: the parameter, to choose step and spreads by.
              initial_bits: 2^initial_bits steps cover the range -max|value| to max|value| at the start.
              axis: the channels; 0 for weights of Conv2d and Linear, 1 for latents [T, C, H, W].
              mode: "float", "noise" or "round"; the attribute `mode` may be changed at any time.
              generator: draws the noise.
    Raises:   ValueError: another mode, or a parameter without axes.
    Source:   see `functional.fake_quantize_rate`.
    Example:
        >>> conv = torch.nn.Conv2d(3, 8, 3)
        >>> quantizer = vk.nn.quantize_parameter(conv, "weight", mode="round")
        >>> out = conv(torch.zeros(1, 3, 8, 8))
        >>> bool(quantizer.bits() > 0)
        True
    """

    def __init__(
        self,
        value: Tensor,
        *,
        initial_bits: float = 6.0,
        axis: int = 0,
        mode: str = "float",
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if value.dim() == 0 or not -value.dim() <= axis < value.dim():
            _check.fail("QuantizedParameter", "expected a parameter that has the axis `axis`.", value=value, axis=axis)
        self.axis = axis % value.dim()
        self.mode = mode
        self.generator = generator
        with torch.no_grad():
            rows = value.detach().float().movedim(self.axis, 0).flatten(1)
            step = 2 * rows.abs().max().clamp(min=_LEAST) / 2.0**initial_bits if rows.numel() else torch.ones(())
            spread = (rows.abs().mean(1) / step).nan_to_num().clamp(min=_NARROWEST)
        self.log_step = nn.Parameter(step.log())
        self.log_spread = nn.Parameter(spread.log())
        self._bits: Tensor | None = None

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        if mode not in _MODES:
            _check.fail("QuantizedParameter", f"expected `mode` to be one of {', '.join(_MODES)}.", mode=mode)
        self._mode = mode
        self._bits = None

    def forward(self, value: Tensor) -> Tensor:
        if self._mode == "float":
            return value
        rows = value.movedim(self.axis, 0)
        quantized, bits = fake_quantize_rate(
            rows, self.log_step.exp(), self.log_spread.exp(), mode=self._mode, generator=self.generator
        )
        self._bits = bits.sum()
        return quantized.movedim(0, self.axis)

    def right_inverse(self, value: Tensor) -> Tensor:
        """What is assigned becomes the parameter behind the grid."""
        return value

    def bits(self) -> Tensor:
        """Bits of the parameter as it was last computed (a scalar with a gradient); 0 in the mode "float"."""
        return self.log_step.new_zeros(()) if self._bits is None else self._bits

    @torch.no_grad()
    def integer_values(self, value: Tensor) -> IntegerValues:
        """The integers that stand for a parameter in a file, whatever the mode is.

        Args:     value: the parameter behind the grid: `module.parametrizations.<name>.original`.
        Raises:   ValueError: NaN, or numbers beyond 2^31 steps.
        """
        step = self.log_step.exp()
        scaled = (value.float() / step).round()
        if not bool((scaled.abs() < 2.0**31).all()):
            _check.fail("QuantizedParameter", "the parameter has NaN, or values beyond 2^31 steps.", value=value)
        return IntegerValues(scaled.to(torch.int32), step.item(), self.log_spread.exp(), self.axis)

    @torch.no_grad()
    def fit_spread(self, value: Tensor) -> None:
        """Set each channel's spread to the one that costs least for the integers as they are.

        With n integers of a channel, n0 of them 0, and S the sum of their magnitudes, the likelihood is greatest where
        t = e^(-1 / (2 spread)) solves (n + 2 S) t^2 + n0 t - (2 S - n + n0) = 0.

        Args:     value: the parameter behind the grid.
        """
        rows = self.integer_values(value).values.movedim(self.axis, 0).flatten(1).double().abs()
        if rows.shape[1] == 0:
            return
        n, zeros, total = rows.shape[1], (rows == 0).sum(1).double(), rows.sum(1)
        a, c = n + 2 * total, 2 * total - n + zeros
        t = (torch.sqrt(zeros.square() + 4 * a * c) - zeros) / (2 * a)
        spread = -0.5 / t.log()
        self.log_spread.copy_(spread.clamp(min=_NARROWEST).log())

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_bits": None}  # it holds a graph, which cannot be copied

    def extra_repr(self) -> str:
        return f"mode={self._mode}, axis={self.axis}"


def quantize_parameter(module: nn.Module, name: str = "weight", **options) -> QuantizedParameter:
    """Put one parameter of a module on a learned grid.

    Args:     module: has the parameter; afterwards `module.<name>` computes the quantised one at every access (within
                  `torch.nn.utils.parametrize.cached()` once), and `module.parametrizations.<name>` has its parts.
              name: of the parameter.
              options: of `QuantizedParameter`.
    Returns:  its QuantizedParameter.
    Raises:   ValueError: it is quantised already.
    Backends: torch; a forward pass then runs `functional.fake_quantize_rate`. Deterministic: yes.
    Source:   see `functional.fake_quantize_rate`.
    Example:
        >>> linear = torch.nn.Linear(4, 2)
        >>> vk.nn.quantize_parameter(linear, mode="round").mode
        'round'
        >>> sorted(n for n, _ in linear.named_parameters())[-1]
        'parametrizations.weight.original'
    """
    if parametrize.is_parametrized(module, name) and any(
        isinstance(p, QuantizedParameter) for p in module.parametrizations[name]
    ):
        _check.fail("quantize_parameter", "the parameter is quantised already.", module=type(module), name=name)
    quantizer = QuantizedParameter(getattr(module, name), **options)
    quantizer.to(getattr(module, name).device)
    parametrize.register_parametrization(module, name, quantizer)
    return quantizer


def quantize_weights(
    module: nn.Module, *, select: Callable[[str, nn.Module], bool] | None = None, **options
) -> dict[str, QuantizedParameter]:
    """Put the weights of all convolutions and linear layers on learned grids.

    Args:     module: of any depth; changed in place.
              select: select(name, layer) -> whether it is quantised; None: every Conv1d, Conv2d, Conv3d and Linear.
              options: of `QuantizedParameter`.
    Returns:  the QuantizedParameter of each weight by the name that the weight had.
    Raises:   ValueError: a weight is quantised already.
    Backends: torch; a forward pass then runs `functional.fake_quantize_rate`. Deterministic: yes.
    Source:   see `functional.fake_quantize_rate`.
    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.GELU(), torch.nn.Conv2d(4, 3, 3))
        >>> list(vk.nn.quantize_weights(model))
        ['0.weight', '2.weight']
    """
    layers = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) and (select is None or select(name, layer))
    ]
    return {_joined(name, "weight"): quantize_parameter(layer, "weight", **options) for name, layer in layers}


def quantized_parameters(module: nn.Module) -> Iterator[tuple[str, QuantizedParameter, nn.Parameter]]:
    """All parameters in a module that are quantised.

    Args:     module: of any depth.
    Returns:  an iterator over (name, QuantizedParameter, parameter behind the grid).
    Raises:   nothing; without quantised parameters there is nothing to iterate over.
    Backends: torch. Deterministic: yes.
    Source:   see `functional.fake_quantize_rate`.
    Example:
        >>> layer = torch.nn.Linear(4, 2)
        >>> _ = vk.nn.quantize_weights(layer)
        >>> [(name, behind.shape) for name, _, behind in vk.nn.quantized_parameters(layer)]
        [('weight', torch.Size([2, 4]))]
    """
    for name, layer in module.named_modules():
        if parametrize.is_parametrized(layer):
            for key, chain in layer.parametrizations.items():
                for part in chain:
                    if isinstance(part, QuantizedParameter):
                        yield _joined(name, key), part, chain.original


def set_quantization(module: nn.Module, mode: str) -> None:
    """Set the mode of all quantised parameters: "float" at first, then "noise", at last "round".

    Args:     module: of any depth; changed in place.
              mode: "float", "noise" or "round".
    Raises:   ValueError: another mode.
    Backends: torch. Deterministic: yes.
    Source:   see `functional.fake_quantize_rate`.
    Example:
        >>> layer = torch.nn.Linear(4, 2)
        >>> quantizers = vk.nn.quantize_weights(layer)
        >>> vk.nn.set_quantization(layer, "noise")
        >>> quantizers["weight"].mode
        'noise'
    """
    for _, quantizer, _ in quantized_parameters(module):
        quantizer.mode = mode


def fit_spreads(module: nn.Module) -> None:
    """Set all spreads to those that cost least for the integers as they are.

    Spreads that follow by gradient lag behind weights that the rate makes narrower. Where the rate should be what an
    entropy coder will need, call this when the mode changes and at the end.

    Args:     module: of any depth; changed in place.
    Raises:   ValueError: a parameter has NaN.
    Backends: torch. Deterministic: yes.
    Source:   the maximum of the likelihood, see `QuantizedParameter.fit_spread`.
    Example:
        >>> layer = torch.nn.Linear(64, 8)
        >>> _ = vk.nn.quantize_weights(layer, mode="round")
        >>> before = (layer(torch.ones(1, 64)), vk.nn.rate_bits(layer))[1].item()
        >>> vk.nn.fit_spreads(layer)
        >>> (layer(torch.ones(1, 64)), vk.nn.rate_bits(layer))[1].item() <= before
        True
    """
    for _, quantizer, value in quantized_parameters(module):
        quantizer.fit_spread(value)


def rate_bits(module: nn.Module) -> Tensor:
    """Bits of all quantised parameters as the last forward pass computed them: the rate of a rate-distortion loss.

    Args:     module: of any depth.
    Returns:  a scalar with a gradient; 0 where the mode is "float".
    Raises:   ValueError: nothing is quantised.
    Backends: torch. Deterministic: yes.
    Source:   see `functional.fake_quantize_rate`.
    Example:
        >>> model = torch.nn.Linear(8, 4)
        >>> quantizers = vk.nn.quantize_weights(model, mode="noise", generator=torch.Generator().manual_seed(0))
        >>> loss = model(torch.ones(1, 8)).square().sum() + 1e-3 * vk.nn.rate_bits(model)
        >>> loss.backward()
        >>> bool(quantizers["weight"].log_step.grad < 0)  # a wider step costs less
        True
    """
    bits = [quantizer.bits() for _, quantizer, _ in quantized_parameters(module)]
    if not bits:
        _check.fail("rate_bits", "nothing in the module is quantised.", "quantize_weights(module)", module=type(module))
    return torch.stack(bits).sum()


def integer_values(module: nn.Module) -> dict[str, IntegerValues]:
    """The integers of all quantised parameters, for an entropy coder.

    Args:     module: of any depth.
    Returns:  name of the parameter -> IntegerValues. A model in the mode "round" computes with exactly these.
    Raises:   ValueError: a parameter has NaN.
    Backends: torch. Deterministic: yes.
    Source:   see `functional.fake_quantize_rate`.
    Example:
        >>> model = torch.nn.Linear(8, 4)
        >>> _ = vk.nn.quantize_weights(model, mode="round")
        >>> torch.equal(vk.nn.integer_values(model)["weight"].dequantized(), model.weight)
        True
    """
    return {name: quantizer.integer_values(value) for name, quantizer, value in quantized_parameters(module)}


def _joined(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name
