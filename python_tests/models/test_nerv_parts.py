"""The parts that make one network of the NeRV family differ from another, each against plain arithmetic."""

import pytest
import torch
from torch.nn import functional as F

from vidkernels.models.nerv.boosted_nerv import BoostedNeRV
from vidkernels.models.nerv.e_nerv import ENeRV
from vidkernels.models.nerv.ff_nerv import FFNeRV
from vidkernels.models.nerv.fit import FitConfig, fit_video
from vidkernels.models.nerv.hi_nerv import HiNeRV


def made(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=made(seed), dtype=dtype)


def test_e_nerv_transformer():
    model = ENeRV(4, (20, 36), width=8, hidden=16, fused=24, perceptron=8, expansion=1, lowest=8, generator=made())
    part, x = model.fusion.double(), noise(2, 5, 24, dtype=torch.float64)
    q, k, v = (part.qkv(x)[..., i * 512 : (i + 1) * 512].view(2, 5, 8, 64) for i in range(3))
    share = torch.einsum("bnhd,bmhd->bhnm", q, k).div(8).softmax(-1)
    y = x + part.out(torch.einsum("bhnm,bmhd->bnhd", share, v).reshape(2, 5, 512))
    y = y + part.fall(0.5 * part.rise(y) * (1 + torch.erf(part.rise(y) / 2**0.5)))
    torch.testing.assert_close(part(x), y)


def test_e_nerv_time_modulates_every_block():
    model = ENeRV(4, (20, 36), width=8, hidden=16, fused=16, perceptron=8, expansion=1, lowest=8, generator=made())
    before = model(torch.tensor([1]))
    for branch in model.modulations:
        kept = branch[0].bias.detach().clone()
        with torch.no_grad():
            branch[0].bias += 0.5
        assert (model(torch.tensor([1])) - before).abs().max() > 1e-4
        with torch.no_grad():
            branch[0].bias.copy_(kept)


def ff(frames=5, **options):
    return FFNeRV(frames, (20, 36), width=8, expansion=2, lowest=8, generator=made(), **options)


def test_ff_nerv_neighbours_are_moved_and_blended():
    """With flows and scores set by hand: neighbour t-1 moved by two pixels to the left, t+1 by one down."""
    model = ff(neighbours=(-1, 1))
    with torch.no_grad():
        model.flow_head.weight.zero_()
        flows = torch.tensor([2.0, 0.0, 0.0, -1.0]) / model.flow_scale
        model.flow_head.bias.copy_(torch.cat([flows, torch.tensor([0.75, 0.25]).log()]))
        model.head.weight[3:].zero_()
        model.head.bias[3:] = torch.tensor([0.1, 0.9]).log()
    own = model._independent(model.times(torch.arange(5)))[0]
    moved = F.pad(own, (0, 2, 0, 0), mode="replicate")[..., 2:], F.pad(own, (0, 0, 1, 0), mode="replicate")[..., :-1, :]
    black = torch.zeros_like(own[:1])
    before, after = torch.cat([black, moved[0][:-1]]), torch.cat([moved[1][1:], black])
    expected = 0.1 * own + 0.9 * (0.75 * before + 0.25 * after)
    torch.testing.assert_close(model(torch.arange(5)), model.crop(expected), rtol=0, atol=2e-6)


def test_ff_nerv_remembers_what_it_would_decode():
    model = ff()
    for numbers in ([0, 1], [4, 3], [2, 0]):
        model.outputs(torch.tensor(numbers))
    shares, pictures = zip(*model.outputs(torch.tensor([2, 4])))
    assert shares == (1.0, 0.1, 0.1)
    # Remembered in bfloat16: 8 bits of pictures in 0..1.
    torch.testing.assert_close(pictures[0], model(torch.tensor([2, 4])), rtol=0, atol=2**-8)
    torch.testing.assert_close(pictures[2], model.crop(model._independent(model.times(torch.tensor([2, 4])))[0]))


def test_ff_nerv_grids_between_their_entries():
    model, t = ff(8, grids=(2, 4)), torch.tensor([0.0, 0.125, 0.25, 0.75, 0.999], dtype=torch.float64)
    grid = model.grids[1]
    found = model._at(grid, t)
    expected = torch.stack([grid[0], (grid[0] + grid[1]) / 2, grid[1], grid[3], grid[3]])
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="grids share evenly"):
        ff(grids=(2, 4, 8))
    with pytest.raises(ValueError, match="3 strides"):
        ff(strides=(5, 2))


