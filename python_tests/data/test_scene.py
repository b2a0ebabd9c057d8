import pytest
import torch
from torch.nn import functional as F

from vidkernels.data import SceneEngine


def seeded(number):
    return torch.Generator().manual_seed(number)


def test_shapes_and_seed():
    engine = SceneEngine(6, (40, 56), 4)
    clip = engine(seeded(0))
    assert clip["video"].shape == (6, 40, 56, 3)
    assert clip["video"].dtype == torch.uint8
    assert clip["masks"].shape == (4, 6, 40, 56)
    assert clip["masks"].dtype == torch.bool
    assert clip["flow"].shape == (5, 2, 40, 56)
    assert clip["depth"].shape == clip["ids"].shape == (6, 40, 56)
    assert clip["boxes"].shape == (4, 6, 4)
    assert clip["visible"].shape == (4, 6)
    again, other = engine(seeded(0)), engine(seeded(1))
    assert all(torch.equal(clip[name], again[name]) for name in clip)
    assert not torch.equal(clip["video"], other["video"])


@pytest.mark.parametrize("mode", ["constant", "gravity", "bounce"])
def test_ground_truth_agrees_with_itself(mode):
    for number in range(5):
        clip = SceneEngine(8, 64, 3, mode)(seeded(number))
        masks, ids, depth = clip["masks"], clip["ids"], clip["depth"]
        assert masks.sum(0).max() <= 1, "a pixel shows one thing"
        assert torch.equal(masks.any(0), ids > 0)
        assert (depth[ids == 0] == 1).all()
        depths = [depth[masks[k]].unique() for k in range(3)]
        assert all(len(values) <= 1 for values in depths)
        for k in range(3):
            for t in range(8):
                y, x = masks[k, t].nonzero(as_tuple=True)
                box = [0, 0, 0, 0]
                if len(x):
                    box = [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]
                assert clip["boxes"][k, t].tolist() == box
                assert bool(clip["visible"][k, t] > 0) == bool(len(x))
        assert clip["visible"].max() <= 1
        for t in range(7):
            for k in range(3):
                step = (clip["position"][k, t + 1] - clip["position"][k, t]).float()
                seen = clip["flow"][t][:, masks[k, t]]
                assert torch.equal(seen, step[:, None].expand_as(seen))
            assert not clip["flow"][t][:, ids[t] == 0].any()


def test_nearer_sprites_cover_farther_ones():
    hidden = 0
    for number in range(20):
        clip = SceneEngine(4, 48, 6, radius=(0.2, 0.3))(seeded(number))
        nearest = torch.stack(
            [clip["depth"][clip["masks"][k]].min() if clip["masks"][k].any() else torch.tensor(2.0) for k in range(6)]
        )
        front = int(nearest.argmin())
        x, y = clip["position"][front, 2].round().long().tolist()
        assert clip["ids"][2, y, x] == front + 1, "the nearest sprite is seen at its own centre"
        hidden += int((clip["visible"] < 0.999).sum())
    assert hidden > 20, "the scenes must contain occlusion"


@pytest.mark.parametrize("mode", ["constant", "gravity", "bounce"])
def test_flow_carries_each_pixel_to_its_colour(mode):
    """Colours of frame t are found in frame t + 1 where the flow points, wherever the sprite is still seen there."""
    carried = still = 0.0
    for number in range(4):
        clip = SceneEngine(6, 96, 3, mode, speed=(3.0, 5.0))(seeded(number))
        video = clip["video"].permute(0, 3, 1, 2).double()
        y, x = torch.meshgrid(*(torch.arange(96.0, dtype=torch.float64),) * 2, indexing="ij")
        for t in range(5):
            target = torch.stack([x, y]) + clip["flow"][t]
            grid = ((target + 0.5) / 96 * 2 - 1).permute(1, 2, 0)[None]
            there = F.grid_sample(video[t + 1 : t + 2], grid, align_corners=False)[0]
            for mask in clip["masks"]:
                alone = F.grid_sample(mask[t + 1 : t + 2, None].double(), grid, align_corners=False)[0, 0]
                valid = mask[t] & (alone > 0.999)
                if valid.sum() > 50:
                    error = (there - video[t])[:, valid].abs()
                    assert error.max() < 4, "interpolating a wave of 10 pixels and rounding to 8 bits"
                    carried += float(error.mean())
                    still += float((video[t + 1] - video[t])[:, valid].abs().mean())
    assert carried < 0.1 * still


def test_constant_motion_has_no_acceleration_and_stays_inside():
    clip = SceneEngine(10, 100, 5, "constant", speed=(2.0, 2.0))(seeded(2))
    steps = clip["position"].diff(dim=1)
    assert torch.allclose(steps, steps[:, :1].expand_as(steps), atol=1e-12)
    assert torch.allclose(steps.norm(dim=2), torch.tensor(2.0, dtype=torch.float64))
    assert clip["position"].min() >= 0
    assert clip["position"].max() <= 99


def test_gravity_is_the_same_in_every_clip():
    for number in range(5):
        clip = SceneEngine(12, 64, 3, "gravity")(seeded(number))
        pull = clip["position"].diff(dim=1).diff(dim=1)
        assert torch.allclose(pull, torch.tensor([0.0, 0.256], dtype=torch.float64).expand_as(pull), atol=1e-9)


def test_bounce_loses_energy_and_keeps_to_the_frame():
    engine = SceneEngine(200, 64, 3, "bounce")
    for number in range(4):
        clip = engine(seeded(number))
        radius = clip["radius"][:, None]
        position = clip["position"]
        assert (position[..., 1] <= 63 - radius + 1e-9).all()
        assert (position[..., 0] >= radius - 1e-9).all()
        assert (position[..., 0] <= 63 - radius + 1e-9).all()
        height = 63 - radius - position[..., 1]
        early, late = height[:, :30].amax(1), height[:, -30:].amax(1)
        assert (late < 0.6 * early).all(), "bounces get lower"
        assert (late < 0.1 * early).any(), late / early


def test_appearance_and_motion_are_independent():
    engine = SceneEngine(5, 48, 2)
    a = engine(seeded(1), appearance=seeded(10))
    b = engine(seeded(1), appearance=seeded(11))
    c = engine(seeded(2), appearance=seeded(10))
    assert torch.equal(a["position"], b["position"])
    assert not torch.equal(a["video"], b["video"])
    assert torch.equal(a["shape"], c["shape"])
    assert not torch.equal(a["position"], c["position"])
    only_background = (a["ids"][0] == 0) & (c["ids"][0] == 0)
    assert torch.equal(a["video"][0][only_background], c["video"][0][only_background])


def test_one_frame_and_wrong_arguments():
    clip = SceneEngine(1, 16, 1)(seeded(0))
    assert clip["flow"].shape == (0, 2, 16, 16)
    for wrong in ({"mode": "orbit"}, {"frames": 0}, {"sprites": 0}, {"radius": (0.3, 0.1)}):
        with pytest.raises(ValueError, match="SceneEngine: expected"):
            SceneEngine(**wrong)
