"""TimeTuning: an image transformer learns dense features from what stays the same in a video (Salehi et al. 2023).

The patches of a clip's first frame are spread evenly over prototypes by Sinkhorn. The feature forwarder carries these
soft labels along the clip, each patch taking the labels of the patches nearby in earlier frames that look like it. At
the last frame they are the target: what the network says about a patch there has to agree with where the patch came
from. So features become the same for one thing at two moments, and different for different things.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels.functional.clustering.kmeans import kmeans
from vidkernels.functional.clustering.matching import linear_assignment
from vidkernels.functional.clustering.sinkhorn import sinkhorn
from vidkernels.models import FrameEmbed, VideoViTConfig, VideoViTEncoder
from vidkernels.nn.clustering.prototypes import PrototypeHead

from .._card import Card

CARD = Card(
    title="Time Does Tell: Self-Supervised Time-Tuning of Dense Image Representations",
    arxiv="2308.11796",
    year=2023,
    family="clustering",
    ops=("sinkhorn", "kmeans", "linear_assignment"),
    fidelity="partial",
    differs="the forwarder compares the network's own features instead of a momentum teacher's; the caller says where "
    "the foreground is (the paper reads it in DINO's attention), by default it is everywhere; positions are sin-cos. "
    "Not reproduced at test size: the gain over labels left in place when things move.",
)


@dataclass(frozen=True)
class Config:
    """`tuned`: how many of the last blocks learn, None: the whole network. `context`: earlier frames that the forwarder
    looks at, the first one apart; `radius` in patches; `nearest`: patches whose labels are mixed. `forwarder`:
    "affinity", or "identity", which leaves labels in their place as if nothing moved. `positions`: patches know where
    they are, as in a plain ViT; where that alone tells clusters apart, do without.
    """

    encoder: VideoViTConfig = field(default_factory=VideoViTConfig.small)
    patch: int = 16
    prototypes: int = 200
    projection: int = 256
    tuned: int | None = 2
    temperature: float = 0.1
    epsilon: float = 0.05
    iterations: int = 10
    affinity: float = 0.1
    context: int = 6
    radius: float = 6.0
    nearest: int = 5
    forwarder: str = "affinity"
    positions: bool = True
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.forwarder not in ("affinity", "identity"):
            raise ValueError(
                f"TimeTuning: expected `forwarder` 'affinity' or 'identity', got {self.forwarder!r}.\n"
                "HINT: 'identity' is for comparison."
            )

    @classmethod
    def tiny(cls) -> Config:
        """For tests: two blocks of width 64, both learning, patches of 4, 20 prototypes."""
        return cls(VideoViTConfig.tiny(), patch=4, prototypes=20, projection=32, tuned=None, radius=2.5)


class TimeTuning(nn.Module):
    """Image transformer, projection and prototypes, tuned on clips.

    Args:     config: sizes, `TimeTuning.Config.tiny()` or your own.
    Shape:    clips are [B, T, H, W, 3] uint8, T >= 2, H and W multiples of the patch.
    Source:   Salehi et al. 2023, arXiv 2308.11796.
    Example:
        >>> import torch
        >>> model = TimeTuning(TimeTuning.Config.tiny())
        >>> clip = torch.randint(0, 256, (1, 3, 16, 24, 3), dtype=torch.uint8)
        >>> model.features(clip).shape
        torch.Size([1, 3, 24, 64])
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config, width = config, config.encoder.width
        self.embed = FrameEmbed(width, config.patch, config.mean, config.std, positions=config.positions)
        self.encoder = VideoViTEncoder(config.encoder)
        self.projection = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.projection))
        self.head = PrototypeHead(config.projection, config.prototypes)
        if config.tuned is not None:
            self.embed.requires_grad_(False)
            self.encoder.blocks[: max(config.encoder.depth - config.tuned, 0)].requires_grad_(False)

    def features(self, clip: Tensor) -> Tensor:
        """Each frame by itself: [B, T, h * w, C]."""
        return self.encoder(self.embed(clip).flatten(0, 1)).unflatten(0, clip.shape[:2])

    @torch.no_grad()
    def forward_labels(self, features: Tensor, labels: Tensor, grid: tuple[int, int]) -> Tensor:
        """The feature forwarder: labels of the first frame, carried to the last.

        Args:     features: [B, T, N, C] of the clip, N = h * w. labels: [B, N, K] of its first frame.
        Returns:  [B, N, K], what the labels have become at frame T - 1.
        """
        config = self.config
        if config.forwarder == "identity":
            return labels
        x = F.normalize(features, dim=3)
        y, column = torch.meshgrid(*(torch.arange(side, device=x.device) for side in grid), indexing="ij")
        place = torch.stack([y, column], 2).flatten(0, 1).float()
        far = torch.cdist(place, place) > config.radius
        known = [labels]
        for t in range(1, x.shape[1]):
            # The first frame, whose labels are certain, and the latest ones.
            past = [0, *range(max(1, t - config.context), t)]
            score = x[:, t] @ x[:, past].flatten(1, 2).transpose(1, 2)
            score = score.masked_fill(far.repeat(1, len(past)), -torch.inf)
            score, index = score.topk(min(config.nearest, score.shape[2]), dim=2)
            weight = (score / config.affinity).softmax(2)
            source = torch.cat([known[i] for i in past], 1)
            batch = torch.arange(len(x), device=x.device).view(-1, 1, 1)
            known.append((weight[..., None] * source[batch, index]).sum(2))
        return known[-1]

    def training_step(
        self, clip: Tensor, generator: torch.Generator | None = None, *, foreground: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cross-entropy of the last frame's patches with the labels that came there from the first frame.

        Args:     generator: not used, nothing here is random.
                  foreground: [B, h * w] bool, the patches of the last frame that count.
        """
        if clip.shape[1] < 2:
            raise ValueError("TimeTuning: expected at least 2 frames, got 1.\nHINT: a still image does not tell.")
        config, grid = self.config, self.embed.places(clip)
        features = self.features(clip)
        first, last = self.head(self.projection(features[:, 0])), self.head(self.projection(features[:, -1]))
        labels = sinkhorn(first.detach().flatten(0, 1), config.epsilon, config.iterations).view_as(first)
        target = self.forward_labels(features.detach(), labels, grid)
        loss = -(target * (last / config.temperature).log_softmax(2)).sum(2)
        return {"loss": loss.mean() if foreground is None else loss[foreground].mean()}

    def forward(self, clip: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        # What DistributedDataParallel calls.
        return self.training_step(clip, generator)

    @torch.no_grad()
    def segmentation_score(
        self, clips: Tensor, labels: Tensor, classes: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Mean intersection over union of as many clusters as classes, after the best matching of the two.

        Args:     labels: [B, T, h * w] int64, the class of each patch.
        """
        rows = self.features(clips).flatten(0, 2)
        found = kmeans(rows, classes, iterations=30, generator=generator).index
        both = torch.bincount(classes * found + labels.flatten(), minlength=classes**2).view(classes, classes).double()
        union = both.sum(1, keepdim=True) + both.sum(0, keepdim=True) - both
        overlap = both / union.clamp(min=1)
        return overlap[linear_assignment(overlap, maximize=True)].mean()
