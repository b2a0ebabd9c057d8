"""What every way of clustering does with its points first."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vidkernels import _check


def as_points(name: str, x: Tensor, metric: str) -> Tensor:
    """Points in the dtype that they are clustered in, finite, on the unit sphere for "cosine"."""
    _check.is_tensor(name, "x", x, "[N, D]")
    if not x.is_floating_point():
        _check.fail(name, "expected floating-point `x`.", x=x)
    if metric not in ("l2", "cosine"):
        _check.fail(name, 'expected `metric` "l2" or "cosine".', metric=metric)
    points = x.detach() if x.dtype is torch.float64 else x.detach().float()
    # One sum shows every NaN and infinity; where it overflows by itself, look at the elements.
    suspect = (~points.sum(1).isfinite()).nonzero()[:, 0]
    rows = suspect[~points[suspect].isfinite().all(1)].tolist()
    if rows:
        named = ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        _check.fail(name, f"rows of `x` that are not finite: {named}.", "leave these rows out.", x=x)
    return F.normalize(points, dim=1) if metric == "cosine" else points


def random_rows(length: int, count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """`count` different numbers below `length`."""
    source = device if generator is None else generator.device
    return torch.randperm(length, generator=generator, device=source)[:count].to(device)
