"""Small three-dimensional scenes seen by any camera: colour and exact depth of spheres and planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .._check import fail

# From above, a little from the left and the front: shading that does not move with the camera.
_LIGHT = torch.nn.functional.normalize(torch.tensor([-0.4, -0.8, -0.5]), dim=0)


@dataclass(frozen=True)
class Sphere:
    """A ball of one colour, lit from above."""

    center: Sequence[float]
    radius: float
    color: Sequence[float]

    def hit(self, origins: torch.Tensor, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distance (inf: none) and colour for rays [..., 3]."""
        center = origins.new_tensor(self.center)
        offset = origins - center
        a = directions.square().sum(-1)
        b = (offset * directions).sum(-1)
        root = b * b - a * (offset.square().sum(-1) - self.radius**2)
        t = (-b - root.clamp(min=0).sqrt()) / a
        t = torch.where((root > 0) & (t > 0), t, torch.inf)
        point = origins + t.nan_to_num(posinf=0)[..., None] * directions
        light = ((point - center) / self.radius) @ _LIGHT.to(origins)
        shade = 0.65 + 0.35 * light[..., None]
        return t, shade * origins.new_tensor(self.color)


@dataclass(frozen=True)
class Plane:
    """A flat wall, or a disc of `radius` of it, of one colour or two waves of `texture` radians per unit length."""

    point: Sequence[float]
    normal: Sequence[float]
    color: Sequence[float]
    radius: float = float("inf")
    texture: float = 0.0

    def hit(self, origins: torch.Tensor, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distance (inf: none) and colour for rays [..., 3]."""
        point, normal = origins.new_tensor(self.point), origins.new_tensor(self.normal)
        slope = directions @ normal
        t = ((point - origins) @ normal) / torch.where(slope.abs() < 1e-9, torch.full_like(slope, 1e-9), slope)
        on = origins + t[..., None] * directions - point
        t = torch.where((t > 0) & (on.norm(dim=-1) <= self.radius), t, torch.inf)
        color = origins.new_tensor(self.color).expand_as(on)
        if self.texture:
            phase = on.new_tensor([[1.0, 0.3, 0.5], [-0.4, 1.0, 0.7], [0.8, -0.9, 0.2]])
            color = color * (0.6 + 0.4 * torch.sin(self.texture * on @ phase.T))
        return t, color


def trace(
    shapes: Sequence[Sphere | Plane],
    origins: torch.Tensor,
    directions: torch.Tensor,
    background: Sequence[float] = (0.0, 0.0, 0.0),
) -> dict[str, torch.Tensor]:
    """What rays see: the nearest shape, its colour and its distance.

    Args:     shapes: spheres and planes.
              origins, directions: [..., 3]; with directions of z = 1 in the camera, distance is depth.
              background: colour where nothing is hit.
    Returns:  dict: color [..., 3] in 0..1; depth [...], inf where nothing is hit; ids [...] int64, the place of the
              shape in the list or -1.
    Example:
        >>> import torch
        >>> ball = Sphere((0, 0, 3), 1.0, (1, 0, 0))
        >>> seen = trace([ball], torch.zeros(2, 3), torch.tensor([[0.0, 0, 1], [1, 0, 1]]))
        >>> seen["depth"].tolist(), seen["ids"].tolist()
        ([2.0, inf], [0, -1])
    """
    if origins.shape != directions.shape or origins.shape[-1:] != (3,):
        fail("trace", "expected `origins` and `directions` of one shape [..., 3].",
             origins=origins, directions=directions)  # fmt: skip
    depth = torch.full_like(origins[..., 0], torch.inf)
    color = origins.new_tensor(background).expand_as(origins)
    ids = torch.full(depth.shape, -1, dtype=torch.int64, device=origins.device)
    for i, shape in enumerate(shapes):
        t, paint = shape.hit(origins, directions)
        near = t < depth
        depth, ids = torch.where(near, t, depth), ids.where(~near, torch.full_like(ids, i))
        color = torch.where(near[..., None], paint.clamp(0, 1), color)
    return {"color": color, "depth": depth, "ids": ids}
