"""Video-3D LLM: coverage, codes of the world, and questions that only they can answer."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from vidkernels import functional as vkf
from vidkernels.data.scenes3d import Sphere, trace
from vidkernels.methods.tokens.video3d_llm import Video3DLLM

SIZE = 32
K = torch.tensor([[40.0, 0, 16], [0, 40, 16], [0, 0, 1]])
COLORS = ((1.0, 0.2, 0.2), (0.2, 1.0, 0.2), (0.25, 0.25, 1.0))


def look_at(eye, target):
    """World from camera, z towards the target, y down."""
    z = nn.functional.normalize(target - eye, dim=0)
    x = nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1, 0]), z), dim=0)
    pose = torch.eye(4)
    pose[:3, :3] = torch.stack([x, torch.linalg.cross(z, x), z], 1)
    pose[:3, 3] = eye
    return pose


def room(generator, frames=4):
    """Three balls of three colours, cameras that look at places which say nothing; the ball nearest to the origin."""
    while True:
        centers = torch.rand(3, 3, generator=generator) * 3 - 1.5
        away = centers.norm(dim=1)
        gap = away.sort().values.diff()[0]
        if torch.pdist(centers).min() > 0.9 and gap > 0.25:
            break
    radii = 0.3 + 0.15 * torch.rand(3, generator=generator)
    balls = [Sphere(c.tolist(), float(r), color) for c, r, color in zip(centers, radii, COLORS)]
    rgb, depth, poses = [], [], []
    for _ in range(frames):
        turn, high = torch.rand(2, generator=generator).tolist()
        eye = 4.5 * torch.tensor([math.cos(2 * math.pi * turn), high - 0.5, math.sin(2 * math.pi * turn)])
        pose = look_at(eye, torch.rand(3, generator=generator) * 2 - 1)
        seen = trace(balls, *vkf.pixel_rays(K, pose, (SIZE, SIZE)))
        rgb.append(seen["color"]), depth.append(seen["depth"]), poses.append(pose)
    boxes = torch.cat([centers - radii[:, None], centers + radii[:, None]], 1)
    return {
        "clip": (torch.stack(rgb) * 255).round().to(torch.uint8),
        "depth": torch.stack(depth),
        "poses": torch.stack(poses),
        "answer": away.argmin(),
        "boxes": boxes,
    }


def rooms(count, seed):
    generator = torch.Generator().manual_seed(seed)
    made = [room(generator) for _ in range(count)]
    return {key: torch.stack([m[key] for m in made]) for key in made[0]}


@pytest.fixture(scope="module")
def few():
    return rooms(12, 0)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors
    yield
    torch.set_num_threads(before)


def test_patches_lie_where_their_pixels_are(few):
    """Full patches of one ball lie on it (a patch of two balls lies between them)."""
    model = Video3DLLM(Video3DLLM.Config.tiny())
    points = model.patch_points(few["depth"], K, few["poses"])
    assert points.shape == (12, 4, 8, 8, 3)
    full = few["depth"].unflatten(3, (8, 4)).unflatten(2, (8, 4)).transpose(3, 4).flatten(4).isfinite().all(4)
    centers = (few["boxes"][..., :3] + few["boxes"][..., 3:]) / 2
    away = torch.cdist(points[full][None], centers.view(1, -1, 3))[0].amin(1)
    assert full.sum() > 50
    assert (away < 0.46).float().mean() > 0.95
    nothing = few["depth"].unflatten(3, (8, 4)).unflatten(2, (8, 4)).transpose(3, 4).flatten(4).isinf().all(4)
    assert torch.equal(points.isnan().any(4), nothing)


def test_a_point_has_one_code_from_every_camera(few):
    """Depth rounded to millimetres: codes of one world point differ by no more than the finest wave turns in one."""
    model = Video3DLLM(Video3DLLM.Config.tiny())
    step = 1e-3
    world = torch.rand(40, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    codes = []
    for pose in few["poses"][0]:
        inside = (world - pose[:3, 3]) @ pose[:3, :3]
        found = []
        for x, y, z in inside:
            # A one-pixel picture whose only ray goes through the point.
            k = torch.tensor([[28.0, 0, 0.5 - 28 * x / z], [0, 28, 0.5 - 28 * y / z], [0, 0, 1]])
            depth = (z / step).round() * step
            found.append(model.world(depth.view(1, 1, 1, 1), k, pose.view(1, 1, 4, 4)).view(3))
        codes.append(model.position_code(torch.stack(found)))
    # Half a step of depth along a ray that is up to sqrt(1 + slope^2) longer, seen from two cameras.
    slope = max(float((inside[:, :2] / inside[:, 2:]).norm(dim=1).max()) for inside in
                [(world - p[:3, 3]) @ p[:3, :3] for p in few["poses"][0]])  # fmt: skip
    bound = step * math.sqrt(1 + slope**2) * 2 * math.pi / model.config.finest
    for a, b in itertools.combinations(codes, 2):
        assert (a - b).abs().max() < bound
    far = model.position_code(world.roll(1, 0))
    assert (codes[0] - far).abs().amax(1).min() > 10 * bound


def test_coverage_beats_uniform_frames_and_keeps_the_bound(few):
    model = Video3DLLM(replace(Video3DLLM.Config.tiny(), coverage=1.0))
    seen = model.visited(model.world(few["depth"], K, few["poses"]))
    chosen = model.choose_frames(few["depth"], K, few["poses"])
    greedy, uniform = [], []
    for b in range(12):
        covered = lambda frames: int(seen[b][list(frames)].any(0).sum())  # noqa: B023, E731
        mine = covered(f for f in chosen[b].tolist() if f >= 0)
        best = max(covered(pair) for pair in itertools.combinations(range(4), 2))
        assert mine >= 0.75 * best  # 1 - (1 - 1/2)^2
        greedy.append(mine), uniform.append(covered((0, 2)))
    assert sum(greedy) > 1.05 * sum(uniform)
    assert (chosen[:, 1] > chosen[:, 0]).logical_or(chosen[:, 1] < 0).all()


def test_frames_that_add_nothing_are_not_read(few):
    """The same frame four times is as good as once, and the rest of the batch does not matter."""
    torch.manual_seed(0)
    model = Video3DLLM(Video3DLLM.Config.tiny())
    one = {key: few[key][:1, :1] for key in ("clip", "depth", "poses")}
    still = {key: value.expand(-1, 4, *value.shape[2:]) for key, value in one.items()}
    question = torch.zeros(1, 1, dtype=torch.int64)
    assert model.choose_frames(still["depth"], K, still["poses"]).tolist() == [[0, -1]]
    a = model.answer(one["clip"], one["depth"], K, one["poses"], question)
    b = model.answer(still["clip"], still["depth"], K, still["poses"], question)
    torch.testing.assert_close(a, b)
    both = {key: torch.cat([still[key], few[key][1:2]]) for key in still}
    c = model.answer(both["clip"], both["depth"], K, both["poses"], question.expand(2, 1))
    torch.testing.assert_close(c[:1], a)
    nothing = torch.full_like(one["depth"], torch.inf)
    assert model.answer(one["clip"], nothing, K, one["poses"], question).isfinite().all()


def test_bad_clip_is_named():
    with pytest.raises(ValueError, match="multiples of 4"):
        Video3DLLM(Video3DLLM.Config.tiny()).training_step(torch.zeros(1, 2, 15, 16, 3, dtype=torch.uint8))


@pytest.mark.slow
def test_which_object_is_nearest_needs_the_codes(one_thread):
    data, held_out = rooms(1000, 1), rooms(200, 2)
    score, boxed = {}, {}
    for codes in (True, False):
        torch.manual_seed(0)
        model = Video3DLLM(replace(Video3DLLM.Config.tiny(), codes=codes))
        steps = 200
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        generator = torch.Generator().manual_seed(3)
        for _ in range(steps):
            pick = torch.randint(1000, (24,), generator=generator)
            batch = {key: value[pick] for key, value in data.items()}
            question = torch.full((24, 1), 5)
            loss = model.training_step(
                batch["clip"], depth=batch["depth"], k=K, poses=batch["poses"], question=question,
                answer=batch["answer"], boxes=batch["boxes"], target=batch["answer"],
            )["loss"]  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            scene = (held_out["clip"], held_out["depth"], K, held_out["poses"], torch.full((200, 1), 5))
            score[codes] = float((model.answer(*scene).argmax(1) == held_out["answer"]).float().mean())
            fit = model.ground(model.read(*scene), held_out["boxes"])
            boxed[codes] = float((fit.argmax(1) == held_out["answer"]).float().mean())
    print(score, boxed)
    assert score[True] > 0.8
    assert score[False] < 1 / 3 + 0.15
    assert boxed[True] > 0.8
