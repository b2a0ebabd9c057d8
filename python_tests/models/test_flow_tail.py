"""The full-resolution part of FlowDecoder, against torch's operations on whole pictures."""

import pytest
import torch
from torch.nn import functional as F

from vidkernels.models.nerv import flow_tail
from vidkernels.models.nerv.flow_tail import blended, key_cells

SHAPES = [(2, 4, 5, 7, 9), (2, 3, 3, 6, 6), (4, 2, 3, 8, 11), (1, 3, 4, 3, 4), (2, 1, 1, 1, 1)]


def warped(pictures, flow):
    """[B, 3, H, W]: at each pixel what `pictures` hold `flow` [B, 2, H, W] pixels (x, y) away, the border repeated."""
    height, width = pictures.shape[-2:]
    y = torch.arange(height).view(-1, 1) + flow[:, 1] + 0.5
    x = torch.arange(width) + flow[:, 0] + 0.5
    place = torch.stack([x * (2 / width) - 1, y * (2 / height) - 1], -1)
    return F.grid_sample(pictures, place, align_corners=False, padding_mode="border")


def _inputs(generator, scale, h, w, height, width, dtype):
    def made(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    keys = [torch.rand(3, height, width, generator=generator, dtype=torch.float64).to(dtype) for _ in range(4)]
    flow, out = (2 * made(2, 4, h, w)).requires_grad_(), made(2, 6 * scale**2, h, w).requires_grad_()
    return flow, keys[:2], keys[2:], out


def _whole(flow, before, after, scale, height, width):
    full = F.interpolate(flow, scale_factor=scale, mode="bilinear", align_corners=False)[:, :, :height, :width]
    seen = [warped(torch.stack(k), part) for k, part in ((before, full[:, :2]), (after, full[:, 2:]))]
    over = 0, scale * flow.shape[3] - width, 0, scale * flow.shape[2] - height
    return F.pixel_unshuffle(F.pad(torch.cat(seen, 1) - 0.5, over), scale)


def _mixed(out, cells, scale, height, width):
    out, keys = (F.pixel_shuffle(x, scale)[:, :, :height, :width] for x in (out, cells))
    share = torch.softmax(out[:, 3:], 1)
    keys = keys + 0.5
    return share[:, :1] * (out[:, :3] + 0.5) + share[:, 1:2] * keys[:, :3] + share[:, 2:] * keys[:, 3:]


@pytest.mark.parametrize("pieces", [4, 1 << 13])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_whole_pictures(generator, shape, pieces, monkeypatch):
    monkeypatch.setattr(flow_tail, "_PIECE", pieces)
    scale, _, _, height, width = shape
    flow, before, after, out = _inputs(generator, *shape, torch.float64)
    cells, wanted = (
        key_cells(flow, before, after, scale, torch.float64),
        _whole(flow, before, after, scale, height, width),
    )
    torch.testing.assert_close(cells, wanted)
    along = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(*(torch.autograd.grad((x * along).sum(), flow)[0] for x in (cells, wanted)))
    cells = wanted.detach().requires_grad_()
    picture, wanted = blended(out, cells, scale, (height, width)), _mixed(out, cells, scale, height, width)
    torch.testing.assert_close(picture, wanted)
    along = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    grads = (torch.autograd.grad((x * along).sum(), (out, cells)) for x in (picture, wanted))
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected)


def test_halves_lose_what_halves_lose(generator):
    """bfloat16 in and out, float32 between: within a rounding of what float32 gives for the same numbers."""
    shape = 2, 6, 8, 12, 16
    flow, before, after, out = _inputs(generator, *shape, torch.float32)
    flow, out = (x.detach().to(torch.bfloat16).to(memory_format=torch.channels_last) for x in (flow, out))
    cells = key_cells(flow, before, after, 2, torch.bfloat16)
    assert cells.dtype is torch.bfloat16
    assert cells.is_contiguous(memory_format=torch.channels_last)
    wanted = _whole(flow.float(), before, after, *shape[:1], *shape[3:])
    torch.testing.assert_close(cells.float(), wanted, atol=2**-9, rtol=2**-8)
    picture = blended(out, cells, 2, (12, 16))
    assert picture.dtype is torch.float32
    torch.testing.assert_close(picture, _mixed(out.float(), cells.float(), 2, 12, 16), atol=1e-6, rtol=1e-5)
