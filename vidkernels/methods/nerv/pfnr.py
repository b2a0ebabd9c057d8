"""PFNR: videos in one network one after another, none of them forgotten (Kang et al. 2023).

Of every tensor each video chooses the weights with the largest learned scores. A finished video's weights are frozen;
the next one may use them and learns others. A Fourier layer beside one convolution sees the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidkernels import _check
from vidkernels.models.nerv.fit import FitConfig, fit_video, picture_loss
from vidkernels.models.nerv.pfnr import PFNR as _Network

from .._card import Card

CARD = Card(
    title="Progressive Fourier Neural Representation for Sequential Video Compilation",
    arxiv="2306.11305",
    year=2023,
    family="nerv",
    ops=("top_k_mask", "masked_weight", "fourier_layer", "upsample_conv", "frame_loss"),
    fidelity="simplified",
    differs="GELU instead of swish; every session draws its scores anew; first weights are larger by 1 / sqrt(share). "
    "Small fits only: 12 frames of Bunny, then 12 of bikes, at 48 x 96 in 94 000 weights, 400 steps of 2 frames each "
    "at rate 2e-3. Bunny is drawn as before to the bit (not frozen, it falls by 16 to 17 dB at share 0.8, by 6 to 13 "
    "at 0.5 and 0.7). At share 0.8 bikes gets 30.8 to 31.5 dB with reuse (three seeds), 27.6 to 28.9 from the free "
    "weights alone, and 28.2 to 29.0 from as many new ones (17 per cent of all): reuse helps by 2 dB and more. At "
    "share 0.7 it helps by 0.9 and 1.9. At share 0.5, where the free half is a whole network, it does not: 31.3 and "
    "32.1 against 33.6 and 33.3, though with half as many new weights; from as many of them, 32.0 and 30.8.",
)


@dataclass(frozen=True)
class Config:
    """Videos of `frames` frames of `size`, in a network of `width`, `hidden`, `lowest` and `strides` as NeRV has them.

    `share` of each tensor's weights that a video uses; `reuse`: whether it may use those of earlier ones. `fourier`
    stages have a Fourier layer of `modes` frequencies. `batch` frames a step, `loss` of vidkernels.models.nerv.fit.
    """

    frames: int = 132
    size: tuple[int, int] = (720, 1280)
    width: int = 112
    hidden: int = 512
    lowest: int = 96
    strides: tuple[int, ...] | None = (5, 2, 2, 2, 2)
    share: float = 0.5
    reuse: bool = True
    fourier: tuple[int, ...] = (1,)
    modes: tuple[int, int] = (16, 9)
    batch: int = 1
    loss: str = "l1_ssim"

    @classmethod
    def tiny(cls) -> Config:
        """For tests: 4 frames of 16 x 16."""
        return cls(4, (16, 16), width=4, hidden=8, lowest=4, strides=(2, 2, 2), modes=(2, 2))

    @classmethod
    def small(cls) -> Config:
        """12 frames of 48 x 96 in 94 000 weights: 400 steps take 6 s on one core."""
        return cls(12, (48, 96), width=16, hidden=64, lowest=12, strides=(4, 2, 2), modes=(8, 5), batch=2)


class PFNR(nn.Module):
    """Videos as subnetworks of one network.

    Args:
        config: `PFNR.Config.tiny()`, `.small()` or your own.
        generator: of the first weights and scores.
    Shape: clips are [B, T, H, W, 3] uint8, of the configuration's size. `fit` is the paper's procedure for the video of
        the session that has begun; `training_step` is one step of it, for the B clips together.
    Source: Kang, Yoon, Kim, Hwang, Yoo 2023, arXiv 2306.11305.
    Example:
        >>> import torch
        >>> model = PFNR(PFNR.Config.tiny())
        >>> videos = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8)
        >>> losses = model.fit(videos[0], steps=2, generator=torch.Generator().manual_seed(0))
        >>> first = model.decoded()
        >>> losses = model.start_session() and model.fit(videos[1], steps=2)
        >>> torch.equal(model.decoded(session=0), first)
        True
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config, *, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.network = _Network(
            config.frames, config.size, width=config.width, hidden=config.hidden, lowest=config.lowest,
            strides=config.strides, share=config.share, reuse=config.reuse, fourier=config.fourier, modes=config.modes,
            generator=generator,
        )  # fmt: skip

    def start_session(self, frames: int | None = None, *, generator: torch.Generator | None = None) -> int:
        """Freeze what the video before uses, and begin the next; returns its number. Optimisers are to be made anew."""
        return self.network.start_session(frames, generator=generator)

    def training_step(self, clip: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """`config.batch` frames, drawn from all clips, against what the session's network makes of them: {"loss"}."""
        if clip.dim() != 5 or clip.dtype is not torch.uint8 or tuple(clip.shape[2:]) != (*self.config.size, 3):
            _check.fail("pfnr", f"expected clips [B, T, {', '.join(map(str, self.config.size))}, 3] of uint8.",
                        clip=clip)  # fmt: skip
        device = "cpu" if generator is None else generator.device
        take, number = (
            torch.randint(n, (self.config.batch,), generator=generator, device=device).to(clip.device)
            for n in clip.shape[:2]
        )
        return {"loss": picture_loss(self.network(number), clip[take, number], loss=self.config.loss)}

    def forward(self, clip: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        # What DistributedDataParallel calls.
        return self.training_step(clip, generator)

    def fit(
        self,
        video: Tensor,
        *,
        steps: int,
        learning_rate: float = 5e-4,
        generator: torch.Generator | None = None,
        callback: Callable[[int, float], None] | None = None,
    ) -> list[float]:
        """Fit the session that has begun to `video` [T, H, W, 3] uint8; returns the loss of every step.

        Args:
            video: the frames, as many as the session was begun with.
            steps: of `config.batch` frames; the paper's are 150 epochs.
            learning_rate: after the warm-up, before the cosine.
            generator: of the order of frames.
            callback: called after each step with its number and loss.
        """
        plan = FitConfig(steps, self.config.batch, learning_rate, warmup=0.2, loss=self.config.loss)
        return fit_video(self.network, video, plan, generator=generator, callback=callback)

    @torch.no_grad()
    def decoded(self, session: int | None = None, numbers: Sequence[int] | None = None) -> Tensor:
        """Frames `numbers` (None: all) of a session's video (None: the last), uint8 [T, H, W, 3]."""
        lengths = self.network.lengths
        numbers = range(lengths[-1 if session is None else session]) if numbers is None else numbers
        device = next(self.network.parameters()).device
        frames = [self.network(torch.tensor([number], device=device), session) for number in numbers]
        pictures = (torch.cat(frames) * 255).round().to(torch.uint8)
        return pictures.permute(0, 2, 3, 1).contiguous()
