"""VPD: rollouts in pixels beat a 2D predictor; particles can be deleted; unseen cameras can look."""

import math

import pytest
import torch
from torch import nn

from vidkernels import functional as vkf
from vidkernels.data.scenes3d import Sphere, trace
from vidkernels.methods.splatting.vpd import VPD

SIZE = 24
K = torch.tensor([[30.0, 0, 12], [0, 30, 12], [0, 0, 1]])
MIDDLE, WALL, RADIUS = 4.0, 0.8, 0.35
COLORS = ((1.0, 0.3, 0.2), (0.2, 0.5, 1.0))


def camera(degrees):
    """World from camera, looking at the middle of the box from `degrees` to the side."""
    a = math.radians(degrees)
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[math.cos(a), 0, -math.sin(a)], [0, 1, 0], [math.sin(a), 0, math.cos(a)]])
    pose[:3, 3] = torch.tensor([0, 0, MIDDLE]) - MIDDLE * pose[:3, 2]
    return pose


VIEWS = torch.stack([camera(0), camera(120), camera(240)])
UNSEEN = camera(60)


def look(balls, pose):
    shapes = [Sphere((*b[:2].tolist(), float(b[2]) + MIDDLE), RADIUS, c) for b, c in zip(balls, COLORS)]
    return trace(shapes, *vkf.pixel_rays(K, pose, (SIZE, SIZE)))


def bounce(generator, frames, apart=False):
    """Centres [T, 2, 3] of two balls in a box: straight lines, mirrored at the walls; they start on two sides."""
    at = torch.rand(2, 3, generator=generator) * 0.6 - 0.3
    at[:, 0] = torch.tensor([-0.6, 0.6]) + 0.1 * at[:, 0]
    speed = (torch.rand(2, 3, generator=generator) - 0.5) * 0.12
    if apart:  # they stay at their walls
        at[:, 0], speed[:, 0] = torch.tensor([-0.8, 0.8]), 0
    path = []
    for _ in range(frames):
        path.append(at)
        at = at + speed
        beyond = at.abs() > WALL
        speed = torch.where(beyond, -speed, speed)
        at = torch.where(beyond, at.sign() * 2 * WALL - at, at)
    return torch.stack(path)


def film(path, poses):
    seen = [[look(balls, pose) for pose in poses] for balls in path]
    rgb = torch.stack([torch.stack([s["color"] for s in row]) for row in seen])
    depth = torch.stack([torch.stack([s["depth"] for s in row]) for row in seen])
    return (rgb * 255).round().to(torch.uint8), depth


def psnr(a, b):
    return float(-10 * (a - b).square().mean().log10())


class Flat(nn.Module):
    """The 2D predictor: two RGB-D frames in, what changes until the next one out."""

    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(8, width, 5, padding=2), nn.SiLU(), nn.Conv2d(width, width, 5, padding=2), nn.SiLU(),
            nn.Conv2d(width, width, 5, padding=2), nn.SiLU(), nn.Conv2d(width, 4, 5, padding=2),
        )  # fmt: skip

    def rollout(self, first, second, steps):
        frames = [first, second]
        for _ in range(steps):
            frames.append(frames[-1] + self.net(torch.cat(frames[-2:], 1)))
        return frames[2:]


def flat_input(rgb, depth):
    """[T, V, H, W, 3] and depth -> [T, V, 4, H, W] in 0..1."""
    near = (1 / depth).nan_to_num(posinf=0)[..., None]
    return torch.cat([rgb.float() / 255, near], -1).permute(0, 1, 4, 2, 3)


