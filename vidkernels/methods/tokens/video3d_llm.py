"""Video-3D LLM: a language model over video patches that carry their place in the world (Zheng et al. 2024).

Posed frames with depth: every patch gets the world coordinates of its middle at its mean depth, a sin-cos code of these
is added to its token, and a causal language model reads the tokens before the question. Frames are chosen by greedy
maximum coverage of the voxels that they see. Heads: the next word, and grounding: the state of the question's last
token is compared with pooled features of object proposals (InfoNCE).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels.functional.splatting.volume import pixel_rays
from vidkernels.functional.tokens.selection import maximum_coverage
from vidkernels.nn.masking.embed import VisibleTubeEmbed

from .._card import Card

CARD = Card(
    title="Video-3D LLM: Learning Position-Aware Video Representation for 3D Scene Understanding",
    arxiv="2412.00493",
    year=2024,
    family="tokens",
    ops=("maximum_coverage", "pixel_rays", "embed_visible_tubes"),
    fidelity="partial",
    differs="a small causal transformer trained from scratch instead of LLaVA-Video-7B and its image encoder; one-word "
    "answers; coordinates enter the code without rounding.",
)


@dataclass(frozen=True)
class Config:
    """`room`: half the side of the cube, around the origin, whose voxels of side `cell` count as coverage;
    `finest`: the shortest wavelength of the codes, in the scene's unit; `codes`: False leaves them out, to compare.
    """

    width: int = 512
    depth: int = 8
    heads: int = 8
    patch: int = 14
    frames: int = 16
    coverage: float = 0.95
    room: float = 5.0
    cell: float = 0.1
    finest: float = 0.1
    vocabulary: int = 32000
    temperature: float = 0.07
    codes: bool = True

    @classmethod
    def tiny(cls) -> Config:
        """For tests: two layers of width 64, two frames, patches of 4 x 4, ten words."""
        return cls(width=64, depth=2, heads=2, patch=4, frames=2, room=2.0, cell=0.25, finest=1.0, vocabulary=10)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(*qkv, attn_mask=mask).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Video3DLLM(nn.Module):
    """Question answering and grounding in posed RGB-D video.

    Args:     config: sizes, `Video3DLLM.Config.tiny()` or your own.
    Shape:    clips [B, T, H, W, 3] uint8 with depth [B, T, H, W] (z in the camera, inf: nothing there), intrinsics k
              [3, 3] and poses [B, T, 4, 4] (world from camera); questions [B, Q] int64 words.
    Source:   Zheng et al. 2024, arXiv 2412.00493.
    Example:
        >>> import torch
        >>> model = Video3DLLM(Video3DLLM.Config.tiny())
        >>> clip = torch.randint(0, 256, (1, 4, 16, 16, 3), dtype=torch.uint8)
        >>> model.training_step(clip, torch.Generator().manual_seed(0))["loss"].shape
        torch.Size([])
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config, width = config, config.width
        if width % config.heads or width < 6:
            raise ValueError(f"Video3DLLM: expected `width` >= 6 divisible by `heads`, got {width}, {config.heads}.")
        self.embed = VisibleTubeEmbed(dim=width, tube=(1, config.patch, config.patch), grid=None, mean=(0.5,) * 3,
                                      std=(0.5,) * 3, position=None)  # fmt: skip
        self.words = nn.Embedding(config.vocabulary, width)
        self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.vocabulary)
        self.query, self.proposal = nn.Linear(width, width), nn.Linear(width, width)

    def position_code(self, points: Tensor) -> Tensor:
        """[..., 3] world coordinates -> [..., width]: sines and cosines of wavelengths from `finest` to 4 `room`."""
        pairs, config = self.config.width // 6, self.config
        octaves = torch.linspace(0, 1, pairs, device=points.device)
        wavelength = config.finest * (4 * config.room / config.finest) ** octaves
        angle = (2 * math.pi * points[..., None] / wavelength).flatten(-2)
        code = torch.cat([angle.sin(), angle.cos()], -1)
        return F.pad(code, (0, config.width - code.shape[-1]))

    def world(self, depth: Tensor, k: Tensor, poses: Tensor) -> Tensor:
        """[B, T, H, W] depth -> world coordinates [B, T, H, W, 3], NaN where nothing is."""
        # The lens is the same for all frames: rays of one camera, turned and moved by each pose.
        _, rays = pixel_rays(k, torch.eye(4, dtype=k.dtype, device=k.device), tuple(depth.shape[2:]))
        points = torch.where(depth.isfinite(), depth, torch.nan)[..., None] * rays
        return torch.einsum("btij,bthwj->bthwi", poses[..., :3, :3], points) + poses[:, :, None, None, :3, 3]

    def patch_points(self, depth: Tensor, k: Tensor, poses: Tensor) -> Tensor:
        """World coordinates of the middle of every patch at its mean depth, [B, T, h, w, 3]; NaN: nothing in it."""
        side = self.config.patch
        tiles = depth.unflatten(3, (-1, side)).unflatten(2, (-1, side)).transpose(3, 4).flatten(4)
        there = tiles.isfinite()
        mean = torch.where(there, tiles, 0).sum(4) / there.sum(4).clamp(min=1)
        coarse = torch.where(there.any(4), mean, torch.inf)
        scale = k.new_tensor([[1 / side], [1 / side], [1]])  # pixels become patches, whose middles are whole and a half
        return self.world(coarse, k * scale, poses)

    def visited(self, points: Tensor) -> Tensor:
        """[B, T, ..., 3] world coordinates -> [B, T, V] bool: the room's voxels that each frame sees."""
        points, config = points.flatten(2, -2), self.config
        side = math.ceil(2 * config.room / config.cell)
        cell = ((points + config.room) / config.cell).nan_to_num(-1).floor().long()
        inside = ((cell >= 0) & (cell < side)).all(3)
        place = (cell[..., 0] * side + cell[..., 1]) * side + cell[..., 2]
        seen = torch.zeros(*points.shape[:2], side**3 + 1, dtype=torch.bool, device=points.device)
        return seen.scatter_(2, torch.where(inside, place, side**3), True)[..., :-1]

    def choose_frames(self, depth: Tensor, k: Tensor, poses: Tensor) -> Tensor:
        """[B, K] int64 in time order: greedy maximum coverage up to `coverage` or `frames`; -1: no frame needed."""
        seen = self.visited(self.world(depth, k, poses))
        index, _ = maximum_coverage(seen, min(self.config.frames, depth.shape[1]), target=self.config.coverage)
        unused = torch.where(index < 0, depth.shape[1], index).sort(dim=1).values
        return torch.where(unused < depth.shape[1], unused, -1)

    def read(self, clip: Tensor, depth: Tensor, k: Tensor, poses: Tensor, words: Tensor) -> dict[str, Tensor]:
        """Run the language model over patches, then words.

        Returns:  states [B, Q, width] of the words; patches [B, N, width], states of the patches; points [B, N, 3],
                  where they are; there [B, N] bool, patches of chosen frames with something in them.
        """
        index = self.choose_frames(depth, k, poses)
        rows = torch.arange(len(clip), device=clip.device)[:, None]
        at = index.clamp(min=0)
        clip, depth, poses = clip[rows, at], depth[rows, at], poses[rows, at]
        points = self.patch_points(depth, k, poses)
        there = points.isfinite().all(4) & (index >= 0)[:, :, None, None]
        points = torch.where(there[..., None], points, 0).flatten(1, 3)
        there = there.flatten(1)
        x = self.embed(clip)
        if self.config.codes:
            x = x + self.position_code(points) * there[..., None]
        x = torch.cat([x, self.words(words)], 1)
        length, patches = x.shape[1], points.shape[1]
        readable = F.pad(there, (0, length - patches), value=True)
        order = torch.arange(length, device=x.device)
        # A token always sees itself, so no row of the attention is empty.
        mask = (order[:, None] >= order) & readable[:, None] | (order[:, None] == order)
        for block in self.blocks:
            x = block(x, mask[:, None])
        x = self.norm(x)
        return {"states": x[:, patches:], "patches": x[:, :patches], "points": points, "there": there}

    def answer(self, clip: Tensor, depth: Tensor, k: Tensor, poses: Tensor, question: Tensor) -> Tensor:
        """Logits [B, vocabulary] of the word after the question."""
        return self.head(self.read(clip, depth, k, poses, question)["states"][:, -1])

    def ground(self, read: dict[str, Tensor], boxes: Tensor) -> Tensor:
        """How well each proposal fits the question: [B, P] cosines over temperature.

        Args:     boxes: [B, P, 6], lower and upper corner in the world; what is pooled are the patches inside.
        """
        point = read["points"][:, None]
        inside = ((point >= boxes[:, :, None, :3]) & (point <= boxes[:, :, None, 3:])).all(3) & read["there"][:, None]
        pooled = inside.to(read["patches"].dtype) @ read["patches"] / inside.sum(2, keepdim=True).clamp(min=1)
        if self.config.codes:
            pooled = pooled + self.position_code((boxes[..., :3] + boxes[..., 3:]) / 2)
        question = F.normalize(self.query(read["states"][:, -1]), dim=1)
        return (F.normalize(self.proposal(pooled), dim=2) @ question[:, :, None])[:, :, 0] / self.config.temperature

    def training_step(
        self, clip: Tensor, generator: torch.Generator | None = None, *, depth: Tensor | None = None,
        k: Tensor | None = None, poses: Tensor | None = None, question: Tensor | None = None,
        answer: Tensor | None = None, boxes: Tensor | None = None, target: Tensor | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Next-word loss of the answer plus grounding loss.

        Args:     depth, k, poses: None: a flat wall before one normal lens at the origin.
                  question [B, Q], answer [B]: words. None: "which colour is strongest?", answered by 0, 1 or 2.
                  boxes [B, P, 6], target [B]: proposals and the right one. None: left and right half of the room, the
                  redder half of the pictures.
        """
        batch, frames, height, width = clip.shape[:4]
        side = self.config.patch
        if clip.dim() != 5 or clip.dtype is not torch.uint8 or height % side or width % side:
            raise ValueError(
                "Video3DLLM: expected `clip` [B, T, H, W, 3] uint8 of whole patches, "
                f"got {list(clip.shape)} {clip.dtype}.\nHINT: height and width are multiples of {side}."
            )
        device, room = clip.device, self.config.room
        if depth is None:
            depth = torch.full(clip.shape[:4], room / 2, device=device)
        if k is None:
            k = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]], device=device)
        if poses is None:
            poses = torch.eye(4, device=device).expand(batch, frames, 4, 4)
        if question is None or answer is None:
            question = torch.zeros(batch, 1, dtype=torch.int64, device=device)
            answer = clip.float().mean((1, 2, 3)).argmax(1)
        if boxes is None or target is None:
            low, high = [-room] * 3, [room] * 3
            boxes = torch.tensor([[*low, 0, room, room], [0, -room, -room, *high]], device=device).expand(batch, 2, 6)
            red = clip[..., 0].float().mean((1, 2))
            target = (red[:, width // 2 :].mean(1) > red[:, : width // 2].mean(1)).long()
        read = self.read(clip, depth, k, poses, question)
        words = F.cross_entropy(self.head(read["states"][:, -1]), answer)
        grounding = F.cross_entropy(self.ground(read, boxes), target)
        return {"loss": words + grounding, "words": words.detach(), "grounding": grounding.detach()}

    def forward(self, clip: Tensor, generator: torch.Generator | None = None, **scene: Tensor) -> dict[str, Tensor]:
        # What DistributedDataParallel calls.
        return self.training_step(clip, generator, **scene)
