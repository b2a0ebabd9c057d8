"""The properties that the hierarchical Gaussian video is known for, on a panning clip."""

from dataclasses import replace

import pytest
import torch

from vidkernels import methods
from vidkernels import nn as vknn

pytest.importorskip("torchdiffeq")

# Fixed before the method was first run on this clip.
FINITE_DIFFERENCE = 1e-3
CAMERA_GAIN_DB = 2.0
ABOVE_BLENDING_DB = 3.0
SHARE_OF_STEPS = 0.7

FRAMES, HEIGHT, WIDTH = 16, 64, 96
HELD_OUT = 8


def panning_clip():
    """[T, H, W, 3] in 0..1: a window that glides over a large still picture of waves and discs.

    As in natural pictures, a wave is the weaker the finer it is.
    """
    generator = torch.Generator().manual_seed(11)
    angle = torch.rand(24, generator=generator) * 6.28
    rate = 0.05 * 10 ** torch.rand(24, generator=generator)  # 0.05 to 0.5 radians a pixel
    frequency = torch.stack([angle.cos(), angle.sin()]) * rate
    phase = torch.rand(24, generator=generator) * 6.28
    amplitude = (torch.rand(24, 3, generator=generator) - 0.5) * 0.012 / rate.unsqueeze(1)
    centres = torch.rand(14, 2, generator=generator) * torch.tensor([WIDTH + 32.0, HEIGHT + 16.0])
    radii = 3 + 5 * torch.rand(14, generator=generator)
    colours = 0.2 + 0.6 * torch.rand(14, 3, generator=generator)
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    frames = []
    for t in torch.linspace(0, 1, FRAMES):
        # Starts and stops gently and sways: no single velocity describes it.
        window = torch.stack([32 * t * t * (3 - 2 * t), 8 + 6 * torch.sin(5 * t)])
        place = torch.stack([x, y], 2) + window
        frame = (0.5 + torch.sin(place @ frequency + phase) @ amplitude).clamp(0, 1)
        for centre, radius, colour in zip(centres, radii, colours):
            frame = torch.where(((place - centre).norm(dim=2) < radius).unsqueeze(2), colour, frame)
        frames.append(frame)
    return torch.stack(frames)


def psnr(a, b):
    return float(-10 * torch.log10((a.float() - b.float()).square().mean()))


KEPT = [t for t in range(FRAMES) if t != HELD_OUT]


def fit(config):
    video = (panning_clip() * 255).round().to(torch.uint8)
    torch.manual_seed(0)  # the camera's weights
    model = methods.get("gaussianvideo_hier")(config)
    torch.manual_seed(0)
    model.fit(video[KEPT], times=torch.tensor(KEPT) / (FRAMES - 1), generator=torch.Generator().manual_seed(0))
    return model


def fitted_psnr(model):
    rendered = model.scene.video([t / (FRAMES - 1) for t in KEPT], (HEIGHT, WIDTH))
    return psnr(rendered / 255, panning_clip()[KEPT])


@pytest.fixture(scope="module")
def coarse_to_fine():
    return fit(methods.get("gaussianvideo_hier").Config.small())


@pytest.mark.slow
def test_a_moving_camera_beats_a_still_one(coarse_to_fine):
    still = fit(replace(coarse_to_fine.config, camera=False))
    assert still.scene.count == coarse_to_fine.scene.count
    assert fitted_psnr(coarse_to_fine) > fitted_psnr(still) + CAMERA_GAIN_DB


@pytest.mark.slow
def test_a_frame_never_seen_beats_blending_its_neighbours(coarse_to_fine):
    video = panning_clip()
    rendered = coarse_to_fine.scene.video([HELD_OUT / (FRAMES - 1)], (HEIGHT, WIDTH))[0]
    blend = (video[HELD_OUT - 1] + video[HELD_OUT + 1]) / 2
    assert psnr(rendered / 255, video[HELD_OUT]) > psnr(blend, video[HELD_OUT]) + ABOVE_BLENDING_DB


@pytest.mark.slow
def test_coarse_to_fine_needs_fewer_steps(coarse_to_fine):
    config = coarse_to_fine.config
    steps = sum(stage.steps for stage in config.stages)
    flat = config.flat()
    # The flat fit gets more steps, of which the staged one's are less than the share.
    flat = replace(flat, stages=(replace(flat.stages[0], steps=int(steps / SHARE_OF_STEPS) + 1),))
    assert steps < SHARE_OF_STEPS * flat.stages[0].steps
    assert fitted_psnr(coarse_to_fine) >= fitted_psnr(fit(flat))


def test_gradients_match_finite_differences():
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    points = torch.cat([0.4 * normal(12, 5, 2), 2 + 0.2 * normal(12, 5, 1)], 2)
    model = vknn.HierarchicalGaussianVideo(points, -1.5 + 0.2 * normal(12, 3), 0.5 + 0.2 * normal(12, 3)).double()
    with torch.no_grad():
        model.gaussians["quats"] += 0.3 * normal(12, 4)
        model.gaussians["opacities"] += normal(12)
        for value in model.camera.parameters():
            value += 0.1 * normal(*value.shape)
    weights = normal(9, 13, 6)

    def loss():
        seen = model.render(0.37, (9, 13), flow_to=0.8)
        parts = torch.cat([seen.rgb, seen.depth.unsqueeze(2), seen.flow[0].permute(1, 2, 0)], 2)
        return (parts * weights).sum()

    loss().backward()
    for name, value in model.named_parameters():
        direction = normal(*value.shape)
        direction /= direction.norm()
        analytic = float((value.grad * direction).sum())
        start, step = value.detach().clone(), 1e-6
        with torch.no_grad():
            value.copy_(start + step * direction)
            above = float(loss())
            value.copy_(start - step * direction)
            below = float(loss())
            value.copy_(start)
        numeric = (above - below) / (2 * step)
        assert abs(analytic - numeric) < FINITE_DIFFERENCE * max(abs(numeric), 1e-3), name


def test_stages_grow_as_configured():
    cls = methods.get("gaussianvideo_hier")
    config = cls.Config.tiny()
    model = cls(config)
    video = torch.randint(0, 256, (5, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = []
    model.fit(
        video,
        generator=torch.Generator().manual_seed(0),
        callback=lambda step: seen.append((model.scene.count, model.scene.gaussians["points"].shape[1])),
    )
    first, last = config.stages
    assert seen[0] == (first.gaussians, first.controls)
    assert seen[-1][1] == last.controls
    assert first.gaussians < seen[-1][0] <= last.gaussians


def test_a_wrong_clip_is_named():
    cls = methods.get("gaussianvideo_hier")
    with pytest.raises(ValueError, match=r"expected `clip`[\s\S]*HINT"):
        cls(cls.Config.tiny()).training_step(torch.zeros(2, 4, 8, 8, 3))
