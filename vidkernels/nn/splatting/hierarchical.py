"""Video as 3D Gaussians on spline paths, seen by a camera that moves along the solution of a neural ODE."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vidkernels import _check
from vidkernels import functional as vkf
from vidkernels.nn.splatting.density import replace_parameter
from vidkernels.nn.splatting.explicit import ExplicitGaussianVideo, spread_pixels

__all__ = ["CameraODE", "HierarchicalGaussianVideo"]


def refine_bspline(points: Tensor) -> Tensor:
    """Control points of the same uniform cubic B-spline with twice as many segments.

    edges (P_i + P_{i+1}) / 2 and vertices (P_{i-1} + 6 P_i + P_{i+1}) / 8, interleaved
    Args:     points: [N, K, D], K >= 4.
    Returns:  points: [N, 2 K - 3, D]. Differentiable.
    Raises:   ValueError: another shape, or K < 4.
    Source:   Lane and Riesenfeld 1980, knot insertion by subdivision.
    Example:
        >>> refine_bspline(torch.tensor([0.0, 1, 2, 3]).view(1, 4, 1)).flatten()
        tensor([0.5000, 1.0000, 1.5000, 2.0000, 2.5000])
    """
    if points.dim() != 3 or points.shape[1] < 4:
        _check.fail("refine_bspline", "expected `points` of shape [N, K, D], K >= 4.", points=points)
    edges = (points[:, :-1] + points[:, 1:]) / 2
    vertices = (points[:, :-2] + 6 * points[:, 1:-1] + points[:, 2:]) / 8
    paired = torch.stack([edges[:, :-1], vertices], 2).flatten(1, 2)
    return torch.cat([paired, edges[:, -1:]], 1)


class CameraODE(nn.Module):
    """A smooth camera path: dz/dt = f(z, t) with a two-layer perceptron f, solved by Runge-Kutta of order 4.

    z = (rotation vector, translation, log focal length). It starts as a camera at rest.
    Args:
        hidden: width of the perceptron.
        steps: solver steps over [0, 1]; between them the path is interpolated by cubics, so that the view at a time
            does not depend on which other times are asked for.
    Raises:
        ValueError: times outside [0, 1]. ImportError: torchdiffeq is missing (when called).
    Source: Chen et al. 2018, arXiv 1806.07366; as a camera path: arXiv 2501.04782.
    Example:
        >>> CameraODE()(torch.tensor([0.5])).shape
        torch.Size([1, 7])
    """

    def __init__(self, hidden: int = 32, steps: int = 8):
        super().__init__()
        self.steps = steps
        self.start = nn.Parameter(torch.zeros(7))
        self.field = nn.Sequential(nn.Linear(8, hidden), nn.Tanh(), nn.Linear(hidden, 7))
        nn.init.zeros_(self.field[2].weight)
        nn.init.zeros_(self.field[2].bias)

    def velocity(self, time: Tensor, state: Tensor) -> Tensor:
        # Times around 0, so that both signs occur from the beginning.
        return self.field(torch.cat([state, 2 * time.reshape(1).to(state) - 1]))

    def forward(self, times: Tensor) -> Tensor:
        """States [T, 7] at times [T] in [0, 1], in any order."""
        try:
            from torchdiffeq import odeint
        except ImportError:
            _check.fail(
                "CameraODE", "torchdiffeq is not installed.", "pip install 'vidkernels[splatting]'", error=ImportError
            )
        if bool((times < 0).any() | (times > 1).any()):
            _check.fail("CameraODE", "expected `times` in [0, 1].", times=times)
        # The whole of [0, 1] is always solved, on one grid; odeint wants rising times.
        grid = torch.cat([times.detach(), times.new_tensor([0.0, 1.0])]).unique()
        path = odeint(
            self.velocity, self.start, grid, method="rk4", options={"step_size": 1 / self.steps, "interp": "cubic"}
        )
        return path[torch.searchsorted(grid, times.detach())]


def _rotations(vectors: Tensor) -> Tensor:
    """Rotation matrices [T, 3, 3] of rotation vectors [T, 3]."""
    x, y, z = vectors.unbind(1)
    zero = torch.zeros_like(x)
    return torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3))


class HierarchicalGaussianVideo(ExplicitGaussianVideo):
    """3D Gaussians with cubic B-spline centres in front of a pinhole camera that moves.

    mu_i(t) = sum_k B_k(t) P_ik;  camera(t) from CameraODE, or at rest
    Convention: see ExplicitGaussianVideo. At rest the camera looks along z from the origin, and what lies at depth
        `distance` has one scene unit to half the frame's height.
    Args:
        points: [N, K, 3] control points of uniform cubic B-splines over [0, 1], K >= 4.
        log_scales: [N, 3] or [N, 1], logarithms of the standard deviations.
        colors: [N, 3], 0..1.
        opacity: of all Gaussians at the start.
        distance: depth of the scene's middle.
        camera: True for the neural ODE, False for a camera at rest.
    Raises:
        ValueError: shapes that do not fit.
        ImportError: with a camera, if torchdiffeq is missing (when first used).
    Source: Bond et al. 2025, arXiv 2501.04782; differs: the ODE moves one camera state of 7 numbers.
    Example:
        >>> points = torch.tensor([0.0, 0.0, 2.0]).expand(1, 4, 3)
        >>> model = HierarchicalGaussianVideo(points, torch.full((1, 3), -1.0), torch.ones(1, 3), camera=False)
        >>> model(0.5, (8, 12)).shape
        torch.Size([8, 12, 3])
    """

    centre = "points"

    def __init__(
        self,
        points: Tensor,
        log_scales: Tensor,
        colors: Tensor,
        opacity: float = 0.9,
        *,
        distance: float = 2.0,
        camera: bool = True,
    ):
        count = points.shape[0]
        if points.dim() != 3 or points.shape[1] < 4 or points.shape[2] != 3 or colors.shape != (count, 3):
            _check.fail(
                "HierarchicalGaussianVideo",
                "expected `points` of shape [N, K, 3], K >= 4, and `colors` of shape [N, 3].",
                points=points,
                colors=colors,
            )
        turn = points.new_zeros(count, 4)
        turn[:, 0] = 1
        super().__init__(
            {
                "points": points.clone(),
                "log_scales": log_scales.expand(count, 3).clone(),
                "quats": turn,
                "opacities": points.new_full((count,), math.log(opacity / (1 - opacity))),
                "colors": colors.clone(),
            }
        )
        self.distance = distance
        self.camera = CameraODE().to(points) if camera else None

    @classmethod
    def from_video(
        cls,
        video: Tensor,
        count: int,
        *,
        controls: int = 4,
        distance: float = 2.0,
        camera: bool = True,
        generator: torch.Generator | None = None,
    ) -> HierarchicalGaussianVideo:
        """Start from evenly spread pixels of the middle frame, at rest, near the depth `distance`.

        Args:     video: [T, H, W, 3] uint8.
                  controls: control points of each path.
        """
        height, width = video.shape[1:3]
        picture = video[len(video) // 2]
        row, column = spread_pixels(count, (height, width), generator, video.device)
        middle = torch.tensor([width, height], device=video.device) / 2
        place = (torch.stack([column, row], 1) + 0.5 - middle) * (2 / height)
        depth = distance * (1 + 0.02 * torch.randn(count, 1, generator=generator, device=video.device))
        points = torch.cat([place * (depth / distance), depth], 1)
        spacing = math.sqrt(4 * width / height / count)
        return cls(
            points[:, None].expand(-1, controls, -1),
            points.new_full((count, 1), math.log(0.8 * spacing)),
            picture[row, column].float() / 255,
            distance=distance,
            camera=camera,
        )

    def centres(self, times: Tensor) -> Tensor:
        return vkf.motion_eval(self.gaussians["points"], times, "bspline")

    def quaternions(self, time: Tensor) -> Tensor:
        return self.gaussians["quats"]

    def views(self, times: Tensor) -> tuple[Tensor, Tensor]:
        if self.camera is None:
            matrices = torch.eye(4, dtype=times.dtype, device=times.device).expand(len(times), 4, 4)
            return matrices, torch.full_like(times, self.distance)
        state = self.camera(times)
        # Turn around the scene's middle: a rotation then does not swing the scene out of view.
        pivot = torch.tensor([0.0, 0.0, self.distance], dtype=times.dtype, device=times.device)
        rotation = _rotations(state[:, :3])
        shift = state[:, 3:6] + pivot - rotation @ pivot
        upper = torch.cat([rotation, shift.unsqueeze(2)], 2)
        lower = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=times.dtype, device=times.device).expand(len(times), 1, 4)
        return torch.cat([upper, lower], 1), self.distance * state[:, 6].exp()

    @torch.no_grad()
    def rows_at(
        self, pixels: Tensor, colors: Tensor, time: float, size: tuple[int, int], spread: float
    ) -> dict[str, Tensor]:
        """Rows for new Gaussians [M] at given pixels of one moment, at rest, in front of what is seen there.

        Args:     pixels: [M, 2] (x, y) in a frame of `size`.
                  colors: [M, 3].
                  spread: their standard deviation in scene units.
        """
        like = self.gaussians["points"]
        seen = self.render(time, size)
        column, row = pixels.long().unbind(1)
        depth = torch.where(seen.alpha[row, column] > 0.5, seen.depth[row, column], self.distance) * 0.99
        count = len(pixels)
        turn = like.new_zeros(count, 4)
        turn[:, 0] = 1
        return {
            "points": self.unproject(pixels.to(like), depth, time, size)[:, None].expand(-1, like.shape[1], -1),
            "log_scales": like.new_full((count, 3), math.log(spread)),
            "quats": turn,
            "opacities": like.new_full((count,), 0.0),
            "colors": colors.to(like),
        }

    def insert_controls(self, optimizer: torch.optim.Optimizer | None = None) -> int:
        """Double the segments of every path without changing it; returns the new number of control points.

        Args:     optimizer: holds the parameters, or None; the paths' moments are interpolated likewise.
        """
        replace_parameter(self.gaussians, optimizer, "points", refine_bspline)
        return self.gaussians["points"].shape[1]
