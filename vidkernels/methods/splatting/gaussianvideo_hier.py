"""GaussianVideo: 3D Gaussians on spline paths and a neural-ODE camera, fitted from coarse to fine (Bond et al. 2025).

Few large Gaussians are fitted to small pictures of few frames; then, stage by stage, Gaussians are added where the
error is largest, pictures grow, frames in between join in and every path gets twice as many segments without
changing its course. The camera's pose and focal length follow an ordinary differential equation, so that what all of
the scene does together need not be learnt by every Gaussian.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidkernels import functional as vkf
from vidkernels import nn as vknn
from vidkernels.nn.splatting.density import sample_error

from .._card import Card

CARD = Card(
    title="GaussianVideo: Efficient Video Representation via Hierarchical Gaussian Splatting",
    arxiv="2501.04782",
    year=2025,
    family="splatting",
    ops=("rasterization", "motion_eval"),
    fidelity="simplified",
    differs="One camera state of 7 numbers (rotation, translation, focal length) follows the ODE; Gaussians are "
    "inserted at pixels drawn in proportion to the error; plain colours; sizes and schedules for short clips.",
)


@dataclass(frozen=True)
class Stage:
    """One level of the hierarchy: every `stride`-th frame at 1 / `shrink` of its size, `steps` steps.

    `gaussians`: how many to reach by insertion when the stage begins. `controls`: control points to reach by
    doubling segments (4, 5, 7, 11, 19, ...).
    """

    steps: int
    gaussians: int
    shrink: int = 1
    stride: int = 1
    controls: int = 4


@dataclass(frozen=True)
class Config:
    """Stages, loss and learning rates; the clip's own size is not one of them.

    `camera`: a neural ODE moves it, or it stands still. `learning_rates` of each row of the scene and of the camera,
    which fall to `final_rate` of themselves during the last stage.
    """

    stages: tuple[Stage, ...] = (
        Stage(2000, 10_000, shrink=4, stride=4),
        Stage(3000, 30_000, shrink=2, stride=2, controls=7),
        Stage(10_000, 80_000, controls=11),
    )
    camera: bool = True
    dssim: float = 0.2
    min_opacity: float = 0.02
    final_rate: float = 0.05
    learning_rates: dict[str, float] = field(
        default_factory=lambda: {
            "points": 5e-4,
            "log_scales": 5e-3,
            "quats": 2e-3,
            "opacities": 2e-2,
            "colors": 5e-3,
            "camera": 5e-3,
        }
    )

    @classmethod
    def tiny(cls) -> Config:
        """For tests: two stages, 64 Gaussians."""
        return cls(stages=(Stage(8, 32, shrink=2, stride=2), Stage(8, 64, controls=5)))

    @classmethod
    def small(cls) -> Config:
        """Under a minute on two cores for 16 frames of 64 x 96."""
        return cls(
            stages=(
                Stage(120, 300, shrink=4, stride=4),
                Stage(120, 700, shrink=2, stride=2),
                Stage(160, 1100),
                Stage(400, 1500, controls=5),
            )
        )

    def flat(self) -> Config:
        """The same steps, Gaussians and control points, all at full size from the beginning."""
        last = self.stages[-1]
        steps = sum(stage.steps for stage in self.stages)
        return replace(self, stages=(Stage(steps, last.gaussians, controls=last.controls),))


class GaussianVideoHier(nn.Module):
    """A clip as 3D Gaussians on spline paths before a moving camera.

    Args:     config: `GaussianVideoHier.Config.tiny()`, `.small()` or your own.
    Shape:    clips are [B, T, H, W, 3] uint8. One model holds one clip: the B clips of a batch are taken as takes of
              the same scene. `fit` is the paper's procedure; `training_step` alone trains the scene as it is.
    Source:   Bond et al. 2025, arXiv 2501.04782.
    Example:
        >>> import torch
        >>> model = GaussianVideoHier(GaussianVideoHier.Config.tiny())
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
        first = config.stages[0]
        self.scene = vknn.HierarchicalGaussianVideo.from_video(
            grey, first.gaussians, controls=first.controls, camera=config.camera
        )

    def training_step(
        self, clip: Tensor, generator: torch.Generator | None = None, *, times: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One random frame against its rendering: {"loss": scalar}.

        Args:     clip: [B, T, H, W, 3] uint8.
                  generator: draws the frame.
                  times: [T] rising in [0, 1]; None: evenly.
        """
        if clip.dim() != 5 or clip.shape[4] != 3 or clip.dtype != torch.uint8 or 0 in clip.shape:
            raise ValueError(
                "GaussianVideoHier: expected `clip` of shape [B, T, H, W, 3] and dtype uint8, "
                f"got {list(clip.shape)} {str(clip.dtype).removeprefix('torch.')}.\n"
                "HINT: pass raw frames; add a batch axis with clip.unsqueeze(0)."
            )
        frames, height, width = clip.shape[1:4]
        times = _even_times(frames) if times is None else times
        device = "cpu" if generator is None else generator.device
        here = int(torch.randint(frames, (1,), generator=generator, device=device))
        image = self.scene(float(times[here]), (height, width))
        loss = torch.stack([vkf.photometric_loss(image, take[here], dssim=self.config.dssim) for take in clip]).mean()
        return {"loss": loss}

    def forward(self, clip: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        # What DistributedDataParallel calls.
        return self.training_step(clip, generator)

    def fit(
        self,
        video: Tensor,
        *,
        times: Tensor | None = None,
        generator: torch.Generator | None = None,
        callback: Callable[[int], None] | None = None,
    ) -> list[float]:
        """Represent a clip from the start, coarse to fine; returns the loss of every step.

        Args:     video: [T, H, W, 3] uint8.
                  times: [T] rising in [0, 1]; None: evenly. Leave frames out to have their times interpolated.
                  generator: source of all randomness.
                  callback: called after each step with its number.
        """
        config = self.config
        times = _even_times(len(video)) if times is None else torch.as_tensor(times, dtype=torch.float32)
        first = config.stages[0]
        small = _shrunk(video, first.shrink)
        self.scene = vknn.HierarchicalGaussianVideo.from_video(
            small, first.gaussians, controls=first.controls, camera=config.camera, generator=generator
        )
        groups = [{"params": [value], "lr": config.learning_rates[n]} for n, value in self.scene.gaussians.items()]
        if config.camera:
            groups.append({"params": list(self.scene.camera.parameters()), "lr": config.learning_rates["camera"]})
        optimizer = vknn.MultiTensorAdam(groups, eps=1e-15)
        # Coarse stages have far to go; only the last one settles.
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, config.final_rate ** (1 / config.stages[-1].steps))
        losses: list[float] = []
        for stage in config.stages:
            small = _shrunk(video, stage.shrink)
            # The last frame always takes part: without it the end of every path would be free.
            shown = sorted({*range(0, len(video), stage.stride), len(video) - 1})
            clip, when = small[shown].unsqueeze(0), times[shown]
            if losses:
                self._refine(stage, clip[0], when, optimizer, generator)
            for _ in range(stage.steps):
                loss = self.training_step(clip, generator, times=when)["loss"]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if stage is config.stages[-1]:
                    decay.step()
                losses.append(loss.item())
                if callback:
                    callback(len(losses))
        return losses

    @torch.no_grad()
    def _refine(self, stage: Stage, frames: Tensor, times: Tensor, optimizer, generator) -> None:
        """Prune, insert where the stage's pictures are worst, and insert control points."""
        scene, size = self.scene, tuple(frames.shape[1:3])
        control = vknn.DensityControl(
            scene.gaussians, optimizer, centre="points", min_opacity=self.config.min_opacity, max_count=stage.gaussians
        )
        control.prune()
        # A handful of moments see everything that stays in view for long.
        moments = torch.linspace(0, len(frames) - 1, min(8, len(frames))).round().long().tolist()
        for number, moment in enumerate(moments):
            time = float(times[moment])
            target = frames[moment].float() / 255
            error = (scene(time, size) - target).abs().mean(2)
            missing = (stage.gaussians - scene.count) // (len(moments) - number)
            pixels = sample_error(error, missing, generator)
            column, row = pixels.long().unbind(1)
            spacing = (4 * size[1] / size[0] / stage.gaussians) ** 0.5
            control.insert(scene.rows_at(pixels, target[row, column], time, size, 0.8 * spacing))
        while scene.gaussians["points"].shape[1] < stage.controls:
            scene.insert_controls(optimizer)


def _even_times(frames: int) -> Tensor:
    return torch.linspace(0, 1, frames) if frames > 1 else torch.zeros(1)


def _shrunk(video: Tensor, factor: int) -> Tensor:
    """Frames at 1 / factor of their size, at least one pixel, averaged over areas."""
    if factor == 1:
        return video
    size = [max(1, round(length / factor)) for length in video.shape[1:3]]
    small = F.interpolate(video.permute(0, 3, 1, 2).float(), size=size, mode="area")
    return small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
