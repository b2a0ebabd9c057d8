"""IM-Portrait: planes in the frame's own camera are plain compositing; planes in the reference camera learn depth."""

import math
from dataclasses import replace

import pytest
import torch

from vidkernels import functional as vkf
from vidkernels.data.scenes3d import Plane, trace
from vidkernels.methods.splatting.im_portrait import IMPortrait

Config = IMPortrait.Config
SIZE = 24
K = torch.tensor([[24.0, 0, 12], [0, 24, 12], [0, 0, 1]])
NEAR, FAR = 1.5, 4.0
SCENE = [
    Plane((0.1, 0.0, NEAR), (0, 0, -1), (1.0, 0.55, 0.2), radius=0.4, texture=9.0),
    Plane((0.0, 0.0, FAR), (0, 0, -1), (0.3, 0.7, 1.0), texture=3.0),
]


def shot(x, y):
    """A camera moved in its own plane: the frame, and the pose from the coordinates of the camera at rest."""
    to_world = torch.eye(4)
    to_world[:2, 3] = torch.tensor([x, y])
    color = trace(SCENE, *vkf.pixel_rays(K, to_world, (SIZE, SIZE)))["color"]
    return color, torch.linalg.inv(to_world)


def circle(count, phase):
    shots = [
        shot(0.3 * math.cos(a), 0.3 * math.sin(a)) for i in range(count) for a in [2 * math.pi * (i + phase) / count]
    ]
    return torch.stack([c for c, _ in shots]), torch.stack([p for _, p in shots])


def effective_planes(weights):
    """exp(entropy) of the mean weights of the planes: 1 = one plane does it all."""
    share = weights.flatten(0, -2).mean(0)
    share = share / share.sum()
    return float((-(share * share.clamp(min=1e-12).log()).sum()).exp())


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors
    yield
    torch.set_num_threads(before)


def test_identity_camera_equals_plain_compositing():
    model = IMPortrait(Config.tiny())
    planes = torch.rand(2, 3, 4, 10, 12, 4)
    k, still = torch.tensor([[12.0, 0, 6], [0, 12, 5], [0, 0, 1]]), torch.eye(4).expand(2, 3, 4, 4)
    for a, b in zip(model.compose(planes, k, still, "reference"), model.compose(planes, k, still, "target")):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_step_learns_in_both_spaces_and_a_sample_has_planes():
    frames, poses = circle(3, 0.0)
    clip = (frames * 255).round().to(torch.uint8)[None]
    for space in ("target", "reference"):
        model = IMPortrait(replace(Config.tiny(), spaces=(space,)))
        out = model.training_step(clip, torch.Generator().manual_seed(0), poses=poses[None], k=K)
        out["loss"].backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
        assert out["weights"].sum() <= 1 + 1e-5
    planes = model.sample(clip[:, 0], poses[None], K, steps=2)
    assert planes.shape == (1, 3, 4, SIZE, SIZE, 4)
    assert planes.min() >= 0
    assert planes.max() <= 1


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match=r"`spaces`[\s\S]*HINT"):
        replace(Config.tiny(), spaces=("source",))
    with pytest.raises(ValueError, match="uint8"):
        IMPortrait(Config.tiny()).training_step(torch.zeros(1, 2, 16, 16, 3))


def trained(spaces, steps=500):
    torch.manual_seed(0)
    model = IMPortrait(replace(Config.tiny(), spaces=spaces))
    frames, poses = circle(8, 0.0)
    rest, _ = shot(0.0, 0.0)
    clip = (frames * 255).round().to(torch.uint8)[None]
    reference = (rest * 255).round().to(torch.uint8)[None]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model.training_step(clip, generator, poses=poses[None], k=K, reference=reference)["loss"].backward()
        optimizer.step()
        schedule.step()
    return model, reference


def held_out(model, reference, space):
    """One multiplane image at the reference camera, seen from cameras between those of the training."""
    still = torch.eye(4)[None, None]
    planes = model.sample(reference, still, K, space=space, generator=torch.Generator().manual_seed(2))
    frames, poses = circle(8, 0.5)
    image, _ = model.render(planes.expand(1, 8, -1, -1, -1, -1), K, poses[None])
    inner = slice(5, -5)  # the reference camera saw nothing beyond its own border
    error = (image[0, :, inner, inner] - frames[:, inner, inner]).square().mean()
    weights = model.compose(planes, K, still, space)[1]
    return float(-10 * error.log10()), effective_planes(weights)


@pytest.mark.slow
def test_random_space_training_learns_depth_that_target_space_training_does_not(one_thread):
    both, planes_both = held_out(*trained(("target", "reference")), "reference")
    target, planes_target = held_out(*trained(("target",)), "target")
    print(
        f"held-out: random space {both:.2f} dB, {planes_both:.2f} planes; target {target:.2f} dB, {planes_target:.2f}"
    )
    assert both >= target + 2.0
    assert planes_target < 1.3
    assert planes_both > 1.5
