"""VQ-VAE: video as a grid of codes, and a transformer that says which code comes next (van den Oord et al. 2017).

Every frame is encoded on a grid; each of its vectors is replaced by the nearest of K codes, through which the gradient
passes unchanged; a decoder makes the frame of the codes. The prior is trained on the codes alone: it reads the grid of
a clip in raster order, frame after frame, and gives every code a probability before it is seen. What it needs per code,
in bits, is what a file would need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels.models import grid_positions
from vidkernels.models.conv_frames import FrameDecoder, FrameEncoder, as_frames
from vidkernels.nn.quantize.vector_quantizer import VectorQuantizer

from .._card import Card

CARD = Card(
    title="Neural Discrete Representation Learning",
    arxiv="1711.00937",
    year=2017,
    family="clustering",
    ops=("vector_quantize", "nearest_code"),
    fidelity="simplified",
    differs="a causal transformer over all frames as the prior instead of PixelCNN; frames are encoded one by one "
    "with GroupNorm and SiLU; the squared error is not scaled by the variance of the data.",
)


@dataclass(frozen=True)
class Config:
    """`decay`: of the codebook's moving average, None trains it by the loss as in the paper's main text; `dead_below`:
    the moving count below which a code starts again at a random vector.
    """

    codes: int = 512
    dim: int = 64
    width: int = 128
    downs: int = 2
    blocks: int = 2
    decay: float | None = 0.99
    commitment: float = 0.25
    dead_below: float = 1.0
    prior_width: int = 256
    prior_depth: int = 8
    prior_heads: int = 8

    @classmethod
    def tiny(cls) -> Config:
        """For tests: 32 codes trained by the loss, a prior of two layers."""
        return cls(codes=32, dim=8, width=16, blocks=1, decay=None, dead_below=0.0, prior_width=32, prior_depth=2,
                   prior_heads=2)  # fmt: skip


class _Layer(nn.Module):
    """Pre-norm transformer layer in which a token sees those before it and itself."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norms[0](x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(*qkv.unbind(0), is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class _CodePrior(nn.Module):
    """Logits [B, T, h, w, K] of each code of a grid [B, T, h, w], from those before it in raster order."""

    def __init__(self, config: Config):
        super().__init__()
        width = config.prior_width
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.embed = nn.Embedding(config.codes, width)
        self.layers = nn.ModuleList(_Layer(width, config.prior_heads) for _ in range(config.prior_depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, config.codes)

    def forward(self, index: Tensor) -> Tensor:
        flat = index.flatten(1)
        x = torch.cat([self.start.expand(len(flat), -1, -1), self.embed(flat[:, :-1])], 1)
        x = x + grid_positions(tuple(index.shape[1:]), x.shape[2]).to(x)  # of the code to come
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)).view(*index.shape, -1)


class VQVAE(nn.Module):
    """Autoencoder with a codebook, and a prior over its codes.

    Args:     config: sizes, `VQVAE.Config.tiny()` or your own.
    Shape:    clips are [B, T, H, W, 3] uint8, H and W multiples of 2^downs; codes are [B, T, h, w].
    Source:   van den Oord et al. 2017, arXiv 1711.00937.
    Example:
        >>> import torch
        >>> model = VQVAE(VQVAE.Config.tiny())
        >>> clip = torch.randint(0, 256, (1, 2, 16, 16, 3), dtype=torch.uint8)
        >>> model.encode(clip).shape, model.decode(model.encode(clip)).shape
        (torch.Size([1, 2, 4, 4]), torch.Size([1, 2, 16, 16, 3]))
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        sizes = {"width": config.width, "downs": config.downs, "blocks": config.blocks}
        self.encoder, self.decoder = FrameEncoder(config.dim, **sizes), FrameDecoder(config.dim, **sizes)
        self.quantizer = VectorQuantizer(config.dim, config.codes, decay=config.decay, commitment=config.commitment,
                                         dead_below=config.dead_below, channel_first=True)  # fmt: skip
        self.prior = _CodePrior(config)

    def autoencode(self, clip: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Encode, quantise, decode. In training the codebook follows.

        Returns:  reconstruction [B * T, 3, H, W] in about 0..1, index [B, T, h, w], and the losses: `error`, the mean
                  squared one of pixels, and `codebook`, of commitment (and of the codes, without a moving average).
        """
        frames = as_frames(clip)
        quantized, index, loss = self.quantizer(self.encoder(frames), generator)
        reconstruction = self.decoder(quantized)
        error = (reconstruction - frames).square().mean()
        index = index.unflatten(0, clip.shape[:2])
        return {"reconstruction": reconstruction, "index": index, "error": error, "codebook": loss}

    @torch.no_grad()
    def encode(self, clip: Tensor) -> Tensor:
        """Codes [B, T, h, w] of a clip; the codebook stays as it is."""
        mode = self.quantizer.training
        self.quantizer.eval()
        index = self.quantizer(self.encoder(as_frames(clip))).index
        self.quantizer.train(mode)
        return index.unflatten(0, clip.shape[:2])

    @torch.no_grad()
    def decode(self, index: Tensor) -> Tensor:
        """The clip [B, T, H, W, 3] uint8 of codes [B, T, h, w]."""
        frames = self.decoder(self.quantizer.lookup(index.flatten(0, 1)))
        frames = (frames * 255).round().clamp(0, 255).to(torch.uint8)
        return frames.permute(0, 2, 3, 1).unflatten(0, index.shape[:2])

    def bits(self, index: Tensor) -> Tensor:
        """What the prior needs per code of a grid [B, T, h, w], on average over it: [B] bits."""
        logits = self.prior(index)
        nats = F.cross_entropy(logits.flatten(0, -2), index.flatten(), reduction="none")
        return nats.view(index.shape).flatten(1).mean(1) / math.log(2)

    @torch.no_grad()
    def sample(self, grid: tuple[int, int, int], generator: torch.Generator | None = None) -> Tensor:
        """Codes [1, T, h, w] drawn from the prior, one after the other."""
        index = torch.zeros(1, *grid, dtype=torch.int64, device=self.prior.start.device)
        flat = index.view(-1)
        for place in range(flat.numel()):
            chances = self.prior(index).flatten(0, -2)[place].softmax(0)
            flat[place] = torch.multinomial(chances, 1, generator=generator)[0]
        return index

    def training_step(self, clip: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Autoencoder and prior at once. The prior's loss reaches nothing but the prior: the codes are whole numbers.

        To train the prior afterwards, as in the paper, take `autoencode` first and `bits` of the codes later.
        """
        out = self.autoencode(clip, generator)
        bits = self.bits(out["index"]).mean()
        return {"loss": out["error"] + out["codebook"] + bits, "error": out["error"].detach(), "bits": bits.detach()}

    def forward(self, clip: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        # What DistributedDataParallel calls.
        return self.training_step(clip, generator)
