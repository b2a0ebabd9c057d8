"""Fitting a network and its latents to a clip, for the fewest bytes.

Four stages: `float`, nothing is quantised; `noise`, numbers get uniform noise of one step, and their bits enter the
loss; `round`, they are rounded and the gradient passes as if they were not; `polish`, the weights are what the file
will hold, and only the latents still move. Steps are learned. A step's random numbers depend on its number alone, so a
fit that was interrupted goes on to the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .._half import multiplies
from ..functional import frame_loss
from ..functional.nerv.rate import fake_quantize_rate
from ..nn.nerv.optim import MultiTensorAdam
from .clip import decibels
from .nerv_bits import PARTS, Quantised, encode_latents, latent_code
from .nerv_integer import MOST, Ranges, integers, ranges, simulated
from .nerv_model import Network, Numbers
from .pictures import spread

STAGES = ("float", "noise", "round", "polish")
_RATES = {"weights": 1.0, "encoder": 1.0, "latents": 3.0, "steps": 2.0}  # times the plan's rate
_BETAS = (0.9, 0.99)
_WARM, _FLOOR = 0.05, 0.02  # of the steps before the rate is full; of the rate, at the end
_POLISH = 0.05  # of the rate; with 0.2 the last stage lost 0.06 dB where this one gains
_FIRST_BITS = 6  # of the largest weight when the steps begin to be learned
_LIMIT = 127  # of weights, in steps: what eight bits hold
_NARROWEST = 0.05  # spread of integers that are all 0, for a gradient
_COARSE = 3  # every so many steps one draws by a coarse plane, which without that would show nothing
_SEEN = 12  # frames whose activations decide about ranges
_PRICES = (1e-4, 10.0)


@dataclass(frozen=True)
class Plan:
    """How much work a fit does; decided once, so that an interrupted one goes on in the same way.

    config: of the network. steps: of each stage. batch: frames of a step. rate: of learning. price: squared error
    (mean over the clip, pixels in [0, 1]) that a bit for each of its pixels is worth. gop: frames of a group.
    check: steps between two looks at bytes and PSNR. bytes, psnr: what the price is steered to; None: it stays.
    planes: in how many the weights are coded. timed: whether the steps come from a time that more would break.
    """

    config: dict
    steps: tuple[int, int, int, int]
    gop: int
    exact: bool = True
    batch: int = 2
    rate: float = 4e-3
    price: float = 0.02
    check: int = 200
    bytes: int | None = None
    psnr: float | None = None
    planes: int = 1
    timed: bool = False

    def steered(self, size: int, psnr: float) -> Plan:
        """The plan after a look at what would be written now."""
        if self.bytes is not None:
            off = 1.5 * (size / max(1, self.bytes) - 0.97)
        elif self.psnr is not None:
            off = 0.4 * (psnr - self.psnr - 0.05)
        else:
            return self
        return self.dearer(math.exp(max(-0.5, min(0.5, off))))

    def dearer(self, factor: float) -> Plan:
        return replace(self, price=min(_PRICES[1], max(_PRICES[0], self.price * factor)))


@dataclass(frozen=True)
class Written:
    """What a file will hold: chunks for all frames, and a layer for each group of pictures."""

    numbers: Numbers
    latents: np.ndarray  # [T, C, h, w] int32
    chunks: list[bytes]
    layers: list[bytes]


class Trainer:
    """The numbers of a fit in progress: parameters, steps, latents and the optimiser's memory.

    Args:     network: what draws. frames: [T, H, W, 3] uint8. counted: [T or 1, H, W] bool, the pixels that matter, or
              None. plan: of the fit; may be replaced from step to step. base: weights that stay; what is learned, and
              paid for, is the difference to them, in their steps.
    """

    def __init__(
        self,
        network: Network,
        frames: Tensor,
        counted: Tensor | None,
        plan: Plan,
        seed: int = 0,
        base: dict[str, Quantised] | None = None,
    ):
        self.network, self.frames, self.counted, self.plan, self.seed = network, frames, counted, plan, seed
        count, channels = len(frames), network.latent_shape[0]
        generator = torch.Generator().manual_seed(seed)
        names, first = list(network.shapes), dict(network.module.named_parameters())
        # What encodes is not in the file: appended frames have latents of their own from the start.
        encoding = [name for name in first if name not in network.shapes] if base is None else []
        self.groups = {
            "weights": {n: first[n].detach().clone() for n in names},
            "encoder": {n: first[n].detach().clone() for n in encoding},
            "latents": {"latents": 0.1 * torch.randn(count, *network.latent_shape, generator=generator)},
            "steps": {
                **{f"{n}.step": torch.zeros(()) for n in names},
                "latents.step": torch.zeros(()), "latents.spread": torch.zeros(channels),
                "latents.follow": torch.full((channels,), 0.9),
            },
        }  # fmt: skip
        self.tensors = {name: t for group in self.groups.values() for name, t in group.items()}
        for tensor in self.tensors.values():
            tensor.requires_grad_(not encoding or tensor is not self.tensors["latents"])
        groups = [{"params": list(group.values()), "name": name} for name, group in self.groups.items() if group]
        self._optimizer = MultiTensorAdam(groups, lr=plan.rate, betas=_BETAS)
        self.at = 0  # steps done
        self.stage, self.into = 0, 0  # the stage in work, and steps done in it
        self.square = math.nan  # of the last step
        self._base = base
        self._start: dict[str, Tensor] = {}
        for name, weight in (base or {}).items():
            self._start[name] = torch.from_numpy(weight.floats())
            self.tensors[name].data.zero_()
            self.tensors[f"{name}.step"].data.fill_(math.log(weight.step))
            self.tensors[f"{name}.step"].requires_grad_(False)
        self.frozen: dict[str, Quantised] | None = None
        self._last: dict[str, Tensor] = {}  # the frozen weights as floats
        self.ranges: Ranges | None = None  # of the exact profile's bytes

    # ---- one step

    @property
    def mode(self) -> str:
        return STAGES[self.stage]

    def step(self) -> None:
        """One step of the stage in work. Raises FloatingPointError where the loss is no number, and changes nothing."""
        if self.into == 0 and self.mode == "noise":
            self._begin_steps()
        generator = torch.Generator().manual_seed((self.seed << 32) + self.at)
        index = self._batch()
        weights, latents, bits = self._numbers(index, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies(torch.bfloat16)):  # costs nothing measurable
            if self.ranges is None:
                pictures = self.network.pictures(weights, latents, index)
            else:
                pictures = self.network.cut(simulated(self.network.layers, weights, latents, self.ranges))
        weight = None if self.counted is None else self.counted[index % len(self.counted)].float()
        square = frame_loss(pictures.float().permute(0, 2, 3, 1), self.frames[index], weight, l1=0.0, l2=1.0, ssim=0.0)
        loss = square + self.plan.price * self._ramp() * bits / math.prod(self.frames.shape[:3])
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss of step {self.at} is {loss.item()}")
        loss.backward()
        self.square = square.item()
        self.advance()

    def advance(self) -> None:
        """Follow the gradients that a step has found."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.plan.rate * _RATES[group["name"]] * self._pace()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.at, self.into = self.at + 1, self.into + 1

    def _batch(self) -> Tensor:
        """Frames of this step: every frame once before any comes again."""
        count, size = len(self.frames), min(self.plan.batch, len(self.frames))
        each = count // size
        order = torch.randperm(count, generator=torch.Generator().manual_seed((self.seed << 32) + self.at // each))
        k = self.at % each * size
        return order[k : k + size]

    def _numbers(self, index: Tensor, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """(weights by name, latents of the frames, bits of the whole clip as far as they can still change)."""
        weights, bits = self.groups["weights"], torch.zeros(())
        if self.mode == "float":
            return self._added(weights), self._latents(index), bits
        mode = "noise" if self.mode == "noise" else "round"
        if self.mode == "polish":
            weights = self._last
        else:
            drawn = {}
            for name, weight in weights.items():
                rows = weight.flatten(1) if weight.dim() > 1 else weight[None]
                size = rows.abs()
                step = torch.maximum(self.tensors[f"{name}.step"].exp(), size.detach().max() / _LIMIT)
                spread = (size.mean(1) / step).clamp(min=_NARROWEST)
                value, cost = fake_quantize_rate(rows, step, spread, mode=mode, generator=generator)
                bits = bits + cost.sum()
                if self.plan.planes > 1 and weight.dim() > 1 and self.at % _COARSE == 0:
                    third = step * 3 ** (1 + self.at // _COARSE % (self.plan.planes - 1))
                    value = value + ((value / third).round() * third - value).detach()
                drawn[name] = value.view_as(weight)
            weights = self._added(drawn)
        if not self.network.latent_shape[0]:
            return weights, self._latents(index), bits
        latents, cost = self._coded_latents(index, mode, generator)
        return weights, latents, bits + cost * (len(self.frames) / len(index))

    def _coded_latents(self, index: Tensor, mode: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents of the frames as a reader will have them, and their bits."""
        step, spread = (self.tensors[f"latents.{name}"].exp() for name in ("step", "spread"))
        most = (MOST if self.ranges is None else self.ranges.most) * step
        now = self._latents(index)
        if self._encoding:  # what the frame before was when it was last seen will do
            self.tensors["latents"][index] = now.detach()
        rows, before = (
            y.maximum(-most).minimum(most).transpose(0, 1)  # channels are rows
            for y in (now, self.tensors["latents"][(index - 1).clamp(min=0)])
        )
        before = fake_quantize_rate(before, step, spread, mode="round").value
        follow = self.tensors["latents.follow"] * (index % self.plan.gop != 0).view(-1, 1)
        known = follow.t()[:, :, None, None] * before
        value, cost = fake_quantize_rate(rows, step, spread, mode=mode, prediction=known, generator=generator)
        return value.transpose(0, 1), cost.sum()

    @property
    def _encoding(self) -> bool:
        """Whether an encoder makes the latents; in the last stage they are numbers of their own."""
        return bool(self.groups["encoder"]) and self.frozen is None

    def _latents(self, index: Tensor) -> Tensor:
        """Latents [B, C, h, w] of frames before their rounding, from where they come at this stage."""
        if not self._encoding:
            return self.tensors["latents"][index]
        seen = self.frames[index]
        if self.counted is not None:
            seen = seen * self.counted[index % len(self.counted)].unsqueeze(-1)
        return self.network.encoded(self.groups["encoder"], seen)

    @torch.no_grad()
    def _encode(self) -> None:
        """Bring all latents up to date, where an encoder makes them."""
        if self._encoding:
            for k in range(len(self.frames)):
                self.tensors["latents"][k] = self._latents(torch.tensor([k]))[0]

    def _added(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: w + self._start[name] for name, w in weights.items()} if self._start else weights

    @torch.no_grad()
    def _begin_steps(self) -> None:
        """First steps and spreads, from the numbers that the stage without steps has found."""
        for name, weight in self.groups["weights"].items() if self._base is None else ():
            self.tensors[f"{name}.step"].fill_(math.log(float(weight.abs().max()) * 2 / 2**_FIRST_BITS + 1e-8))
        if not self.network.latent_shape[0]:
            return
        self._encode()
        y = self.tensors["latents"]
        change = y[1:] - 0.9 * y[:-1] if len(y) > 1 else y
        step = 0.6 * float(change.square().mean().sqrt()) + 1e-6
        self.tensors["latents.step"].fill_(math.log(step))
        self.tensors["latents.spread"].copy_((change.abs().mean((0, 2, 3)) / step + 1e-3).log())

    def _ramp(self) -> float:
        """The price comes in slowly."""
        if self.mode != "noise":
            return 1.0
        return min(1.0, self.into / max(1, 0.2 * self.plan.steps[1]))

    def _pace(self) -> float:
        """Share of the learning rate: up, then down along a cosine over the first three stages; small ones after."""
        main = sum(self.plan.steps[:3])
        if self.mode == "polish":
            return _cosine(_POLISH, self.into / max(1, self.plan.steps[3]))
        if self.at >= main:  # a round more, for the goal
            return _cosine(0.15, self.into / max(1, self.plan.steps[2]))
        done = self.at / main
        return max(_FLOOR, 0.1 + 0.9 * done / _WARM) if done < _WARM else _cosine(1.0, (done - _WARM) / (1 - _WARM))

    # ---- from stage to stage

    def enter(self, stage: int) -> None:
        """Begin a stage, or a round more of one."""
        if STAGES[stage] == "round" and self.plan.exact and self.ranges is None:
            self.ranges = self._ranges()
        if STAGES[stage] == "polish" and self.frozen is None:
            self._encode()
            self.freeze()
        self.stage, self.into = stage, 0

    @torch.no_grad()
    def coarsen(self, factor: float) -> None:
        """Make all steps larger, where a dearer price alone would not bring the bytes down."""
        for name, tensor in self.tensors.items():
            if name.endswith(".step"):
                tensor += math.log(factor)

    def freeze(self) -> None:
        """From now on the weights are what the file will hold."""
        self.frozen = self.frozen or self._weights()
        self._last = {name: torch.from_numpy(weight.floats()) for name, weight in self.frozen.items()}
        for name, tensor in self.tensors.items():
            tensor.requires_grad_(name.startswith("latents") and name != "latents.step")

    def _weights(self) -> dict[str, Quantised]:
        out = {}
        for name, weight in self.groups["weights"].items():
            step = self.tensors[f"{name}.step"]
            if self._base is None:
                out[name] = _rounded(weight, step.maximum((weight.detach().abs().max() / _LIMIT).log()), _LIMIT)
            else:
                base, change = self._base[name], _rounded(weight, step, 2 * _LIMIT).values
                out[name] = Quantised((base.values + change).clip(-_LIMIT, _LIMIT), base.step)
        return out

    def written(self) -> Written:
        """What the file would hold if the fit ended now; in the first stage, with steps as they will begin."""
        if self.mode == "float" or (self.mode == "noise" and self.into == 0):
            self._begin_steps()
        self._encode()
        weights = self.frozen or self._weights()
        r = self.ranges  # before the third stage there are none, and a look shows floats
        most = MOST if r is None else r.most
        latents = _rounded(self.tensors["latents"], self.tensors["latents.step"], most)
        follow = (self.tensors["latents.follow"].detach() * PARTS).round().clamp(0, PARTS).to(torch.int32).numpy()
        code = latent_code(latents.values, latents.step, follow, self.plan.gop)
        groups = range(0, len(self.frames), self.plan.gop)
        layers = [encode_latents(latents.values[k : k + self.plan.gop], code) for k in groups]
        exact = () if r is None else (integers(self.network.layers, weights, latents.step, r), r.stretch)
        numbers = Numbers(weights, code, *exact)
        return Written(numbers, latents.values, numbers.chunks(self.plan.planes, self._base), layers)

    @torch.no_grad()
    def _ranges(self) -> Ranges:
        """Of the bytes between the layers, from what the clip's frames give now."""
        weights = {name: torch.from_numpy(q.floats()) for name, q in self._weights().items()}
        latents = _rounded(self.tensors["latents"], self.tensors["latents.step"], MOST)
        seen = torch.from_numpy(latents.floats())[:: -(-len(self.frames) // _SEEN)]
        return ranges(self.network.layers, weights, seen, int(np.abs(latents.values).max()))

    def psnr(self, written: Written, most: int | None = None) -> list[float]:
        """Of each frame as it will be drawn, over the pixels that count; of `most` frames, evenly spread, if given."""
        drawer, found = written.numbers.drawer(self.network), []
        count = len(self.frames)
        for t in range(count) if most is None else spread(most, count):
            drawn = drawer.draw(torch.from_numpy(written.latents[t]), t)
            off = (drawn.float() - self.frames[t].float()).square().mean(-1) / 255**2
            if self.counted is None:
                found.append(decibels(float(off.mean(dtype=torch.float64))))
                continue
            seen = self.counted[t % len(self.counted)]
            found.append(decibels(float(off[seen].mean(dtype=torch.float64))) if seen.any() else decibels(0.0))
        return found

    # ---- what a state file keeps

    def arrays(self) -> dict[str, np.ndarray]:
        """Every number that the next step depends on. Raises FloatingPointError if one is none."""
        out = {}
        for name, tensor in self.tensors.items():
            memory = self._optimizer.state.get(tensor, {})
            for kind, value in (("value", tensor.detach()), *memory.items()):
                array = torch.as_tensor(value).numpy().copy()
                if not np.isfinite(array).all():
                    raise FloatingPointError(f"{kind} of {name} is not finite after step {self.at}")
                out[f"{kind}/{name}"] = array
        if self.frozen is not None:
            for name, weight in self.frozen.items():
                out[f"frozen/{name}"] = weight.values
                out[f"frozen step/{name}"] = np.array(weight.step)
        return out

    def restore(self, arrays: dict[str, np.ndarray], at: int, stage: int, into: int, bounds: Ranges | None) -> None:
        """Go on from `arrays()`. Raises KeyError or ValueError if they are not this fit's."""
        for name, tensor in self.tensors.items():
            if arrays[f"value/{name}"].shape != tuple(tensor.shape):
                raise ValueError(f"{name} has another shape")
            tensor.data.copy_(torch.from_numpy(arrays[f"value/{name}"]))
            if f"exp_avg/{name}" in arrays:
                moments = {k: torch.from_numpy(arrays[f"{k}/{name}"].copy()) for k in ("exp_avg", "exp_avg_sq")}
                self._optimizer.state[tensor] = {"step": int(arrays[f"step/{name}"]), **moments}
        self.ranges = bounds
        if STAGES[stage] == "polish":
            self.frozen = {
                name: Quantised(arrays[f"frozen/{name}"], float(arrays[f"frozen step/{name}"]))
                for name in self.network.shapes
            }
            self.freeze()
        self.at, self.stage, self.into = at, stage, into


def _rounded(x: Tensor, log_step: Tensor, limit: int) -> Quantised:
    step = float(np.float32(log_step.detach().exp()))
    return Quantised((x.detach() / step).round().clamp(-limit, limit).to(torch.int32).numpy(), step)


def _cosine(top: float, done: float) -> float:
    return max(_FLOOR, 0.5 * top * (1 + math.cos(math.pi * min(1.0, done))))