def size_of(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors
    yield
    torch.set_num_threads(before)


def test_particles_lie_on_the_balls_and_keep_their_colour():
    model = VPD(VPD.Config.tiny())
    path = bounce(torch.Generator().manual_seed(0), 1)
    rgb, depth = film(path, VIEWS)
    points, features = model.encode(rgb[0], depth[0], K, VIEWS)
    assert 60 < len(points) <= VPD.Config.tiny().particles
    centers = path[0] + torch.tensor([0, 0, MIDDLE])
    away = torch.cdist(points, centers)
    assert (away.amin(1) - RADIUS).abs().max() < 1e-3
    assert torch.equal(features[:, 0] > features[:, 2], away.argmin(1) == 0)


def test_deleted_ball_is_gone_and_the_other_goes_on_unchanged():
    """By construction, for any weights: the balls are farther apart than a message reaches."""
    torch.manual_seed(0)
    model = VPD(VPD.Config.tiny()).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    path = bounce(torch.Generator().manual_seed(1), 4, apart=True)
    rgb, depth = film(path, VIEWS)
    states = [model.encode(rgb[t], depth[t], K, VIEWS) for t in (0, 1)]
    left = [s[0][:, 0] < 0 for s in states]
    # The nearest particles of the two balls; messages travel `reach`.
    gap = torch.cdist(states[1][0][left[1]], states[1][0][~left[1]]).min()
    assert gap > VPD.Config.tiny().reach
    both = model.rollout(*states, 2)
    alone = model.rollout(*[(p[m], f[m]) for (p, f), m in zip(states, left)], 2)
    for (p, f), (q, g) in zip(both, alone):
        torch.testing.assert_close(p[left[1]], q, rtol=0, atol=1e-5)
        torch.testing.assert_close(f[left[1]], g, rtol=0, atol=1e-5)
        assert (q - states[1][0][left[1]]).abs().max() > 1e-3


@pytest.mark.slow
def test_rollouts_beat_a_2d_predictor_and_unseen_cameras_work(one_thread):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(3)
    films = [film(bounce(generator, 8), VIEWS) for _ in range(40)]
    model = VPD(VPD.Config.tiny())
    flat = Flat(21)
    assert 0.95 < size_of(flat) / size_of(model) < 1.05
    for net, steps in ((model, 220), (flat, 220)):
        # Noise in the dynamics adds up over a rollout, so they learn more slowly than the rest.
        slow = [p for name, p in net.named_parameters() if name.startswith("dynamics")]
        rest = [p for name, p in net.named_parameters() if not name.startswith("dynamics")]
        groups = [{"params": rest, "lr": 3e-3}, {"params": slow, "lr": 5e-4}]
        optimizer = torch.optim.Adam([group for group in groups if group["params"]])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            pick = torch.randint(len(films), (2,), generator=generator).tolist()
            start = int(torch.randint(2, (), generator=generator))
            rgb, depth = (torch.stack([films[i][part][start : start + 7] for i in pick]) for part in (0, 1))
            if net is model:
                loss = model.training_step(rgb, generator, depth=depth, k=K, poses=VIEWS)["loss"]
            else:
                clips = torch.cat([flat_input(r, d) for r, d in zip(rgb, depth)], 1)
                predicted = torch.stack(flat.rollout(clips[0], clips[1], 5))
                loss = (predicted - clips[2:]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()
    scores = {"particles": [], "flat": [], "unseen": [], "copy": []}
    with torch.no_grad():
        for seed in range(6):
            path = bounce(torch.Generator().manual_seed(100 + seed), 12)
            rgb, depth = film(path, VIEWS)
            states = [model.encode(rgb[t], depth[t], K, VIEWS) for t in (0, 1)]
            last = model.rollout(*states, 10)[-1]
            image = torch.stack([model.render(last, K, pose, (SIZE, SIZE)) for pose in VIEWS])
            truth = rgb[11].float() / 255
            clip = flat_input(rgb, depth)
            guess = flat.rollout(clip[0], clip[1], 10)[-1][:, :3].permute(0, 2, 3, 1)
            scores["particles"].append(psnr(image, truth))
            scores["flat"].append(psnr(guess, truth))
            new = look(path[1], UNSEEN)["color"]
            scores["unseen"].append(psnr(model.render(states[1], K, UNSEEN, (SIZE, SIZE)), new))
            scores["copy"].append(max(psnr(rgb[1, v].float() / 255, new) for v in range(3)))
        # Deleting the red ball removes its pixels from a rollout, too.
        red = states[1][1][:, 0] > states[1][1][:, 2]
        first_red = states[0][1][:, 0] > states[0][1][:, 2]
        kept = [(p[~m], f[~m]) for (p, f), m in zip(states, (first_red, red))]
        was_red = look(path[4], VIEWS[0])["ids"] == 0
        whole, without = (
            model.render(model.rollout(*pair, 3)[-1], K, VIEWS[0], (SIZE, SIZE))[was_red].mean()
            for pair in (states, kept)
        )
        assert without < 0.1 * whole
    mean = {name: sum(values) / len(values) for name, values in scores.items()}
    print({name: round(value, 2) for name, value in mean.items()})
    assert mean["particles"] > mean["flat"]
    assert mean["unseen"] > mean["copy"]
