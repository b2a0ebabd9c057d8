"""HOSNeRF: an object goes from the table to the hand; state codes tell the two apart, and can be exchanged."""

import math
from dataclasses import replace

import pytest
import torch

from vidkernels import functional as vkf
from vidkernels.data.scenes3d import Plane, Sphere, trace
from vidkernels.methods.splatting.hosnerf import HOSNeRF

SIZE, FRAMES, CHANGE = 24, 12, 6
K = torch.tensor([[24.0, 0, 12], [0, 24, 12], [0, 0, 1]])
CONFIG = replace(HOSNeRF.Config.tiny(), changes=(CHANGE,))
HEADS, TAILS = torch.tensor(CONFIG.heads), torch.tensor(CONFIG.tails)
OBJECT_AT_REST, ON_THE_TABLE = torch.tensor([0.75, 0.0, 3.0, 1.0]), (0.6, 0.34, 2.9)


def pose_of(t):
    """The arm swings down to the table and up again; the camera sways. Bones [K, 3, 3], root [3], camera [4, 4]."""

    def turn(a):
        return torch.tensor([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1.0]])

    reach = max(0.0, 1 - abs(t - CHANGE + 0.5) / 3)
    rotations = torch.stack([turn(-0.8 + 0.85 * reach), turn(-0.6 + 0.9 * reach), torch.eye(3)])
    sway = 0.12 * math.sin(2 * math.pi * t / FRAMES)
    camera = torch.eye(4)
    camera[0, 0] = camera[2, 2] = math.cos(sway)
    camera[0, 2], camera[2, 0] = -math.sin(sway), math.sin(sway)
    camera[:3, 3] = torch.tensor([0, 0, 3.0]) - 3.0 * camera[:3, 2]
    return rotations, torch.zeros(3), camera


def truth(t, held, camera=None):
    """The frame at t with the object in the hand or on the table."""
    rotations, root, still = pose_of(t)
    motion = vkf.bone_transforms(HEADS, CONFIG.parents, rotations, root)
    shapes = [
        Plane((0, 0.6, 0), (0, -1, 0), (0.5, 0.35, 0.25)),
        Plane((0, 0, 5.5), (0, 0, -1), (0.35, 0.45, 0.6), texture=1.5),
    ]
    for bone in (0, 1):
        for part in torch.linspace(0, 1, 6):
            at = HEADS[bone] + part * (TAILS[bone] - HEADS[bone])
            shapes.append(Sphere((motion[bone] @ torch.cat([at, torch.ones(1)]))[:3].tolist(), 0.13, (0.9, 0.65, 0.5)))
    place = (motion[2] @ OBJECT_AT_REST)[:3].tolist() if held else ON_THE_TABLE
    shapes.append(Sphere(place, 0.26, (0.95, 0.95, 0.1)))
    return trace(shapes, *vkf.pixel_rays(K, still if camera is None else camera, (SIZE, SIZE)))["color"]


def psnr(a, b):
    return float(-10 * (a - b).square().mean().log10())


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors
    yield
    torch.set_num_threads(before)


def test_states_follow_the_intervals():
    model = HOSNeRF(replace(CONFIG, changes=(2, 5)))
    assert [model.state_of(t) for t in range(7)] == [0, 0, 1, 1, 1, 2, 2]
    assert model.person.codes.shape[0] == model.scene.codes.shape[0] == 3


def test_ray_weights_share_out_one_and_layers_are_one_sorted_composite(generator):
    torch.manual_seed(0)
    model = HOSNeRF(CONFIG).eval()
    rotations, root, camera = pose_of(4)
    origins, directions = (r.reshape(-1, 3)[::7] for r in vkf.pixel_rays(K, camera, (SIZE, SIZE)))
    with torch.no_grad():
        out, weights, person = model.render(origins, directions, rotations, root, 1)
        assert (weights.sum(1) <= 1 + 1e-5).all()
        assert (person <= weights.sum(1) + 1e-5).all()
        assert person.max() > 0.01
        samples = []
        for layer, field in zip(model.renderer.layers, model.fields(rotations, root, 1)):
            density, color, t = layer.sample(field, origins, directions)
            samples.append(((t[:, 1:] + t[:, :-1]) / 2, 1 - torch.exp(-density * t.diff(dim=1)), color))
        depth, alpha, color = (torch.cat(parts, 1).double() for parts in zip(*samples))
        for r in range(len(out)):  # one list, sorted, by a plain loop
            keep, total = 1.0, torch.zeros(3, dtype=torch.float64)
            for s in depth[r].argsort().tolist():
                total, keep = total + keep * alpha[r, s] * color[r, s], keep * (1 - alpha[r, s])
            torch.testing.assert_close(out[r].double(), total, rtol=0, atol=1e-5)


def fitted(changes, steps=700):
    torch.manual_seed(0)
    model = HOSNeRF(replace(CONFIG, changes=changes))
    clip = torch.stack([truth(t, t >= CHANGE) for t in range(FRAMES)]).mul(255).round().to(torch.uint8)[None]
    rotations, root, cameras = (torch.stack(part) for part in zip(*(pose_of(t) for t in range(FRAMES))))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model.training_step(
            clip, generator, k=K, poses=cameras, rotations=rotations, translation=root
        )["loss"].backward()  # fmt: skip
        optimizer.step()
        schedule.step()
    return model.eval()


@pytest.mark.slow
def test_state_codes_hold_the_object(one_thread):
    near = range(CHANGE - 2, CHANGE + 2)
    scores = []
    for changes in ((CHANGE,), ()):
        model = fitted(changes)
        images = {}
        for t in near:
            rotations, root, camera = pose_of(t)
            images[t] = model.image(K, camera, (SIZE, SIZE), rotations, root, model.state_of(t))
        error = torch.stack([(images[t] - truth(t, t >= CHANGE)).square().mean() for t in near]).mean()
        scores.append(float(-10 * error.log10()))
        if changes:  # exchange the codes: the object goes to the other place, all else stays
            moved = []
            for t in near:
                rotations, root, camera = pose_of(t)
                other = model.image(K, camera, (SIZE, SIZE), rotations, root, 1 - model.state_of(t))
                moved.append((psnr(other, truth(t, t < CHANGE)), psnr(images[t], truth(t, t < CHANGE))))
    print("near the change, dB: with codes", scores[0], "without", scores[1], "exchanged", moved)
    assert scores[0] >= scores[1] + 2.0
    for exchanged, kept in moved:
        assert exchanged >= kept + 2.0
