"""ClusterFit: cluster the features of one network, train another from scratch on the clusters (Yan et al. 2020).

A network fits whatever it was trained on, noise and side effects of the task included. Its features on new clips are
clustered by k-means; what k clusters cannot tell apart is forgotten. A second network that learns, from nothing, to
name the cluster of a clip gets only what is left.

    A = ClusterFit(Config(classes=tags));  A.fit(clips, tags)             # any other network will do as well
    B = ClusterFit(Config(classes=k));     B.fit(others, B.clusters(A.features(others)))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels.functional.clustering.kmeans import kmeans
from vidkernels.models.conv_frames import FrameEncoder, as_frames

from .._card import Card

CARD = Card(
    title="ClusterFit: Improving Generalization of Visual Representations",
    arxiv="1912.03330",
    year=2020,
    family="clustering",
    ops=("kmeans",),
    fidelity="simplified",
    differs="a small convolutional network on frames, averaged over time, in the place of ResNet-50 and R(2+1)D.",
)


@dataclass(frozen=True)
class Config:
    """`classes`: clusters, or the labels of a first network; `features`: width of what is clustered and transferred."""

    classes: int = 1000
    features: int = 256
    width: int = 64
    downs: int = 3
    blocks: int = 2
    iterations: int = 50

    @classmethod
    def tiny(cls) -> Config:
        """For tests: eight clusters, 32 features."""
        return cls(classes=8, features=32, width=16, downs=2, blocks=1, iterations=20)


class ClusterFit(nn.Module):
    """Either network of the recipe: an encoder and a classifier of tags or clusters.

    Args:     config: sizes, `ClusterFit.Config.tiny()` or your own.
    Shape:    clips are [B, T, H, W, 3] uint8; H and W multiples of 2^downs.
    Source:   Yan et al. 2020, arXiv 1912.03330, section 3.
    Example:
        >>> import torch
        >>> model = ClusterFit(ClusterFit.Config.tiny())
        >>> clips = torch.randint(0, 256, (10, 2, 16, 16, 3), dtype=torch.uint8)
        >>> clusters = model.clusters(torch.randn(10, 5), torch.Generator().manual_seed(0))
        >>> model.training_step(clips, labels=clusters)["loss"].shape
        torch.Size([])
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = FrameEncoder(config.features, width=config.width, downs=config.downs, blocks=config.blocks)
        self.head = nn.Linear(config.features, config.classes)

    def forward(self, clip: Tensor) -> Tensor:
        """Features [B, F]: rectified, averaged over space and time."""
        return F.relu(self.encoder(as_frames(clip))).mean((2, 3)).unflatten(0, clip.shape[:2]).mean(1)

    @torch.no_grad()
    def features(self, clips: Tensor, batch: int = 256) -> Tensor:
        """`forward` of many clips [N, F], in evaluation mode and without gradient."""
        mode = self.training
        self.eval()
        found = torch.cat([self(part) for part in clips.split(batch)])
        self.train(mode)
        return found

    def clusters(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """k-means of another network's features [N, F'] of any width: the labels [N] to train on, `classes` of them."""
        return kmeans(features, self.config.classes, iterations=self.config.iterations, generator=generator).index

    def training_step(
        self, clip: Tensor, generator: torch.Generator | None = None, *, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cross-entropy of the clusters.

        Args:     labels: [B] int64. None: clusters of this batch's own features, as DeepCluster would.
        """
        features = self(clip)
        if labels is None:
            k = min(self.config.classes, len(clip))
            labels = kmeans(features, k, iterations=self.config.iterations, generator=generator).index
        return {"loss": F.cross_entropy(self.head(features), labels)}

    def fit(
        self,
        clips: Tensor,
        labels: Tensor,
        *,
        steps: int,
        batch: int = 64,
        rate: float = 3e-3,
        generator: torch.Generator | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> ClusterFit:
        """Train on labels [N] that stay: Adam with a one-cycle rate, batches drawn anew in each step."""
        optimizer = torch.optim.Adam(self.parameters(), rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for _ in range(steps):
            pick = torch.randint(len(clips), (batch,), generator=generator)
            clip = clips[pick] if augment is None else augment(clips[pick])
            loss = self.training_step(clip, labels=labels[pick])["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return self
