"""The property that the canonical Gaussian video is known for, on two textured layers with exact priors."""

import pytest
import torch

from vidkernels import methods
from vidkernels.methods.splatting.splatter_a_video import Priors

# Fixed before the method was first run on this clip.
PSNR_DB = 30.0
FLOW_ERROR_PX = 0.5
ABOVE_BLENDING_DB = 3.0
REMOVED_DB = 25.0

FRAMES, HEIGHT, WIDTH = 16, 64, 96
HELD_OUT = 8
FAR_STEP, NEAR_STEP = torch.tensor([-0.6, 0.25]), torch.tensor([2.1, -0.5])  # pixels a frame
START, RADIUS = torch.tensor([30.0, 36.0]), 13.0


def waves(generator, longest):
    """A texture as a function of the place: sines of up to `longest` radians a pixel."""
    frequency = (torch.rand(2, 8, generator=generator) * 2 - 1) * longest
    phase = torch.rand(8, generator=generator) * 6.28
    amplitude = (torch.rand(8, 3, generator=generator) - 0.5) * 0.5

    def texture(place):
        return (0.5 + torch.sin(place @ frequency + phase) @ amplitude).clamp(0, 1)

    return texture


def two_layers():
    """A disc that moves over a background that moves the other way, with everything known exactly."""
    generator = torch.Generator().manual_seed(7)
    far, near = waves(generator, 0.35), waves(generator, 0.7)
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    place = torch.stack([x, y], 2)
    video, masks, background = [], [], []
    for t in range(FRAMES):
        own = place - (START + NEAR_STEP * t)
        mask = own.norm(dim=2) < RADIUS
        behind = far(place - FAR_STEP * t)
        video.append(torch.where(mask.unsqueeze(2), near(own), behind))
        masks.append(mask)
        background.append(behind)
    return tuple(torch.stack(part) for part in (video, masks, background))


def psnr(a, b):
    return float(-10 * torch.log10((a.float() - b.float()).square().mean()))


def as_bytes(video):
    return (video * 255).round().to(torch.uint8)


def priors_of(masks, steps):
    """Exact depth, labels and flow; `steps` [T - 1] frames from each given frame to the next."""
    step = torch.where(masks[:-1, ..., None], NEAR_STEP, FAR_STEP) * steps.view(-1, 1, 1, 1)
    return Priors(flow=step.permute(0, 3, 1, 2).contiguous(), depth=torch.where(masks, 1.0, 2.0), labels=masks.long())


@pytest.fixture(scope="module")
def fitted():
    video, masks, _ = two_layers()
    kept = torch.tensor([t for t in range(FRAMES) if t != HELD_OUT])
    cls = methods.get("splatter_a_video")
    model = cls(cls.Config.small())
    model.fit(
        as_bytes(video[kept]),
        times=kept / (FRAMES - 1),
        priors=priors_of(masks[kept], kept.diff()),
        generator=torch.Generator().manual_seed(0),
    )
    return model


@pytest.mark.slow
def test_two_layers_are_reproduced(fitted):
    video, _, _ = two_layers()
    kept = [t for t in range(FRAMES) if t != HELD_OUT]
    rendered = fitted.scene.video([t / (FRAMES - 1) for t in kept], (HEIGHT, WIDTH))
    assert psnr(rendered / 255, video[kept]) >= PSNR_DB


@pytest.mark.slow
def test_rendered_flow_is_the_true_motion(fitted):
    _, masks, _ = two_layers()
    errors = []
    for t in range(FRAMES - 1):
        truth = torch.where(masks[t, ..., None], NEAR_STEP, FAR_STEP).permute(2, 0, 1)
        flow = fitted.scene.flow(t / (FRAMES - 1), (t + 1) / (FRAMES - 1), (HEIGHT, WIDTH))
        errors.append((flow - truth).norm(dim=0).mean())
    assert torch.stack(errors).mean() < FLOW_ERROR_PX


@pytest.mark.slow
def test_a_frame_never_seen_beats_blending_its_neighbours(fitted):
    video, _, _ = two_layers()
    rendered = fitted.scene.video([HELD_OUT / (FRAMES - 1)], (HEIGHT, WIDTH))[0]
    blend = (video[HELD_OUT - 1] + video[HELD_OUT + 1]) / 2
    assert psnr(rendered / 255, video[HELD_OUT]) >= psnr(blend, video[HELD_OUT]) + ABOVE_BLENDING_DB


@pytest.mark.slow
def test_without_the_near_layer_the_true_background_shows(fitted):
    video, masks, background = two_layers()
    shown = (0, 5, 10, 15)
    times = [t / (FRAMES - 1) for t in shown]
    near = fitted.scene.select_by_mask(masks[list(shown)], times)
    alone = fitted.scene.edited(near, remove=True).video(times, (HEIGHT, WIDTH)) / 255
    for frame, t in zip(alone, shown):
        # Where the disc was, and the background is seen at some other time.
        hole = masks[t]
        assert psnr(frame[hole], background[t][hole]) >= REMOVED_DB
        assert psnr(video[t][hole], background[t][hole]) < REMOVED_DB - 10
