"""Many videos in one network, learned one after another, the earlier ones kept to the bit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels import _check
from vidkernels.functional.nerv.spectral import fourier_layer
from vidkernels.functional.nerv.upsample_conv import upsample_conv
from vidkernels.nn.nerv.subnet import SubnetParameter, reach_of

from .frame_model import FrameModel, TimeEncoding, initialise, to_picture

__all__ = ["PFNR"]

_SESSIONS = 64  # what a session's number is divided by before it is encoded


class PFNR(FrameModel):
    """NeRV with Fourier layers, of which every video (session) has a subnetwork, and a head of its own.

    A session chooses, in each tensor, the weights with the largest scores. What it has chosen is frozen when it is
    done; later sessions may use it but not change it, and learn what is still free. So every finished video is drawn as
    before, bit for bit, and weights that suit several videos are there once.
    stage i: GELU(pixel_shuffle(conv(x))), and GELU(pixel_shuffle(conv(x)) + fourier_layer(x)) where i is in `fourier`
    Convention: as FrameModel; `frames` is that of the session being learned (or the last one). Session 0 has begun when
        the model is made. Times beside frame numbers are taken for the session that is asked for.
    Args:
        frames: of the first video.
        size: (H, W) of a picture.
        width: channels of the first grid.
        hidden: width of the perceptron's hidden layer.
        strides: enlargement of each block; None: by size.
        expansion, reduction, lowest: of the blocks' channels, as NeRV has them.
        levels: of the encodings of time and of the session's number.
        share: of each tensor's weights that a session uses.
        reuse: whether sessions may use what earlier ones have.
        fourier: stages with a Fourier layer.
        modes: (rows, columns) of frequencies it keeps, fewer where the picture is smaller.
        generator: of the first weights and scores.
    Shape:
        t [B], session -> [B, 3, H, W].
    Raises:
        ValueError: no frame, an empty picture, a stride below 1, a share outside 0..1, a stage that there is not.
    Source: Kang, Yoon, Kim, Hwang, Yoo 2023, arXiv 2306.11305; differs: first weights are larger by 1 / sqrt(share);
        every session begins with newly drawn scores; pictures whose size the strides do not divide.
    Example:
        >>> model = PFNR(8, (16, 32), width=8, hidden=16, lowest=8)
        >>> first = model(torch.tensor([0, 7])).detach()
        >>> model.start_session(5), model.frames
        (1, 5)
        >>> _ = torch.nn.init.normal_(model.stem[0]["weight"].weight)  # whatever an optimiser does now
        >>> torch.equal(model(torch.tensor([0, 7]), session=0), first)
        True
    """

    def __init__(
        self,
        frames: int,
        size: tuple[int, int],
        *,
        width: int = 26,
        hidden: int = 512,
        strides: Sequence[int] | None = None,
        expansion: float = 1.0,
        reduction: int = 2,
        lowest: int = 96,
        levels: int = 40,
        share: float = 0.5,
        reuse: bool = True,
        fourier: Sequence[int] = (1,),
        modes: tuple[int, int] = (16, 9),
        generator: torch.Generator | None = None,
    ):
        super().__init__(frames, size, strides)
        if not 0 < share <= 1:
            _check.fail("PFNR", "expected `share` above 0, at most 1.", share=share)
        if any(not 0 <= i < len(self.strides) for i in fourier):
            _check.fail("PFNR", "expected `fourier` to name stages.", fourier=fourier, strides=self.strides)
        self.width, self.share, self.reuse, self.fourier = width, share, reuse, tuple(fourier)
        self.lengths = [frames]  # of all sessions
        self.time = TimeEncoding(levels=levels)
        cells = self.grid[0] * self.grid[1]
        self.stem = nn.ModuleList()
        for a, b in itertools.pairwise([2 * self.time.width, hidden, width * cells]):
            self.stem.append(_layer((b, a), share, generator))
        widths = [width, int(width * expansion)]
        for stride in self.strides[1:]:
            widths.append(max(widths[-1] // (1 if stride == 1 else reduction), lowest))
        self.blocks, self.spectra = nn.ModuleList(), nn.ModuleDict()
        height, across = self.grid
        for i, ((a, b), s) in enumerate(zip(itertools.pairwise(widths), self.strides, strict=True)):
            self.blocks.append(_layer((b * s * s, a, 3, 3), share, generator))
            if i in self.fourier:
                kept = min(modes[0], height), min(modes[1], across // 2 + 1)
                reach = math.sqrt(1.5 / (a * share))  # keeps the energy of what it keeps
                self.spectra[str(i)] = SubnetParameter((*kept, a, b, 2), reach, generator=generator)
            height, across = height * s, across * s
        self.heads = nn.ModuleList([nn.Conv2d(widths[-1], 3, 1)])
        initialise(self.heads[0], generator)
        self.finished = 0

    # ---- sessions

    @property
    def session(self) -> int:
        """The session being learned, or the last one."""
        return len(self.lengths) - 1

    def start_session(self, frames: int | None = None, *, generator: torch.Generator | None = None) -> int:
        """Finish the session before, and begin one for a video of `frames` frames (None: as many); returns its number.

        Make a new optimiser then: there are parameters that the old one does not have.
        """
        self.finish_session()
        frames = self.lengths[-1] if frames is None else frames
        if frames < 1 or len(self.lengths) == _SESSIONS - 1:
            _check.fail("PFNR", f"expected a frame or more, and at most {_SESSIONS - 1} sessions.", frames=frames)
        self._add_head(frames)
        initialise(self.heads[-1], generator)
        for tensor in self.tensors():
            tensor.draw_scores(generator)
        return self.session

    def finish_session(self) -> None:
        """Freeze what the session uses. It can be decoded as before, and no longer learned."""
        if self.finished == len(self.lengths):
            return
        for tensor in self.tensors():
            tensor.finish(self.share, self.reuse, self.session)
        self.heads[-1].requires_grad_(False)
        for value in self.parameters():
            value.grad = None
        self.finished += 1

    @torch.no_grad()
    def adopt_session(
        self, frames: int, masks: Sequence[Tensor], values: Sequence[Tensor], head: tuple[Tensor, Tensor]
    ) -> None:
        """Take over a session that another network of this shape has learned, after as many as are finished here.

        Args:
            frames: of its video.
            masks, values: of each of `tensors()`; of the values those count that no earlier session has.
            head: weights and biases.
        """
        if self.finished == len(self.lengths):
            self._add_head(frames)
        self.lengths[-1] = self.frames = frames
        for tensor, mask, value in zip(self.tensors(), masks, values, strict=True):
            tensor.adopt(self.session, mask, value)
        for own, value in zip((self.heads[-1].weight, self.heads[-1].bias), head, strict=True):
            own.copy_(value)
        self.heads[-1].requires_grad_(False)
        self.finished += 1

    def _add_head(self, frames: int) -> None:
        last = self.heads[-1]
        head = nn.Conv2d(last.in_channels, 3, 1, device=last.weight.device, dtype=last.weight.dtype)
        self.heads.append(head)
        self.lengths.append(frames)
        self.frames = frames

    def tensors(self) -> list[SubnetParameter]:
        """All weights that sessions share, in a fixed order."""
        return [part for part in self.modules() if isinstance(part, SubnetParameter)]

    def taken(self, session: int) -> int:
        """How many weights a finished session was the first to use, its head not counted."""
        return sum(tensor.taken(session) for tensor in self.tensors())

    def get_extra_state(self) -> dict:
        return {"lengths": list(self.lengths), "finished": self.finished}

    def set_extra_state(self, state: dict) -> None:
        # Called before the children are filled: heads must be there by then.
        while len(self.heads) > len(state["lengths"]):
            del self.heads[-1]
        while len(self.heads) < len(state["lengths"]):
            self._add_head(1)
        self.lengths, self.finished = list(state["lengths"]), state["finished"]
        self.frames = self.lengths[-1]
        for k, head in enumerate(self.heads):
            head.requires_grad_(k >= self.finished)

    # ---- pictures

    def encode(self, t: Tensor, session: int | None = None) -> Tensor:
        """Times [B] in a session's video."""
        _check.is_tensor("PFNR", "t", t, "[B]")
        return t.double() if t.is_floating_point() else t.double() / self.lengths[self._known(session)]

    def decode(self, embedding: Tensor, session: int | None = None) -> Tensor:
        """Pictures at times [B] in a session's video; None: the one being learned."""
        session = self._known(session)
        numbers = torch.full_like(embedding, session / _SESSIONS)
        x = self.time(torch.stack([embedding, numbers], -1)).flatten(1)
        for layer in self.stem:
            x = F.gelu(F.linear(x, *self._values(layer, session)))
        x = x.view(-1, self.width, *self.grid).contiguous(memory_format=torch.channels_last)
        for i, (layer, scale) in enumerate(zip(self.blocks, self.strides, strict=True)):
            weight, bias = self._values(layer, session)
            if i not in self.fourier:
                x = upsample_conv(x, weight, bias, scale)
                continue
            kernel, mask = self._parts(self.spectra[str(i)], session)
            near = upsample_conv(x, weight, bias, scale, "none")
            x = F.gelu(near + fourier_layer(x, kernel, scale, mask=mask).to(near.dtype))
        return self.crop(to_picture(self.heads[session](x)))

    def forward(self, t: Tensor, session: int | None = None) -> Tensor:
        return self.decode(self.encode(t, session), session)

    def stored_parameters(self) -> int:
        """All weights, whether a session uses them or not, and the heads; no scores."""
        return sum(t.weight.numel() for t in self.tensors()) + sum(v.numel() for v in self.heads.parameters())

    def _known(self, session: int | None) -> int:
        session = self.session if session is None else session
        if not 0 <= session < len(self.lengths):
            _check.fail("PFNR", f"expected `session` from 0 to {self.session}.", session=session)
        return session

    def _parts(self, tensor: SubnetParameter, session: int) -> tuple[Tensor, Tensor | None]:
        """What `fourier_layer` takes for a session: values, and which of them count (None: all)."""
        if session < self.finished:
            return tensor.finished(session)
        return tensor.learning(self.share, self.reuse), None

    def _values(self, layer: nn.ModuleDict, session: int) -> list[Tensor]:
        parts = [self._parts(layer[name], session) for name in ("weight", "bias")]
        return [value if mask is None else torch.where(mask, value, 0) for value, mask in parts]


def _layer(shape: tuple[int, ...], share: float, generator: torch.Generator | None) -> nn.ModuleDict:
    """Weights and biases of a linear or convolutional layer."""
    reach = reach_of(math.prod(shape[1:]), share)
    return nn.ModuleDict(
        {
            "weight": SubnetParameter(shape, reach, generator=generator),
            "bias": SubnetParameter(shape[:1], reach, generator=generator),
        }
    )
