"""VideoMAE the usual way, in plain PyTorch: the peer of the whole pretraining step.

What users run: frames become a normalised float video, a Conv3d embeds every tube and a boolean mask drops
90% of the result, the target is built by undoing the normalisation, rearranging and normalising the whole
clip, and the loss is mse_loss. Parameter names are those of `vidkernels.methods` "videomae", so one
state_dict serves both.

`attention="explicit"` writes softmax(q k^T) v out, as the released code of the paper does; "fused" calls
scaled_dot_product_attention, as a careful user would.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class _Block(nn.Module):
    def __init__(self, width, heads, hidden, attention):
        super().__init__()
        self.heads, self.explicit = heads, attention == "explicit"
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if self.explicit:
            weight = ((q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
            out = weight @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(out.transpose(1, 2).reshape(b, n, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class _Stack(nn.Module):
    """Blocks and norm; the decoder's stack has a projection, a mask token and a head as well."""

    def __init__(self, size, attention, *, inputs=None, outputs=None):
        super().__init__()
        hidden = int(size.width * size.mlp_ratio)
        if inputs is not None:
            self.embed = nn.Linear(inputs, size.width, bias=False)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, size.width))
            self.head = nn.Linear(size.width, outputs)
        self.blocks = nn.ModuleList(_Block(size.width, size.heads, hidden, attention) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width, eps=1e-6)

    def run(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class PlainVideoMAE(nn.Module):
    """Args: config of the videomae method; grid, since this model is built for one clip size."""

    def __init__(self, config, grid, attention="explicit"):
        super().__init__()
        self.tube = config.tube
        self.embed = nn.Conv3d(3, config.encoder.width, config.tube, config.tube)
        self.encoder = _Stack(config.encoder, attention)
        outputs = 3 * config.tube[0] * config.tube[1] * config.tube[2]
        self.decoder = _Stack(config.decoder, attention, inputs=config.encoder.width, outputs=outputs)
        length = grid[0] * grid[1] * grid[2]
        self.register_buffer("encoder_position", _sinusoid(length, config.encoder.width), persistent=False)
        self.register_buffer("decoder_position", _sinusoid(length, config.decoder.width), persistent=False)
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1, 1), persistent=False)

    def normalise(self, clip):
        """What the usual data pipeline does: [B, T, H, W, 3] uint8 -> [B, 3, T, H, W] float."""
        return (clip.permute(0, 4, 1, 2, 3).float().div_(255) - self.mean) / self.std

    def forward(self, video, mask):
        """Loss for normalised video [B, 3, T, H, W] and mask [B, N] bool, True = masked."""
        x = self.embed(video).flatten(2).transpose(1, 2) + self.encoder_position
        b, _, c = x.shape
        x = self.encoder.norm(self.encoder.run(x[~mask].reshape(b, -1, c)))

        x = self.decoder.embed(x)
        d = x.shape[2]
        position = self.decoder_position.expand(b, -1, -1)
        seen, hidden = position[~mask].reshape(b, -1, d), position[mask].reshape(b, -1, d)
        x = torch.cat([x + seen, self.decoder.mask_token + hidden], dim=1)
        x = self.decoder.run(x)[:, -hidden.shape[1] :]
        prediction = self.decoder.head(self.decoder.norm(x))
        return F.mse_loss(prediction, self.target(video, mask))

    @torch.no_grad()
    def target(self, video, mask):
        pixels = video * self.std + self.mean  # back to 0..1
        b, ch, t, h, w = pixels.shape
        p, q, r = self.tube
        pixels = pixels.reshape(b, ch, t // p, p, h // q, q, w // r, r).permute(0, 2, 4, 6, 3, 5, 7, 1)
        pixels = pixels.reshape(b, -1, p * q * r, ch)
        std = pixels.var(dim=-2, unbiased=True, keepdim=True).sqrt() + 1e-6
        pixels = (pixels - pixels.mean(dim=-2, keepdim=True)) / std
        pixels = pixels.reshape(b, -1, p * q * r * ch)
        return pixels[mask].reshape(b, -1, p * q * r * ch)


def _sinusoid(length, width):
    angle = torch.arange(length, dtype=torch.float64)[:, None] / 10000 ** (
        2 * (torch.arange(width) // 2).double() / width
    )
    table = torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos())
    return table.float().unsqueeze(0)
