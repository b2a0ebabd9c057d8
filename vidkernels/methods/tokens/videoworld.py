"""VideoWorld: a policy learned from unlabelled video, through discrete codes of what changes (Ren et al. 2025).

A latent dynamics model reads frames t .. t + h with one learned query per horizon h and rounds what it finds to a code
z_h; a decoder must rebuild frame t + h from the features of frame t and z_1 .. z_h, so a code says what changed and
nothing that frame t says already. A causal transformer then continues [tokens of frame t, z_1 .. z_H, tokens of frame
t + 1, ...]: it decides on the change before it draws the frame. A small head turns codes into actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels.nn.quantize.fsq import FSQ

from .._card import Card

CARD = Card(
    title="VideoWorld: Exploring Knowledge Learning from Unlabeled Videos",
    arxiv="2501.09781",
    year=2025,
    family="tokens",
    ops=("fsq",),
    fidelity="partial",
    differs="frame tokens by FSQ per patch instead of a VQGAN; one causal 3D convolution as encoder; the decoder draws "
    "differences to frame t, by squared error without perceptual and adversarial loss; batch statistics centre and "
    "spread the codes, which learn four times slower than the rest; a small causal transformer instead of a 300M one. "
    "In a small grid world of random walks the codes name the moves in eight of ten initialisations (160 or 240 steps; "
    "the other two leave 0.2 of 2 bits open). Their training losses were the largest of the ten, but at other lengths "
    "of training a failure had as small a loss as a success, so the loss is a weak guide. Walks to a goal, where the "
    "frame itself narrows the move down, were not trained on. No gain by planning with codes is shown.",
)
_PARTS = ("frames", "dynamics", "sequence")


@dataclass(frozen=True)
class Config:
    """`horizon`: H; `levels` of a dynamics code, `frame_levels` of a patch; `blocks`: frames in the longest sequence
    and `places`: patches of a frame, both at most; `actions`: classes of the action head (0: none);
    `plan`: False leaves the codes out of the sequence."""

    patch: int = 16
    horizon: int = 9
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    frame_levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    width: int = 512
    depth: int = 8
    heads: int = 8
    blocks: int = 32
    places: int = 256
    actions: int = 0
    plan: bool = True

    @classmethod
    def tiny(cls) -> Config:
        """For tests: patches of 4 x 4, two horizons, 16 codes, width 64."""
        return cls(patch=4, horizon=2, levels=(4, 4), frame_levels=(3, 3, 3), width=64, depth=2, heads=2, blocks=6,
                   places=36)  # fmt: skip


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, outputs))


class _FrameTokens(nn.Module):
    """Autoencoder of single patches: [..., P] -> index [...], and back."""

    def __init__(self, pixels: int, config: Config):
        super().__init__()
        self.encode = _mlp(pixels, config.width, len(config.frame_levels))
        self.fsq = FSQ(config.frame_levels)
        self.decode = _mlp(len(config.frame_levels), config.width, pixels)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        quantized, index = self.fsq(self.encode(patches))
        return self.decode(quantized), index


class _Modulated(nn.Module):
    """Convolution whose channels a code scales and shifts: added alone, it could not say which way things move."""

    def __init__(self, width: int):
        super().__init__()
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.by_code = nn.Linear(width, 2 * width)
        self.back = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        scale, shift = self.by_code(code)[..., None, None].chunk(2, 1)
        return x + self.back(F.silu(self.near(x) * (1 + scale) + shift))


def _standard(x: Tensor, norm: nn.BatchNorm1d, learn: bool) -> Tensor:
    return F.batch_norm(x.flatten(1), norm.running_mean, norm.running_var, training=learn).view_as(x)


class _LatentDynamics(nn.Module):
    """Codes of the change from frame t to t + 1 .. t + H, and the frames they lead to."""

    def __init__(self, pixels: int, config: Config):
        super().__init__()
        width, self.horizon = config.width, config.horizon
        self.embed = nn.Linear(pixels, width)
        self.causal = nn.Conv3d(width, width, (2, 3, 3), padding=(0, 1, 1), padding_mode="replicate")
        self.query = nn.Parameter(torch.randn(config.horizon, width))
        self.when = nn.Parameter(0.1 * torch.randn(config.horizon + 1, width))
        self.norm = nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.to_code = _mlp(width, width, len(config.levels))
        # What moves is a few tokens among many that stay: without a scale of its own the query's answer is nearly
        # constant. And the codes spread over their levels from the first step on.
        self.center = nn.BatchNorm1d(config.horizon * width, affine=False)
        self.spread = nn.BatchNorm1d(config.horizon * len(config.levels), affine=False)
        self.fsq = FSQ(config.levels)
        self.from_code = nn.ModuleList(nn.Linear(len(config.levels), width) for _ in range(config.horizon))
        self.mix = nn.ModuleList(_Modulated(width) for _ in range(2))
        self.out = nn.Conv2d(width, pixels, 1)

    def features(self, patches: Tensor) -> Tensor:
        """[B, T, h, w, P] -> [B, T, C, h, w]; frame t knows t and t - 1 only."""
        x = self.embed(patches).permute(0, 4, 1, 2, 3)
        past = torch.cat([x[:, :, :1], x], 2)  # the first frame follows itself
        return (x + F.silu(self.causal(past))).transpose(1, 2)

    def codes(self, features: Tensor, frames: int, learn: bool = False) -> tuple[Tensor, Tensor]:
        """Of the first `frames` frames: quantised [B, frames, H, d] and indices [B, frames, H].

        With `learn` the batch's own statistics centre the codes, and are remembered for later calls without.
        """
        batch = len(features)
        tokens = self.norm(features.flatten(3).transpose(2, 3))  # [B, T, h * w, C]
        found = []
        for h in range(1, self.horizon + 1):
            seen = torch.stack([tokens[:, s : s + frames] + self.when[s] for s in range(h + 1)], 2)
            seen = seen.flatten(0, 1).flatten(1, 2)
            query = self.query[h - 1].expand(len(seen), 1, -1)
            found.append(self.attend(query, seen, seen, need_weights=False)[0])
        z = self.to_code(_standard(torch.cat(found, 1), self.center, learn))
        return self.fsq(1.2 * _standard(z, self.spread, learn).unflatten(0, (batch, frames)))

    def code_parameters(self) -> list[nn.Parameter]:
        """What makes codes of features."""
        return [self.query, self.when, *(p for m in (self.norm, self.attend, self.to_code) for p in m.parameters())]

    def decode(self, features: Tensor, codes: Tensor) -> Tensor:
        """Features [N, C, h, w] of frames and codes [N, H, d]: how the H frames that follow differ, [N, H, P, h, w]."""
        change = torch.stack([net(z) for net, z in zip(self.from_code, codes.unbind(1))], 1).cumsum(1)
        x = features[:, None].expand(-1, self.horizon, -1, -1, -1).flatten(0, 1)
        for layer in self.mix:
            x = layer(x, change.flatten(0, 1))
        return self.out(x).unflatten(0, change.shape[:2])


class VideoWorld(nn.Module):
    """Frame tokens, latent dynamics codes and a causal transformer over both.

    Args:     config: sizes, `VideoWorld.Config.tiny()` or your own.
    Shape:    clips are [B, T, H, W, 3] uint8, T > `config.horizon`; H and W multiples of `config.patch`.
    Source:   Ren et al. 2025, arXiv 2501.09781.
    Example:
        >>> model = VideoWorld(VideoWorld.Config.tiny())
        >>> clip = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8)
        >>> model.codes(clip).shape  # frames with a whole horizon before them, horizons
        torch.Size([2, 2, 2])
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config, pixels, width = config, 3 * config.patch**2, config.width
        self.tokens = _FrameTokens(pixels, config)
        self.dynamics = _LatentDynamics(pixels, config)
        words = self.tokens.fsq.codes + self.dynamics.fsq.codes
        self.word = nn.Embedding(words, width)
        self.place = nn.Parameter(0.02 * torch.randn(config.places + config.horizon, width))
        self.time = nn.Parameter(0.02 * torch.randn(config.blocks, width))
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, config.depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, words)
        self.act = _mlp(width + config.horizon * len(config.levels), width, config.actions) if config.actions else None

    def patches(self, clip: Tensor) -> Tensor:
        """[B, T, H, W, 3] uint8 -> [B, T, h, w, P] in -1..1."""
        side, good = self.config.patch, clip.dim() == 5 and clip.shape[4] == 3 and clip.dtype is torch.uint8
        if not good or clip.shape[2] % side or clip.shape[3] % side:
            raise ValueError(
                "VideoWorld: expected `clip` [B, T, H, W, 3] uint8 of multiples of the patch, got "
                f"{list(clip.shape)} {str(clip.dtype).removeprefix('torch.')}.\n  patch : {side}\n"
                "HINT: crop or resample the clip."
            )
        x = clip.unflatten(2, (-1, side)).unflatten(4, (-1, side))  # [B, T, h, p, w, p, 3]
        return x.transpose(3, 4).flatten(4) / 127.5 - 1

    def _whole(self, clip: Tensor) -> int:
        """Frames whose horizon ends within the clip."""
        frames = clip.shape[1] - self.config.horizon
        if frames < 1:
            raise ValueError(
                f"VideoWorld: expected more frames than the horizon.\n  frames  : {clip.shape[1]}\n"
                f"  horizon : {self.config.horizon}\nHINT: longer clips, or a smaller `horizon`."
            )
        return frames

    def parameter_groups(self, lr: float) -> list[dict]:
        """For an optimiser: what makes the codes learns four times slower than what reads them. At one rate, codes
        change before the decoder can read them, and in some runs never come to mean anything."""
        slow = self.dynamics.code_parameters()
        rest = [p for p in self.parameters() if not any(p is other for other in slow)]
        return [{"params": slow, "lr": lr / 4}, {"params": rest, "lr": lr}]

    def codes(self, clip: Tensor) -> Tensor:
        """Dynamics codes [B, T - H, H] int64."""
        return self.dynamics.codes(self.dynamics.features(self.patches(clip)), self._whole(clip))[1]

    def frame_tokens(self, clip: Tensor) -> Tensor:
        """[B, T, h * w] int64."""
        return self.tokens(self.patches(clip))[1].flatten(2)

    def sequence(self, clip: Tensor, codes: Tensor | None = None) -> Tensor:
        """What the transformer learns to continue: frames 0 .. T - H, each but the last followed by its codes (None:
        `self.codes`)."""
        frames, whole = self.frame_tokens(clip), self._whole(clip)
        if self.config.plan:
            codes = self.codes(clip) if codes is None else codes
            head = torch.cat([frames[:, :whole], codes + self.tokens.fsq.codes], 2)
        else:
            head = frames[:, :whole]
        return torch.cat([head.flatten(1), frames[:, whole]], 1)

    def logits(self, sequence: Tensor, block: int) -> Tensor:
        """[B, L] -> [B, L, words]: what follows each token; `block`: tokens from one frame to the next."""
        at = torch.arange(sequence.shape[1], device=sequence.device)
        if block > len(self.place) or (len(at) - 1) // block >= len(self.time):
            raise ValueError(
                f"VideoWorld: expected at most {len(self.time)} frames of {self.config.places} patches, got "
                f"{len(at)} tokens, {block} a frame.\nHINT: raise `blocks` or `places`."
            )
        x = self.word(sequence) + self.place[at % block] + self.time[at // block]
        mask = nn.Transformer.generate_square_subsequent_mask(len(at), device=sequence.device)
        return self.head(self.blocks(x, mask=mask, is_causal=True))

    @torch.no_grad()
    def imagine(self, frame: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Continue one frame [B, H, W, 3]: its codes [B, H] (or [B, 0]) and the next frame's tokens [B, h * w].

        Args:     generator: draw every token; None: always the likeliest.
        """
        sequence = self.frame_tokens(frame[:, None])[:, 0]
        cells, first = sequence.shape[1], self.tokens.fsq.codes
        plan = self.config.horizon if self.config.plan else 0
        for n in range(plan + cells):
            score = self.logits(sequence, cells + plan)[:, -1]
            score = score[:, first:] if n < plan else score[:, :first]
            chance = score.softmax(1)
            best = chance.argmax(1) if generator is None else torch.multinomial(chance, 1, generator=generator)[:, 0]
            sequence = torch.cat([sequence, best[:, None] + (first if n < plan else 0)], 1)
        return sequence[:, cells : cells + plan] - first, sequence[:, cells + plan :]

    def action_logits(self, clip: Tensor, codes: Tensor) -> Tensor:
        """Inverse dynamics: last frames of clips [B, T, H, W, 3] and codes [B, H] -> [B, actions]."""
        features = self.dynamics.features(self.patches(clip))[:, -1].detach()
        return self.act(torch.cat([features.mean((2, 3)), self.dynamics.fsq.lookup(codes).flatten(1)], 1))

    def training_step(
        self, clip: Tensor, generator: torch.Generator | None = None, *, parts: tuple[str, ...] = _PARTS
    ) -> dict[str, Tensor]:
        """Sum of the losses in `parts`. Nothing is drawn from `generator`.

        Args:     parts: "frames" (autoencoder of patches), "dynamics" (frames from codes), "sequence" (cross-entropy of
                  the next token; no gradient into the codes). The paper trains the last one after the others.
        """
        if not parts or set(parts) - set(_PARTS):
            raise ValueError(f"VideoWorld: expected `parts` among {_PARTS}, got {parts!r}.\nHINT: name at least one.")
        patches, losses = self.patches(clip), {}
        if "frames" in parts:
            losses["frames"] = (self.tokens(patches)[0] - patches).square().mean()
        if "dynamics" in parts:
            frames, features = self._whole(clip), self.dynamics.features(patches)
            codes, index = self.dynamics.codes(features, frames, learn=True)
            drawn = self.dynamics.decode(features[:, :frames].flatten(0, 1), codes.flatten(0, 1))
            truth = torch.stack([patches[:, h : h + frames] for h in range(1, self.config.horizon + 1)], 2)
            truth = truth - patches[:, :frames, None]
            losses["dynamics"] = (drawn - truth.flatten(0, 1).movedim(4, 2)).square().mean()
        if "sequence" in parts:
            with torch.no_grad():
                sequence = self.sequence(clip, index if "dynamics" in parts else None)
            cells = patches.shape[2] * patches.shape[3]
            logits = self.logits(sequence[:, :-1], cells + (self.config.horizon if self.config.plan else 0))
            losses["sequence"] = F.cross_entropy(logits.flatten(0, 1), sequence[:, 1:].flatten())
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}
