"""Traced scenes against distances worked out by hand."""

import pytest
import torch

from vidkernels.data.scenes3d import Plane, Sphere, trace

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def test_distances_by_hand():
    origins = torch.zeros(4, 3)
    directions = torch.tensor([[0.0, 0, 1], [0.25, 0, 1], [0, 0, -1], [0.0, 1, 1]])
    shapes = [Sphere((0, 0, 5), 2.0, RED), Plane((0, 2, 0), (0, -1, 0), BLUE)]
    seen = trace(shapes, origins, directions)
    # Second ray: |t (1/4, 0, 1) - (0, 0, 5)| = 2, the nearer root of 17/16 t^2 - 10 t + 21 = 0.
    second = (10 - (100 - 4 * 21 * 17 / 16) ** 0.5) / (17 / 8)
    assert seen["depth"].tolist() == pytest.approx([3.0, second, float("inf"), 2.0])
    assert seen["ids"].tolist() == [0, 0, -1, 1]
    assert seen["color"][2].tolist() == [0, 0, 0]
    assert seen["color"][3].tolist() == list(BLUE)


def test_the_nearest_shape_wins_in_any_order():
    shapes = [Sphere((0, 0, 5), 1.0, RED), Sphere((0, 0, 3), 1.0, BLUE)]
    rays = torch.zeros(1, 3), torch.tensor([[0.0, 0, 1]])
    for order, nearest in ((shapes, 1), (shapes[::-1], 0)):
        seen = trace(order, *rays)
        assert (seen["depth"].item(), seen["ids"].item()) == (2.0, nearest)
        assert seen["color"][0, 2] > 0.3
        assert seen["color"][0, 0] == 0


def test_discs_end_and_textures_belong_to_the_surface():
    disc = Plane((0, 0, 2), (0, 0, -1), RED, radius=0.5, texture=4.0)
    directions = torch.tensor([[0.2, 0, 1], [0.3, 0, 1]])
    seen = trace([disc], torch.zeros(2, 3), directions)
    assert seen["ids"].tolist() == [0, -1]
    point = torch.tensor([0.4, 0.0, 2.0])
    moved = torch.tensor([[0.1, -0.2, 0.5]])
    other = trace([disc], moved, (point - moved))["color"]
    torch.testing.assert_close(other, seen["color"][:1], rtol=0, atol=1e-5)


def test_shading_does_not_move_with_the_camera():
    ball = Sphere((0, 0, 3), 1.0, RED)
    point = torch.tensor([0.0, -0.6, 2.2])
    eyes = torch.tensor([[0.0, 0, 0], [1.0, -1, 0]])
    seen = trace([ball], eyes, point - eyes)
    torch.testing.assert_close(seen["depth"], torch.ones(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen["color"][0], seen["color"][1], rtol=0, atol=1e-5)


def test_rays_must_fit():
    with pytest.raises(ValueError, match="trace: expected `origins`"):
        trace([], torch.zeros(2, 3), torch.zeros(3, 3))
