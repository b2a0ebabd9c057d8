"""VideoMAE: masked autoencoding of video with tube masks at a very high ratio (Tong et al. 2022).

One random set of patches is hidden in every frame of a clip ("tube" masking), so a hidden patch cannot be
copied from the same place in a neighbouring frame. A transformer encodes the 10% visible tubes; a light
decoder predicts the pixels of the hidden ones, each normalised by its own mean and standard deviation.

As in the authors' code: mask count int(ratio * h * w) per frame, sinusoidal positions of the flattened
index, decoder order [visible, masked], per-channel targets, mean squared error over all of them. Unlike it:
the key projection has a bias (which softmax cancels), and positions follow the clip, so frame count and size
may change from call to call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels import functional as vkf
from vidkernels import nn as vknn
from vidkernels.models import (
    MaskedVideoDecoder,
    VideoViTConfig,
    VideoViTEncoder,
    grid_positions,
    sequence_positions,
)

from .._card import Card

CARD = Card(
    title="VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video Pre-Training",
    arxiv="2203.12602",
    year=2022,
    family="masked_video",
    ops=("tube_mask", "embed_visible_tubes", "masked_patch_loss"),
    fidelity="exact",
)
# Added to the standard deviation of a target patch, as in the authors' code.
_TARGET_EPS = 1e-6


@dataclass(frozen=True)
class Config:
    """Sizes of a VideoMAE; the clip's own size is not one of them.

    `positions`: "sequence", sinusoids of the flattened token index as in the authors' code, or "grid", sinusoids
    of time, height and width each.
    """

    encoder: VideoViTConfig = field(default_factory=VideoViTConfig.base)
    decoder: VideoViTConfig = field(default_factory=lambda: VideoViTConfig(width=384, depth=4, heads=6))
    tube: tuple[int, int, int] = (2, 16, 16)
    mask_ratio: float = 0.9
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    positions: str = "sequence"

    def __post_init__(self) -> None:
        if self.positions not in ("sequence", "grid"):
            raise ValueError(
                f"VideoMAE: expected `positions` 'sequence' or 'grid', got {self.positions!r}.\n"
                "HINT: 'sequence' is the paper's code; 'grid' tells time, height and width apart."
            )

    @classmethod
    def tiny(cls) -> Config:
        """For tests: two blocks of width 64, tubes of 2 x 8 x 8."""
        return cls(VideoViTConfig.tiny(), VideoViTConfig(width=48, depth=1, heads=2), tube=(2, 8, 8))

    @classmethod
    def small(cls) -> Config:
        """ViT-S with the authors' decoder for it."""
        return cls(VideoViTConfig.small(), VideoViTConfig(width=192, depth=4, heads=3))

    @classmethod
    def base(cls) -> Config:
        """ViT-B, the authors' default."""
        return cls()


