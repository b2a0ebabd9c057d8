"""temporal_grid: closed forms, torch's own interpolation, local grids, gradients, refusals."""

import math

import pytest
import torch
from torch.nn import functional as F

from vidkernels.functional.nerv.grids import temporal_grid
from vidkernels.ops.temporal_grid.op import temporal_grid as op


@pytest.fixture(params=["reference", "cpu", "simt"])
def backend(request):
    reason = op.why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    return request.param


def test_linear_in_time_by_hand(backend):
    grid = torch.tensor([0.0, 1.0, 10.0]).view(3, 1, 1, 1)
    t = torch.tensor([-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0, math.nan])
    out = temporal_grid(grid, t, backend=backend).flatten()
    assert out.tolist() == [0.0, 0.0, 0.5, 1.0, 5.5, 10.0, 10.0, 0.0]


def test_a_ramp_stays_a_ramp(backend):
    """Inside, bilinear enlargement of x is x at the smaller pixels' centres."""
    grid = torch.arange(5.0).expand(1, 1, 3, 5).contiguous()
    out = temporal_grid(grid, torch.zeros(1), 4, backend=backend)[0, 0]
    centre = ((torch.arange(20) + 0.5) / 4 - 0.5).clamp(0, 4)
    torch.testing.assert_close(out, centre.expand(12, 20))


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_equals_torchs_interpolation(backend, scale, combine, generator):
    lengths = (3, 7, 16)
    grid = torch.randn(26, 4, 3, 5, generator=generator)
    t = torch.rand(6, generator=generator)
    out = temporal_grid(grid, t, scale, lengths=lengths, combine=combine, backend=backend)
    levels = []
    for level in grid.split(lengths):
        # Time as an axis of its own: interpolation with align_corners runs from the first to the last frame.
        columns = level.permute(1, 2, 3, 0).reshape(1, 60, len(level))
        index = t * (len(level) - 1)
        at = torch.stack([2 * index / (len(level) - 1) - 1, torch.zeros(6)], 1).view(1, 1, 6, 2)
        found = F.grid_sample(columns[:, :, None], at, align_corners=True)[0, :, 0].view(4, 3, 5, 6)
        levels.append(found.permute(3, 0, 1, 2))
    x = torch.cat(levels, 1) if combine == "concat" else sum(levels)
    expected = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_gradient_equals_that_of_torchs_interpolation(backend, generator):
    grid = torch.randn(9, 4, 3, 5, generator=generator, dtype=torch.float64)
    t = torch.tensor([0.0, 0.4, 0.4, 1.0])
    mine = grid.float().requires_grad_()
    out = temporal_grid(mine, t, 3, lengths=(4, 5), combine="sum", backend=backend)
    up = torch.randn(out.shape, generator=generator)
    out.backward(up)
    theirs, weights = grid.requires_grad_(), torch.zeros(4, 9, dtype=torch.float64)
    for first, length in ((0, 4), (4, 5)):
        for b, time in enumerate(t.tolist()):
            low = min(int(time * (length - 1)), length - 2)
            weights[b, first + low] += 1 - (time * (length - 1) - low)
            weights[b, first + low + 1] += time * (length - 1) - low
    x = torch.einsum("bn,nchw->bchw", weights, theirs)
    F.interpolate(x, scale_factor=3, mode="bilinear", align_corners=False).backward(up.double())
    torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)


def test_frames_that_no_time_has_read_get_no_gradient(backend):
    grid = torch.zeros(50, 2, 2, 2, requires_grad=True)
    temporal_grid(grid, torch.tensor([10.25, 10.5]) / 49, 2, backend=backend).sum().backward()
    touched = grid.grad.flatten(1).ne(0).any(1).nonzero()[:, 0].tolist()
    assert touched == [10, 11]
    assert grid.grad.sum().item() == pytest.approx(2 * 2 * 4 * 4, rel=1e-5)


def test_a_local_grid_repeats_in_every_cell(backend, generator):
    """HiNeRV: the number at (y, x) depends on where the pixel lies in its cell, and on the time."""
    scale, rows, columns = 3, 2, 4
    grid = torch.randn(5, 6, scale, scale, generator=generator)
    local = temporal_grid(grid, torch.tensor([0.5]), backend=backend).tile(rows, columns)[0]
    for y in range(rows * scale):
        for x in range(columns * scale):
            assert torch.equal(local[:, y, x], grid[2, :, y % scale, x % scale])


def test_one_level_of_one_frame_does_not_depend_on_time(backend):
    grid = torch.randn(1, 3, 2, 2)
    out = temporal_grid(grid, torch.tensor([0.0, 0.3, 1.0]), backend=backend)
    assert torch.equal(out, grid.expand(3, -1, -1, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_in_float(backend, dtype, generator):
    grid = torch.randn(6, 8, 3, 3, generator=generator).to(dtype)
    t = torch.rand(4, generator=generator)
    out = temporal_grid(grid, t, 2, lengths=(2, 4), combine="sum", backend=backend)
    wide = temporal_grid(grid.float(), t, 2, lengths=(2, 4), combine="sum", backend="reference")
    assert out.dtype is dtype
    torch.testing.assert_close(out.float(), wide, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_a_signal_of_time_is_fitted(generator):
    """A coarse grid alone cannot follow a quick signal, a fine one beside it can."""
    t = torch.linspace(0, 1, 32)
    target = (torch.sin(40 * t) + t).view(-1, 1, 1, 1)
    errors = []
    for lengths in ((4,), (4, 32)):
        grid = torch.zeros(sum(lengths), 1, 1, 1, requires_grad=True)
        optimizer = torch.optim.Adam([grid], 0.05)
        for _ in range(300):
            loss = (temporal_grid(grid, t, lengths=lengths, combine="sum") - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        errors.append(loss.item())
    assert errors[0] > 0.1
    assert errors[1] < 1e-3


def test_what_does_not_fit_is_refused():
    grid, t = torch.zeros(5, 2, 3, 3), torch.zeros(2)
    for lengths in ((2, 2), (), (5, 0), (1,) * 17):
        with pytest.raises(ValueError, match="add up to the frames"):
            temporal_grid(grid, t, lengths=lengths)
    with pytest.raises(ValueError, match="one of concat, sum"):
        temporal_grid(grid, t, combine="mean")
    with pytest.raises(ValueError, match="`scale` of 1 or more"):
        temporal_grid(grid, t, 0)
    with pytest.raises(ValueError, match="`t` to be floating"):
        temporal_grid(grid, t.long())
    with pytest.raises(ValueError, match=r"\[N, C, h, w\]"):
        temporal_grid(grid[0], t)