def test_ff_nerv_bounded_weights():
    model = ff(bits=5)
    for layer in (model.head, model.blocks[0].conv, model.blocks[1].grouped):
        steps = layer.weight.detach() * 15
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-5)
        torch.testing.assert_close(layer.weight, layer.parametrizations.weight.original.tanh(), rtol=0, atol=1 / 15)
    assert model.stored_parameters() == ff().stored_parameters()
    video = torch.full((5, 20, 36, 3), 200, dtype=torch.uint8)
    losses = fit_video(model, video, FitConfig(60, learning_rate=1e-2), generator=made())
    assert losses[-1] < 0.2 * losses[0]
    assert all(value.grad is not None for value in model.parameters())
    with pytest.raises(ValueError, match="2 to 16 `bits`"):
        ff(bits=1)


def test_hi_nerv_local_encoding():
    """Each pixel gets what belongs to its place in its cell, at its time."""
    model = HiNeRV(7, (20, 36), width=16, depth=1, generator=made())
    part, x, t = model.locals[0], noise(2, 10, 15, 16), torch.tensor([0.5 / 7, 3.5 / 7], dtype=torch.float64)
    out = part(x, t)
    grids = list(part.grids)
    assert [tuple(g.shape[:3]) for g in grids] == [(7, 5, 5), (3, 5, 5), (1, 5, 5)]
    for b, number in enumerate((0, 3)):
        middle = {0: 0.0, 3: 1.0}[number]  # of three entries over seven frames
        for y, column in ((0, 0), (7, 13), (9, 4)):
            cell = torch.cat([grids[0][number, y % 5, column % 5], grids[1][int(middle), y % 5, column % 5],
                              grids[2][0, y % 5, column % 5]])  # fmt: skip
            torch.testing.assert_close(out[b, y, column], x[b, y, column] + part.mix(cell), rtol=0, atol=1e-5)


def test_hi_nerv_enlarges_bilinearly():
    """Without blocks and encodings a stage is a norm and a bilinear enlargement."""
    model = HiNeRV(4, (20, 36), width=6, strides=(3, 2), depth=1, generator=made())
    with torch.no_grad():
        for part in model.locals:
            part.mix.weight.zero_()
        for stage in model.stages:
            for block in stage:
                block.fall.weight.zero_()
    x = model.stem(torch.cat([g[:1] for g in model.base], 1))

    def norm(y):
        return (y - y.mean(1, keepdim=True)) / (y.var(1, correction=0, keepdim=True) + 1e-6).sqrt()

    y = F.interpolate(norm(x), scale_factor=3, mode="bilinear")
    # The second stage has fewer channels, so its block replaces its input, here by zero.
    assert model.stages[0][0](y.permute(0, 2, 3, 1)).equal(y.permute(0, 2, 3, 1))
    torch.testing.assert_close(
        model(torch.tensor([0])), torch.sigmoid(model.head.bias).view(1, 3, 1, 1).expand(1, 3, 20, 36)
    )


def test_boosted_blocks_and_affine_maps():
    model = BoostedNeRV(4, (90, 160), width=40, strides=(5, 2, 2, 2, 2), encoder_width=8, embedding=4, generator=made())
    found = [(b.block.conv.in_channels, b.block.conv.out_channels // b.block.scale**2, b.block.scale,
              b.block.conv.kernel_size[0]) for b in model.blocks]  # fmt: skip
    assert found == [
        (40, 33, 5, 1), (33, 28, 2, 3), (28, 23, 2, 3), (23, 23, 1, 3),
        (23, 19, 2, 3), (19, 19, 1, 3), (19, 16, 2, 3), (16, 16, 1, 3),
    ]  # fmt: skip
    part, x, moment = model.blocks[1], noise(2, 33, 4, 6), noise(2, 32, seed=1)

    def affine(y, maps):
        gain, offset = (m[2](m[0](moment).clamp(min=0)).view(2, -1, 1, 1) for m in (maps.gain, maps.offset))
        return y * (1 + gain) + offset

    def conv(y, block):
        return F.conv2d(y, block.conv.weight, block.conv.bias, padding=1)

    y = F.pixel_shuffle(conv(x, part.block), 2).sin()
    expected = y + conv(affine(F.gelu(conv(affine(y, part.before), part.first)), part.after), part.second)
    torch.testing.assert_close(part(x, moment), expected, rtol=1e-4, atol=1e-5)


def test_boosted_frames_need_times():
    model = BoostedNeRV(4, (20, 36), width=10, encoder_width=8, embedding=4, generator=made())
    frames = torch.rand(2, 3, 20, 36, generator=made())
    first, second = model(frames, torch.tensor([0, 0])), model(frames, torch.tensor([3, 0]))
    assert not torch.equal(first[0], second[0])
    torch.testing.assert_close(first[1], second[1])
    with pytest.raises(ValueError, match="a time for each frame"):
        model(frames, torch.tensor([0]))
