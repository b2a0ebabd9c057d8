"""flow_warp_aggregate: shifts by hand, torch's grid_sample, gradients, what lies outside, refusals."""

import math

import pytest
import torch
from torch.nn import functional as F

from vidkernels.functional.nerv.warp import flow_warp_aggregate
from vidkernels.ops.flow_warp_aggregate.op import flow_warp_aggregate as op


@pytest.fixture(params=["reference", "cpu", "simt"])
def backend(request):
    reason = op.why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    return request.param


def by_grid_sample(features, flows, logits):
    batch, neighbours, _, height, width = features.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = flows + torch.stack([x, y]).to(flows.dtype)
    size = torch.tensor([width - 1, height - 1], dtype=flows.dtype).view(2, 1, 1)
    at = (2 * place / size - 1).flatten(0, 1).movedim(1, -1)
    warped = F.grid_sample(features.flatten(0, 1), at, padding_mode="border", align_corners=True)
    return (logits.softmax(1)[:, :, None] * warped.unflatten(0, (batch, neighbours))).sum(1)


def inputs(generator, batch=2, neighbours=3, channels=5, height=9, width=14, reach=4.0, dtype=torch.float32):
    shapes = (channels, height, width), (2, height, width), (height, width)
    features, flows, logits = (torch.randn(batch, neighbours, *s, generator=generator, dtype=dtype) for s in shapes)
    return features, reach * flows, logits


def test_shifts_by_whole_pixels(backend):
    features = torch.arange(12.0).view(1, 1, 1, 3, 4)
    flows = torch.zeros(1, 1, 2, 3, 4)
    flows[:, :, 0], flows[:, :, 1] = 1, -1
    out = flow_warp_aggregate(features, flows, torch.zeros(1, 1, 3, 4), backend=backend)
    assert out[0, 0].tolist() == [[1, 2, 3, 3], [1, 2, 3, 3], [5, 6, 7, 7]]


def test_weights_by_hand(backend):
    features = torch.tensor([1.0, 10.0]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 2, 2)
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    out = flow_warp_aggregate(features, torch.zeros(1, 2, 2, 2, 2), logits, backend=backend)
    torch.testing.assert_close(out, torch.full((1, 1, 2, 2), 0.25 + 7.5))


@pytest.mark.parametrize("channels", [1, 3, 4, 7, 16, 21, 64])
def test_equals_grid_sample(backend, channels, generator):
    args = inputs(generator, channels=channels)
    out = flow_warp_aggregate(*args, backend=backend)
    torch.testing.assert_close(out, by_grid_sample(*args), rtol=1e-4, atol=2e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [3, 16])
def test_gradients_equal_those_of_grid_sample(backend, channels, generator):
    args = inputs(generator, channels=channels)
    up = torch.randn(2, channels, 9, 14, generator=generator)
    mine, theirs = [a.clone().requires_grad_() for a in args], [a.double().requires_grad_() for a in args]
    flow_warp_aggregate(*mine, backend=backend).backward(up)
    by_grid_sample(*theirs).backward(up.double())
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-5)


def test_many_pixels_that_read_one_place_add_up(backend):
    """All flows lead far up and left: the corner gets the whole gradient, and no flow has any."""
    features = torch.zeros(1, 1, 3, 11, 17, requires_grad=True)
    flows = torch.full((1, 1, 2, 11, 17), -1e6, requires_grad=True)
    up = torch.randn(1, 3, 11, 17)
    flow_warp_aggregate(features, flows, torch.zeros(1, 1, 11, 17), backend=backend).backward(up)
    torch.testing.assert_close(features.grad[0, 0, :, 0, 0], up.sum((0, 2, 3)), rtol=1e-5, atol=1e-5)
    assert int(features.grad.count_nonzero()) == 3
    assert not bool(flows.grad.any())


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e30])
def test_the_gradients_size_does_not_matter(backend, size, generator):
    """On a GPU gradients of features are sums of integers: of a unit that goes with them."""
    features, flows, logits = inputs(generator)
    up = size * torch.randn(2, 5, 9, 14, generator=generator)
    mine, theirs = features.clone().requires_grad_(), features.double().requires_grad_()
    flow_warp_aggregate(mine, flows, logits, backend=backend).backward(up)
    by_grid_sample(theirs, flows.double(), logits.double()).backward(up.double())
    torch.testing.assert_close(mine.grad.double() / size, theirs.grad / size, rtol=1e-4, atol=1e-5)


