"""What people run instead of temporal_grid."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def _run(levels, t, scale, combine):
    found = []
    for level in levels:
        p = t.double() * (len(level) - 1)  # float32 would leave 1e-5 of a frame's place
        low = p.floor().long()
        share = (p - low).to(level.dtype).view(-1, 1, 1, 1)
        found.append(torch.lerp(level[low], level[(low + 1).clamp(max=len(level) - 1)], share))
    x = torch.cat(found, 1) if combine == "concat" else torch.stack(found).sum(0)
    return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False) if scale > 1 else x


def usual(grid, t, lengths, scale, combine):
    """FFNeRV's way: rows of each level by index, torch.lerp, F.interpolate, in torch's usual order."""
    grid = grid.contiguous()
    return lambda: _run(grid.split(lengths), t, scale, combine)


def careful(grid, t, lengths, scale, combine):
    """The same in channels_last."""
    return lambda: _run(grid.split(lengths), t, scale, combine)


def compiled(grid, t, lengths, scale, combine):
    """The same under torch.compile."""
    run = torch.compile(_run, dynamic=False)
    return lambda: run(grid.split(lengths), t, scale, combine)


PEERS = {"temporal_grid": {"usual": usual, "careful": careful, "careful, compiled": compiled}}