class VideoMAE(nn.Module):
    """Masked autoencoder for video.

    Args:     config: sizes, `VideoMAE.Config.tiny()`, `.small()`, `.base()` or your own.
    Shape:    clips are [B, T, H, W, 3] uint8; T, H, W any multiples of `config.tube`.
    Source:   Tong et al. 2022, arXiv 2203.12602.
    Example:
        >>> import torch
        >>> model = VideoMAE(VideoMAE.Config.tiny())
        >>> clip = torch.randint(0, 256, (1, 4, 24, 40, 3), dtype=torch.uint8)
        >>> model.training_step(clip, torch.Generator().manual_seed(0))["loss"].shape
        torch.Size([])
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        # Without a position: its table would fix the clip's size.
        self.embed = vknn.VisibleTubeEmbed(
            dim=config.encoder.width,
            tube=config.tube,
            grid=None,
            mean=config.mean,
            std=config.std,
            position=None,
        )
        self.encoder = VideoViTEncoder(config.encoder)
        time, height, width = config.tube
        self.decoder = MaskedVideoDecoder(
            config.decoder, encoder_width=config.encoder.width, outputs=time * height * width * 3
        )
        self.loss = vknn.MaskedPatchLoss(tube=config.tube, convention="videomae")
        self._tables: dict[tuple[tuple[int, int, int], int, torch.device], Tensor] = {}

    def grid(self, clip: Tensor) -> tuple[int, int, int]:
        """Tokens along time, height and width of a clip."""
        tube = self.config.tube
        if clip.dim() != 5 or clip.shape[4] != 3 or clip.dtype != torch.uint8 or clip.shape[0] == 0:
            raise ValueError(
                "VideoMAE: expected `clip` of shape [B, T, H, W, 3] and dtype uint8, B >= 1, "
                f"got {list(clip.shape)} {str(clip.dtype).removeprefix('torch.')}.\n"
                "HINT: pass raw frames, unnormalised; add a batch axis with clip.unsqueeze(0)."
            )
        size = tuple(clip.shape[1:4])
        if any(length < step or length % step for length, step in zip(size, tube)):
            fitting = [max(step, length // step * step) for length, step in zip(size, tube)]
            raise ValueError(
                "VideoMAE: expected frames, height and width to be multiples of the tube.\n"
                f"  clip : {list(size)}\n  tube : {list(tube)}\n"
                f"HINT: crop, pad or resample the clip, for example to {fitting}."
            )
        return tuple(length // step for length, step in zip(size, tube))

    def _positions(self, clip: Tensor, width: int) -> Tensor:
        # The table depends on the clip's size, so it is no buffer; a handful of sizes occur in practice.
        key = (self.grid(clip), width, clip.device)
        if key not in self._tables:
            if self.config.positions == "grid":
                table = grid_positions(key[0], width)
            else:
                table = sequence_positions(math.prod(key[0]), width)
            self._tables[key] = table.to(clip.device)
        return self._tables[key]

    def mask(self, clip: Tensor, generator: torch.Generator | None = None) -> vkf.TokenMask:
        """One tube mask per clip of the batch."""
        return vkf.tube_mask(
            clip.shape[0], self.grid(clip), self.config.mask_ratio, generator=generator, device=clip.device
        )

    def encode(self, clip: Tensor, mask: vkf.TokenMask) -> Tensor:
        """Visible tokens after the encoder: [B, Nv, D]."""
        positions = self._positions(clip, self.config.encoder.width)
        tokens = self.embed(clip, mask.visible_index)
        return self.encoder(tokens + F.embedding(mask.visible_index, positions))

    def predict(self, clip: Tensor, mask: vkf.TokenMask) -> Tensor:
        """Normalised pixels of the masked tubes: [B, Nm, tube volume * 3], channel fastest."""
        positions = self._positions(clip, self.config.decoder.width)
        return self.decoder(self.encode(clip, mask), mask.visible_index, mask.masked_index, positions)

    def training_step(self, clip: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Mask, predict, compare: {"loss": scalar}. The mask is drawn from `generator`."""
        mask = self.mask(clip, generator)
        return {"loss": self.loss(self.predict(clip, mask), clip, mask.masked_index)}

    def forward(self, clip: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        # What DistributedDataParallel calls.
        return self.training_step(clip, generator)

    @torch.no_grad()
    def reconstruct(self, clip: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Fill the masked tubes of a clip with the prediction, to look at.

        The model predicts normalised tubes. Each is given back the mean and standard deviation of the tube it
        stands for (which only the original clip knows), as in the paper's own pictures.

        Args:     clip: [B, T, H, W, 3] uint8.
                  generator: source of the mask.
        Returns:  original, masked, reconstruction: [B, T, H, W, 3] uint8; masked tubes are grey in `masked`.
                  mask: [B, N] bool, True = masked.
        """
        grid, mask = self.grid(clip), self.mask(clip, generator)
        hidden = mask.to_bool()
        pixels = _to_tubes(clip, self.config.tube)  # [B, N, P, 3]
        target = pixels[hidden].float()
        std, mean = torch.std_mean(target, dim=1, keepdim=True)
        order = torch.argsort(mask.masked_index, dim=1)  # `pixels[hidden]` runs in token order
        prediction = self.predict(clip, mask).float()
        prediction = prediction.gather(1, order.unsqueeze(2).expand_as(prediction)).view(target.shape)
        filled = prediction * (std + 255 * _TARGET_EPS) + mean

        masked, reconstruction = pixels.clone(), pixels.clone()
        masked[hidden] = 128
        reconstruction[hidden] = filled.round().clamp(0, 255).to(torch.uint8)
        tube = self.config.tube
        return {
            "original": clip,
            "masked": _from_tubes(masked, grid, tube),
            "reconstruction": _from_tubes(reconstruction, grid, tube),
            "mask": hidden,
        }


def _to_tubes(clip: Tensor, tube: tuple[int, int, int]) -> Tensor:
    """[B, T, H, W, C] -> [B, N, tube volume, C]."""
    (batch, frames, height, width, channels), (a, b, c) = clip.shape, tube
    split = clip.reshape(batch, frames // a, a, height // b, b, width // c, c, channels)
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, -1, a * b * c, channels)


def _from_tubes(tubes: Tensor, grid: tuple[int, int, int], tube: tuple[int, int, int]) -> Tensor:
    """Inverse of `_to_tubes`."""
    (t, h, w), (a, b, c) = grid, tube
    batch, _, _, channels = tubes.shape
    split = tubes.reshape(batch, t, h, w, a, b, c, channels).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return split.reshape(batch, t * a, h * b, w * c, channels)
