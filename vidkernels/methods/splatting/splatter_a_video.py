"""Splatter a Video: a video as 3D Gaussians with motion, for processing it (Sun et al. 2024).

Every Gaussian lives in front of a fixed orthographic camera and moves by a polynomial and a Fourier series of time.
Colour comes from the frames; optical flow, depth and labels of other models ("priors") make the motion and the
order in depth meaningful, so that the fitted video can be tracked, re-timed, recoloured, taken apart or seen in
stereo (`scene`, a `vidkernels.nn.CanonicalGaussianVideo`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vidkernels import functional as vkf
from vidkernels import nn as vknn

from .._card import Card

CARD = Card(
    title="Splatter a Video: Video Gaussian Representation for Versatile Processing",
    arxiv="2406.13870",
    year=2024,
    family="splatting",
    ops=(
        "rasterization",
        "motion_eval",
        "rendered_flow_loss",
        "scale_shift_invariant_loss",
        "arap_loss",
        "label_loss",
    ),
    fidelity="simplified",
    differs="Plain colours instead of spherical harmonics; Gaussians start on pixels with the priors' depth and speed; "
    "the flow loss compares neighbouring frames only; the ARAP term looks at a random part of the Gaussians each "
    "step and is relative to the distance of neighbours, with a weight of its own; priors are the caller's (tests use "
    "exact ones of a synthetic clip), no network is run.",
)


@dataclass(frozen=True)
class Priors:
    """What other models say about a clip; any of it may be missing.

    flow [T - 1, 2, H, W], pixels from each given frame to the next; flow_valid [T - 1, H, W] bool, where it holds;
    depth [T, H, W], the larger the farther, up to scale and shift; labels [T, H, W] int64.
    """

    flow: Tensor | None = None
    flow_valid: Tensor | None = None
    depth: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class Config:
    """Sizes, loss weights and schedule; the clip's own size is not one of them.

    `gaussians` to start with, `max_gaussians` to end with at most; `learning_rates` of each row of the scene, which
    fall to `final_rate` of themselves. Flow counts in half frame heights, rigidity in parts of the distance between
    neighbours: neither weight depends on the resolution or on how many Gaussians there are.
    """

    gaussians: int = 50_000
    max_gaussians: int = 100_000
    steps: int = 20_000
    render_weight: float = 5.0
    dssim: float = 0.2
    flow_weight: float = 2.0
    depth_weight: float = 1.0
    rigidity_weight: float = 0.5
    label_weight: float = 1.0
    neighbours: int = 8
    rigid_points: int = 512
    densify_every: int = 100
    densify_threshold: float = 2e-4
    reset_every: int = 3000
    final_rate: float = 0.05
    learning_rates: dict[str, float] = field(
        default_factory=lambda: {
            "means": 1e-3,
            "log_scales": 5e-3,
            "quats": 2e-3,
            "opacities": 2e-2,
            "colors": 5e-3,
            "motion": 5e-4,
            "spin": 5e-4,
            "labels": 1e-2,
        }
    )

    @classmethod
    def tiny(cls) -> Config:
        """For tests: 64 Gaussians, 20 steps."""
        return cls(gaussians=64, max_gaussians=96, steps=20, densify_every=10, rigid_points=32)

    @classmethod
    def small(cls) -> Config:
        """A minute on two cores for 16 frames of 64 x 96."""
        return cls(gaussians=1500, max_gaussians=3000, steps=1000, rigid_points=256)


class SplatterAVideo(nn.Module):
    """A clip as moving 3D Gaussians.

    Args:     config: `SplatterAVideo.Config.tiny()`, `.small()` or your own.
    Shape:    clips are [B, T, H, W, 3] uint8. One model holds one clip: the B clips of a batch are taken as takes of
              the same scene. `fit` is the paper's procedure (start from the clip's pixels, densify); `training_step`
              alone trains a fixed number of Gaussians that start anywhere.
    Source:   Sun et al. 2024, arXiv 2406.13870.
    Example:
        >>> import torch
        >>> model = SplatterAVideo(SplatterAVideo.Config.tiny())
        >>> video = torch.randint(0, 256, (4, 16, 24, 3), dtype=torch.uint8)
        >>> losses = model.fit(video, generator=torch.Generator().manual_seed(0))
        >>> model.scene.video([0.5], (32, 48)).shape
        torch.Size([1, 32, 48, 3])
    """

    card = CARD
    Config = Config

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        grey = torch.full((1, 16, 16, 3), 128, dtype=torch.uint8)
        self.scene = vknn.CanonicalGaussianVideo.from_video(grey, config.gaussians)

    def training_step(
        self,
        clip: Tensor,
        generator: torch.Generator | None = None,
        *,
        times: Tensor | None = None,
        priors: Priors | None = None,
    ) -> dict[str, Tensor]:
        """One random frame against its rendering: {"loss": scalar, and its weighted parts}.

        Args:     clip: [B, T, H, W, 3] uint8.
                  generator: draws the frame and the Gaussians of the rigidity term.
                  times: [T] rising in [0, 1]; None: evenly.
                  priors: of this clip, or None.
        """
        return self._step(clip, generator, times, priors)[0]

    def forward(self, clip: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        # What DistributedDataParallel calls.
        return self.training_step(clip, generator)

    def _step(self, clip, generator, times, priors):
        config, scene, priors = self.config, self.scene, priors or Priors()
        if clip.dim() != 5 or clip.shape[4] != 3 or clip.dtype != torch.uint8 or 0 in clip.shape:
            raise ValueError(
                "SplatterAVideo: expected `clip` of shape [B, T, H, W, 3] and dtype uint8, "
                f"got {list(clip.shape)} {str(clip.dtype).removeprefix('torch.')}.\n"
                "HINT: pass raw frames; add a batch axis with clip.unsqueeze(0)."
            )
        frames, height, width = clip.shape[1:4]
        times = _even_times(frames) if times is None else times
        here = int(torch.randint(frames, (1,), generator=generator, device=_device(generator)))
        other = int(torch.randint(frames, (1,), generator=generator, device=_device(generator)))
        # The last frame has no next one: its flow is looked at from the frame before.
        with_flow = priors.flow is not None and here + 1 < frames
        seen = scene.render(float(times[here]), (height, width), flow_to=float(times[here + 1]) if with_flow else None)
        parts = {
            "render": config.render_weight
            * torch.stack([vkf.photometric_loss(seen.rgb, take[here], dssim=config.dssim) for take in clip]).mean()
        }
        if with_flow:
            valid = None if priors.flow_valid is None else priors.flow_valid[here]
            # In half frame heights, so that the weight does not depend on the resolution.
            unit = 2 / height
            parts["flow"] = config.flow_weight * vkf.rendered_flow_loss(
                seen.flow[0] * unit, priors.flow[here] * unit, valid
            )
        if priors.depth is not None:
            parts["depth"] = config.depth_weight * vkf.scale_shift_invariant_loss(seen.depth, priors.depth[here])
        if priors.labels is not None and seen.labels is not None:
            parts["label"] = config.label_weight * vkf.label_loss(seen.labels, priors.labels[here])
        if config.rigidity_weight and here != other and scene.count > 1:
            parts["rigidity"] = config.rigidity_weight * self._rigidity(times[[here, other]], generator)
        return {"loss": sum(parts.values()), **parts}, seen

    def _rigidity(self, times: Tensor, generator: torch.Generator | None) -> Tensor:
        """ARAP between two moments over a random part of the Gaussians."""
        source, target = self.scene.centres(times.to(self.scene.gaussians["means"]))
        device = source.device
        rows = torch.randperm(len(source), generator=generator, device=_device(generator))
        rows = rows[: self.config.rigid_points].to(device)
        with torch.no_grad():
            near = torch.cdist(source[rows], source)
            near[torch.arange(len(rows), device=device), rows] = torch.inf
            edges, near = near.topk(min(self.config.neighbours, len(source) - 1), largest=False)
        # In parts of the distance between neighbours, so that the weight does not depend on how many there are.
        return vkf.arap_loss(source, target, near, rows) / edges.square().mean().clamp(min=1e-12)

    def fit(
        self,
        video: Tensor,
        *,
        times: Tensor | None = None,
        priors: Priors | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[int, dict[str, Tensor]], None] | None = None,
    ) -> list[float]:
        """Represent a clip from the start; returns the loss of every step.

        Args:     video: [T, H, W, 3] uint8.
                  times: [T] rising in [0, 1]; None: evenly. Leave frames out to have their times interpolated.
                  priors: of the frames given.
                  generator: source of all randomness.
                  callback: called with the step's number and its losses.
        """
        config, priors = self.config, priors or Priors()
        times = _even_times(len(video)) if times is None else torch.as_tensor(times, dtype=torch.float32)
        self.scene = vknn.CanonicalGaussianVideo.from_video(
            video, config.gaussians, times=times, depth=priors.depth, flow=priors.flow, labels=priors.labels,
            generator=generator,
        )  # fmt: skip
        rows = self.scene.gaussians
        optimizer = vknn.MultiTensorAdam(
            [{"params": [value], "lr": config.learning_rates[name]} for name, value in rows.items()],
            # A gradient is about as large as the part of the picture that a Gaussian shows in. With a tiny epsilon
            # the hidden ones would take full steps, too, and drift until they turn up elsewhere.
            eps=0.1 / (video.shape[1] * video.shape[2]),
        )
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, config.final_rate ** (1 / config.steps))
        control = vknn.DensityControl(
            rows, optimizer, threshold=config.densify_threshold, max_count=config.max_gaussians
        )
        losses, clip = [], video.unsqueeze(0)
        for step in range(1, config.steps + 1):
            parts, seen = self._step(clip, generator, times, priors)
            seen.means2d.retain_grad()
            optimizer.zero_grad()
            parts["loss"].backward()
            control.observe(seen.means2d, video.shape[1:3])
            optimizer.step()
            decay.step()
            losses.append(parts["loss"].item())
            if callback:
                callback(step, parts)
            # The second half only refines what is there.
            if step <= config.steps // 2 and step % config.densify_every == 0:
                control.densify(generator)
            if step <= config.steps // 2 and step % config.reset_every == 0:
                control.reset_opacity()
        return losses


def _even_times(frames: int) -> Tensor:
    return torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
