"""HNeRV: a video as tiny embeddings of its frames and one decoder, fitted to that video (Chen et al. 2023).

An encoder makes a few numbers out of each frame, a decoder makes the frame out of them, and both are trained on this
one video. Decoder and embeddings are the video; the encoder is thrown away. What the embeddings say about the content
need not be in the weights, and frames between two others have embeddings between theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidkernels.models.nerv.fit import FitConfig, decode_video, fit_video, picture_loss
from vidkernels.models.nerv.hnerv import HNeRV as _Decoder
from vidkernels.models.nerv.nerv import NeRV as _Indexed

from .._card import Card

CARD = Card(
    title="HNeRV: A Hybrid Neural Representation for Videos",
    arxiv="2304.02633",
    year=2023,
    family="nerv",
    ops=("upsample_conv", "frame_loss"),
    fidelity="simplified",
    differs="pictures whose size the strides do not divide are cut from larger ones; entropy coding is left out. Small "
    "fits only: 24 frames of 80 x 160 in 100 000 parameters, 600 steps of 2 frames at rate 1e-3, three seeds. There it "
    "is 2.6 to 4.0 dB above the paper's baseline, NeRV without a hidden layer. One with a layer of 128 is 0.8 to "
    "1.0 dB below (0.1 to 0.7 at rate 2e-3; either is 0.5 to 0.7 below after 2400 steps on 132 frames). A step of NeRV "
    "takes a quarter of the time, so at equal time NeRV is ahead (33.4 against 28.4 dB, one seed): that part of the "
    "claim does not hold here. Balanced parameters are ahead of decaying ones by 1.4 and 3.6 dB over four stages (600 "
    "steps at 2e-3, two seeds; 0.04 to 2.5 after 400), by 0.1 to 0.7 over three. Frames held out come out as well as "
    "frames shown, 12 dB and more above NeRV's, yet 5 dB below the mean of their neighbours. Weights of 8 and "
    "embeddings of 6 bits cost 0.03 to 0.06 dB.",
)


@dataclass(frozen=True)
class Config:
    """`frames` of `size` in `parameters` (decoder and embeddings).

    `content`: embeddings of what frames show; False is the network from frame numbers it is compared with, NeRV, whose
    perceptron has a hidden layer of `hidden`, 0 for none as in the paper's baseline. `balanced`: kernels that grow and
    channels that shrink slowly; False is NeRV's decoder. `strides` of the decoder (None: by size), `embedding` and
    `encoder_width` channels, `batch` frames a step, `loss` of vidkernels.models.nerv.fit.
    """

    frames: int = 132
    size: tuple[int, int] = (640, 1280)
    parameters: int = 1_500_000
    content: bool = True
    balanced: bool = True
    hidden: int = 0
    strides: tuple[int, ...] | None = None
    embedding: int = 16
    encoder_width: int = 64
    batch: int = 2
    loss: str = "l2"

    @classmethod
    def tiny(cls) -> Config:
        """For tests: 4 frames of 16 x 16."""
        return cls(frames=4, size=(16, 16), parameters=5000, embedding=4, encoder_width=8)

    @classmethod
    def small(cls) -> Config:
        """24 frames of 80 x 160 in 100 000 parameters: 600 steps take 20 s on two cores."""
        return cls(frames=24, size=(80, 160), parameters=100_000, strides=(5, 4, 2))


class HNeRV(nn.Module):
    """A video as embeddings and a decoder.

    Args:
        config: `HNeRV.Config.tiny()`, `.small()` or your own.
        generator: of the first weights.
    Shape: clips are [B, T, H, W, 3] uint8, of the configuration's size. `fit` is the paper's procedure; `training_step`
        is one step of it, for the B clips together.
    Source: Chen, Gwilliam, Lim, Shrivastava 2023, arXiv 2304.02633.
    Example:
        >>> import torch
        >>> model = HNeRV(HNeRV.Config.tiny())
        >>> video = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
        >>> losses = model.fit(video, steps=2, generator=torch.Generator().manual_seed(0))
        >>> model.decoded(video).shape, model.between(video, 1, 3).shape
        (torch.Size([4, 16, 16, 3]), torch.Size([16, 16, 3]))
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config, *, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        size = (config.parameters, *config.size, config.frames)
        common = {"strides": config.strides, "lowest": 12, "generator": generator}
        if config.content:
            shape = {} if config.balanced else {"kernels": (3, 3), "reduction": 2.0}
            self.network = _Decoder.from_size(
                *size, embedding=config.embedding, encoder_width=config.encoder_width, **shape, **common
            )
        else:
            self.network = _Indexed.from_size(*size, hidden=config.hidden, **common)

    def training_step(self, clip: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """`config.batch` frames, drawn from all clips, against what the network makes of them: {"loss": scalar}."""
        frames, height, width = self.config.frames, *self.config.size
        if clip.dtype is not torch.uint8 or clip.dim() != 5 or clip.shape[1:] != (frames, height, width, 3):
            raise ValueError(
                f"HNeRV: expected `clip` [B, {frames}, {height}, {width}, 3] of uint8, got {list(clip.shape)} "
                f"{str(clip.dtype).removeprefix('torch.')}.\nHINT: one model holds one video; set frames and size."
            )
        device = "cpu" if generator is None else generator.device
        take, number = (
            torch.randint(n, (self.config.batch,), generator=generator, device=device).to(clip.device)
            for n in clip.shape[:2]
        )
        shown = clip[take, number]
        pictures = self.network(shown if self.config.content else number)
        return {"loss": picture_loss(pictures, shown, loss=self.config.loss)}

    def forward(self, clip: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        # What DistributedDataParallel calls.
        return self.training_step(clip, generator)

    def fit(
        self,
        video: Tensor,
        *,
        steps: int,
        learning_rate: float = 1e-3,
        numbers: Sequence[int] | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[int, float], None] | None = None,
    ) -> list[float]:
        """Fit the network to `video` [T, H, W, 3] uint8; returns the loss of every step.

        Args:
            video: the frames.
            steps: of `config.batch` frames; the paper's are 300 epochs.
            learning_rate: after the warm-up, before the cosine.
            numbers: the frames to learn; None: all.
            mask: [T, H, W] bool, True where a pixel is missing.
            generator: of the order of frames.
            callback: called after each step with its number and loss.
        """
        plan = FitConfig(steps, self.config.batch, learning_rate, loss=self.config.loss)
        return fit_video(self.network, video, plan, numbers=numbers, mask=mask, generator=generator, callback=callback)

    def decoded(self, video: Tensor, numbers: Sequence[int] | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Frames `numbers` (None: all) of `video` as the network has them, uint8 in the same layout."""
        return decode_video(self.network, video, numbers, mask=mask)

    @torch.no_grad()
    def between(self, video: Tensor, before: int, after: int, share: float = 0.5) -> Tensor:
        """A frame [H, W, 3] uint8 between two others: from the embedding that lies between theirs."""
        ends = torch.tensor([before, after], device=video.device)
        embeddings = self.network.encode(*self.network.inputs(video, ends))
        picture = self.network.interpolate(embeddings, torch.tensor([share], device=video.device))[0]
        return (picture * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()

    @torch.no_grad()
    def compressed(self, video: Tensor, *, weight_bits: int = 8, embedding_bits: int = 6) -> Tensor:
        """All frames, uint8, when weights and embeddings are stored in so many bits each: see `round_to_bits`."""
        network = copy.deepcopy(self.network).eval()
        for name, value in network.named_parameters():
            if not name.startswith("encoder."):
                value.copy_(round_to_bits(value, weight_bits))
        if not self.config.content:
            return decode_video(network, video)
        embeddings = torch.cat([network.encode(frame.unsqueeze(0)) for frame in video])
        embeddings = round_to_bits(embeddings, embedding_bits)
        pictures = torch.cat([network.decode(embedding.unsqueeze(0)) for embedding in embeddings])
        return (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def round_to_bits(value: Tensor, bits: int) -> Tensor:
    """The nearest of 2^bits equally spaced numbers, from the tensor's least to its largest."""
    low, high = value.aminmax()
    step = ((high - low) / (2**bits - 1)).clamp(min=torch.finfo(value.dtype).tiny)
    return low + ((value - low) / step).round() * step
