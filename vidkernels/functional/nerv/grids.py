"""Features of a frame from grids over time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vidkernels import _check
from vidkernels.ops.temporal_grid.op import COMBINE
from vidkernels.ops.temporal_grid.op import temporal_grid as _temporal_grid

__all__ = ["temporal_grid"]

_MOST_LEVELS = 16


def temporal_grid(
    grid: Tensor,
    t: Tensor,
    scale: int = 1,
    *,
    lengths: Sequence[int] | None = None,
    combine: str = "concat",
    backend: str | None = None,
) -> Tensor:
    """Learned grids of several lengths in time, read linearly at given times and enlarged bilinearly in space.

    p = t (length - 1);  level = lerp(frames[floor p], frames[floor p + 1], p - floor p);  levels side by side or added
    out = levels, `scale` times as high and wide (bilinear, align_corners=False)
    Convention: t runs from 0, the first frame of each level, to 1, the last; outside (and NaN: 0) the ends hold. The
        levels of different lengths lie behind one another in `grid`, so that one parameter holds them all. Levels of
        different height or channels are separate calls. A local grid, one and the same for every cell of a coarse
        picture (HiNeRV), is temporal_grid(grid, t).tile(rows, columns).
    Args:
        grid: [sum of lengths, C, h, w], float16/bfloat16/float32/float64, best in memory_format=torch.channels_last.
        t: [B], floating.
        scale: the factor by which height and width grow.
        lengths: frames of each level, at most 16 levels; None: one level.
        combine: "concat" (channels of the levels in order) or "sum".
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        out: [B, C * levels or C, h * scale, w * scale], channels_last, the dtype of `grid`. Differentiable in `grid`
        (twice, and so on), not in t.
    Raises:
        ValueError: lengths that do not add up, another way to combine, a scale below 1.
    Backends: reference, cpu, cuda (sm80+). float64 runs on the reference. Deterministic: forward yes, backward yes
        (every number is a sum in one fixed order, in float32).
    Source: Lee et al. 2022, arXiv 2212.12294, section 3.2 (multi-resolution temporal grids); Kwan et al. 2023, arXiv
        2306.09818, section 3.2 (hierarchical encoding).
    Example:
        >>> grid = torch.tensor([0.0, 2.0, 10.0, 20.0, 30.0]).view(5, 1, 1, 1)
        >>> temporal_grid(grid, torch.tensor([0.0, 0.75]), lengths=(2, 3)).flatten(1)
        tensor([[ 0.0000, 10.0000],
                [ 1.5000, 25.0000]])
    """
    name = "temporal_grid"
    _check.is_tensor(name, "grid", grid, "[N, C, h, w]")
    _check.is_tensor(name, "t", t, "[B]")
    lengths = [grid.shape[0]] if lengths is None else list(lengths)
    if not 1 <= len(lengths) <= _MOST_LEVELS or min(lengths) < 1 or sum(lengths) != grid.shape[0]:
        _check.fail(name, f"expected `lengths` of 1 to {_MOST_LEVELS} levels that add up to the frames of `grid`.",
                    grid=grid, lengths=lengths)  # fmt: skip
    if combine not in COMBINE:
        _check.fail(name, f"expected `combine` to be one of {', '.join(COMBINE)}, got {combine!r}.")
    if scale < 1:
        _check.fail(name, "expected `scale` of 1 or more.", grid=grid, scale=scale)
    if not t.is_floating_point():
        _check.fail(name, "expected `t` to be floating: 0 is the first frame, 1 the last.", t=t)
    return _temporal_grid(grid, t.detach(), lengths, scale, combine, backend=backend)
