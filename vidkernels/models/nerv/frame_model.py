"""What networks that hold one video have in common: frames in, embeddings between, pictures out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidkernels import _check

__all__ = ["Embedding", "FrameModel", "TimeEncoding", "default_strides", "initialise", "mlp", "to_picture"]

Embedding = Tensor | tuple[Tensor, ...]


def default_strides(size: tuple[int, int]) -> tuple[int, ...]:
    """Strides of the published decoders, fewer for small pictures: their first grid is at least two cells high."""
    side = min(size)
    for least, strides in ((480, (5, 4, 4, 2, 2)), (120, (5, 4, 2, 2)), (30, (5, 2, 2))):
        if side >= least:
            return strides
    return (4, 2) if side >= 12 else (2,)


def to_picture(x: Tensor) -> Tensor:
    """The head's output as a picture in 0..1, in float32 also under autocast."""
    return torch.tanh(x.float()) * 0.5 + 0.5


def initialise(module: nn.Module, generator: torch.Generator | None) -> None:
    """Draw the first weights of all convolutions and linear layers, as torch does, from `generator`."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            reach = 1 / math.sqrt(layer.weight[0].numel())
            for value in (layer.weight, layer.bias):
                if value is not None:
                    nn.init.uniform_(value, -reach, reach, generator=generator)


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers, each with GELU, the last one too."""
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.GELU())]
    return nn.Sequential(*layers)


class TimeEncoding(nn.Module):
    """Sines and cosines of times: sin(base^i pi t), then cos(base^i pi t), i = 0 .. levels - 1.

    The highest frequencies turn many million times over a video, so phases are computed in float64.
    Args:
        base, levels: 1.25 and 40 to 80 in the published networks.
    Shape:
        t [...] -> [..., 2 * levels], float32.
    Source: Chen et al. 2021, arXiv 2110.13903, equation 1.
    Example:
        >>> TimeEncoding(2.0, 2)(torch.tensor([0.5])).round(decimals=3)
        tensor([[ 1.,  0.,  0., -1.]])
    """

    def __init__(self, base: float = 1.25, levels: int = 80):
        super().__init__()
        self.base, self.levels = base, levels

    @property
    def width(self) -> int:
        return 2 * self.levels

    def forward(self, t: Tensor) -> Tensor:
        powers = self.base ** torch.arange(self.levels, dtype=torch.float64, device=t.device)
        phase = t.double().unsqueeze(-1) * powers * math.pi
        return torch.cat([phase.sin(), phase.cos()], -1).float()


class FrameModel(nn.Module):
    """One video as a network. Subclasses define `encode`, and `features` with a convolution `head` or else `decode`.

    Convention: times are frame numbers where they are integers, and number / frames where they are floating. Pictures
        whose size the strides do not divide are the top left of a larger one: what hangs over the right and lower edge
        is cut off. Pictures are [B, 3, H, W] in 0..1.
    Args:
        frames: how many the video has.
        size: (H, W) of a picture.
        strides: enlargement of each stage; None: `default_strides(size)`.
    Raises:
        ValueError: no frame, an empty picture, or a stride below 1.
    """

    def __init__(self, frames: int, size: tuple[int, int], strides: Sequence[int] | None):
        super().__init__()
        name = type(self).__name__
        if frames < 1 or len(size) != 2 or min(size) < 1:
            _check.fail(name, "expected at least one frame with pixels.", frames=frames, size=size)
        self.strides = default_strides(size) if strides is None else tuple(strides)
        if not self.strides or min(self.strides) < 1:
            _check.fail(name, "expected strides of at least 1.", strides=strides)
        self.frames, self.size = frames, tuple(size)
        self.scale = math.prod(self.strides)
        self.grid = (-(-size[0] // self.scale), -(-size[1] // self.scale))

    def inputs(self, video: Tensor, numbers: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """What `forward` takes for frames `numbers` [B] of `video` [T, H, W, 3] uint8 (`mask` [T, H, W] is missing)."""
        return (numbers,)

    def encode(self, *inputs: Tensor) -> Embedding:
        """The embeddings of frames: of what is in them, or only of their times."""
        raise NotImplementedError

    def features(self, embedding: Embedding) -> Tensor:
        """What the last layer, the convolution `head`, makes a picture of by `to_picture`; models that end in another
        way have none."""
        raise NotImplementedError

    @property
    def ends_in_head(self) -> bool:
        """Whether `features` and `head` are all there is to `decode`."""
        kind = type(self)
        return kind.decode is FrameModel.decode and kind.outputs is FrameModel.outputs

    def decode(self, embedding: Embedding) -> Tensor:
        """Pictures [B, 3, H, W] of embeddings."""
        return self.crop(to_picture(self.head(self.features(embedding))))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.decode(self.encode(*inputs))

    def outputs(self, *inputs: Tensor) -> list[tuple[float, Tensor]]:
        """What a fit compares with the frames, each with its weight in the loss."""
        return [(1.0, self(*inputs))]

    def interpolate(self, embeddings: Embedding, t: Tensor) -> Tensor:
        """Pictures between frames: `t` [B] counts in the `embeddings` [K, ...] given, 0.5 is between the first two."""
        if isinstance(embeddings, tuple):
            return self.decode(tuple(_between(part, t) for part in embeddings))
        return self.decode(_between(embeddings, t))

    def stored_parameters(self) -> int:
        """How many numbers a file of this video must hold."""
        return sum(value.numel() for value in self.parameters())

    def times(self, t: Tensor) -> Tensor:
        """Frame numbers or times [B] as times, float64."""
        _check.is_tensor(type(self).__name__, "t", t, "[B]")
        return t if t.dtype is torch.float64 else t.double() if t.is_floating_point() else t.double() / self.frames

    def crop(self, picture: Tensor) -> Tensor:
        return picture[:, :, : self.size[0], : self.size[1]]

    @classmethod
    def from_size(cls, parameters: int, height: int, width: int, frames: int, **options):
        """The widest network of this kind that stores at most so many parameters (`stored_parameters`).

        Args:
            parameters: the budget.
            height, width: of a picture.
            frames: how many.
            options: other arguments of the class; `width` is what is searched.
        Raises:
            ValueError: the narrowest network is already larger.
        """
        return cls._widest(parameters, height, width, frames, **options)

    @classmethod
    def _widest(cls, parameters: int, height: int, width: int, frames: int, **options):
        counting = {name: value for name, value in options.items() if name != "generator"}

        def count(channels: int) -> int:
            with torch.device("meta"):
                return cls(frames, (height, width), width=channels, **counting).stored_parameters()

        step = cls.width_step
        if count(step) > parameters:
            _check.fail(
                cls.__name__, f"the narrowest network has {count(step)} parameters.", "allow more, or coarser strides",
                parameters=parameters, size=(height, width),
            )  # fmt: skip
        fits, over = 1, 2
        while count(over * step) <= parameters:
            fits, over = over, 2 * over
        while over - fits > 1:
            middle = (fits + over) // 2
            fits, over = (middle, over) if count(middle * step) <= parameters else (fits, middle)
        return cls(frames, (height, width), width=fits * step, **options)

    width_step = 1  # widths are its multiples


def _between(values: Tensor, t: Tensor) -> Tensor:
    """values [K, ...] at positions t [B] in 0..K-1, linearly."""
    left = t.floor().clamp(0, len(values) - 1).long()
    right = (left + 1).clamp(max=len(values) - 1)
    share = (t - left).to(values.dtype).view(-1, *([1] * (values.dim() - 1)))
    return torch.lerp(values[left], values[right], share)