def test_no_gradient_gives_none(backend, generator):
    args = [a.requires_grad_() for a in inputs(generator)]
    flow_warp_aggregate(*args, backend=backend).backward(torch.zeros(2, 5, 9, 14))
    assert not any(bool(a.grad.any()) for a in args)


def test_constant_features_change_no_other_gradient(backend, generator):
    features, flows, logits = inputs(generator)
    up = torch.randn(2, 5, 9, 14, generator=generator)
    found = []
    for wanted in (True, False):
        leaves = (
            features.clone().requires_grad_(wanted),
            flows.clone().requires_grad_(),
            logits.clone().requires_grad_(),
        )
        flow_warp_aggregate(*leaves, backend=backend).backward(up)
        assert (leaves[0].grad is not None) == wanted
        found.append([leaf.grad for leaf in leaves[1:]])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_flows_without_end_stay_inside(backend):
    features = torch.arange(9.0).view(1, 1, 1, 3, 3)
    for value, expected in ((math.inf, 8.0), (-math.inf, 0.0), (math.nan, 0.0), (3e38, 8.0), (-3e38, 0.0)):
        flows = torch.full((1, 1, 2, 3, 3), value)
        out = flow_warp_aggregate(features, flows, torch.zeros(1, 1, 3, 3), backend=backend)
        assert bool((out == expected).all())


def test_nan_logits_spoil_their_pixel_and_no_other(backend, generator):
    features, flows, logits = inputs(generator, batch=1, height=4, width=35)
    for k in range(3):
        some = logits.clone()
        some[0, k, 2, 33] = math.nan
        out = flow_warp_aggregate(features, flows, some, backend=backend)
        assert out.isnan().any(1).nonzero().tolist() == [[0, 2, 33]]


def test_fractions_far_from_the_origin_keep_their_digits(backend):
    """x + flow in float32 would be off by 2^-13 at x = 4000."""
    features = torch.arange(4096.0).view(1, 1, 1, 1, 4096)
    flows = torch.zeros(1, 1, 2, 1, 4096)
    flows[:, :, 0] = 2.0**-14
    out = flow_warp_aggregate(features - 4000, flows, torch.zeros(1, 1, 1, 4096), backend=backend)
    assert out[0, 0, 0, 4000].item() == pytest.approx(2.0**-14, rel=1e-3)


def test_a_shift_is_learned():
    """Gradient descent on the flow alone moves a soft blob over its copy."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    blob = lambda cx, cy: torch.exp(-((x - cx).square() + (y - cy).square()) / 30)  # noqa: E731
    features, target = blob(13, 9)[None, None, None], blob(10, 11)[None, None]
    shift = torch.zeros(1, 1, 2, 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([shift], 0.1)
    for _ in range(150):
        out = flow_warp_aggregate(features, shift.expand(1, 1, 2, 24, 24), torch.zeros(1, 1, 24, 24))
        loss = (out - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert shift.flatten().tolist() == pytest.approx([3, -2], abs=0.05)


def test_what_does_not_fit_is_refused(generator):
    features, flows, logits = inputs(generator)
    with pytest.raises(ValueError, match=r"\[B, K, 2, H, W\]"):
        flow_warp_aggregate(features, flows[:, :2], logits)
    with pytest.raises(ValueError, match=r"`logits` of shape \[B, K, H, W\]"):
        flow_warp_aggregate(features, flows, logits[:, :, 1:])
    with pytest.raises(ValueError, match="1 to 16 neighbours"):
        flow_warp_aggregate(features[:, :0], flows[:, :0], logits[:, :0])
    with pytest.raises(ValueError, match=r"\[B, K, C, H, W\]"):
        flow_warp_aggregate(features[0], flows, logits)
