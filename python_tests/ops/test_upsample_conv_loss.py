"""upsample_conv_loss: against the two operations that it replaces, values by hand, refusals."""

import pytest
import torch

from vidkernels.functional.nerv.upsample_conv import upsample_conv, upsample_conv_loss
from vidkernels.functional.splatting.frame_loss import frame_loss

BACKENDS = ("reference", "cpu")


def need(backend):
    from vidkernels.ops.upsample_conv.op import upsample_conv_loss as op

    reason = op.why_not(backend)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("l1", "l2", "expected"), [(1.0, 0.0, 0.3), (0.0, 1.0, 0.1), (2.0, 3.0, 0.9)])
def test_by_hand(l1, l2, expected, backend):
    """Differences of 0.4 and -0.2 on a target of 0.2; what hangs over counts nothing."""
    need(backend)
    x = torch.tensor([[[[0.6, 0.0, 9.0]]]])
    target = torch.full((1, 1, 2, 1), 51, dtype=torch.uint8)
    loss = upsample_conv_loss(x, torch.ones(1, 1, 1, 1), None, target, l1=l1, l2=l2, backend=backend)
    torch.testing.assert_close(loss, torch.tensor(expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_by_hand(backend):
    need(backend)
    x = torch.tensor([[[[0.6, 0.0, 9.0]]]])
    target = torch.full((1, 1, 3, 1), 51, dtype=torch.uint8)
    weight = torch.tensor([[[3.0, 1.0, 0.0]]])
    run = lambda w: upsample_conv_loss(  # noqa: E731
        x, torch.ones(1, 1, 1, 1), None, target, pixel_weight=w, l1=1.0, l2=0.0, backend=backend
    )
    torch.testing.assert_close(run(weight), torch.tensor(0.35))
    assert run(0 * weight) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("l1", "l2"), [(0.0, 1.0), (0.7, 0.3)])
def test_is_the_layer_and_the_loss(dtype, squash, weighted, l1, l2):
    g = torch.Generator().manual_seed(0)
    x, weight, bias = torch.randn(2, 9, 21, 34, generator=g), torch.randn(12, 9, 3, 3, generator=g) / 9, torch.rand(12)
    target = torch.randint(0, 256, (2, 41, 65, 3), dtype=torch.uint8, generator=g)
    pixels = torch.rand(2, 41, 65, generator=g) if weighted else None
    leaves = [t.to(dtype).requires_grad_() for t in (x, weight, bias)]
    loss = upsample_conv_loss(*leaves, target, 2, pixel_weight=pixels, squash=squash, l1=l1, l2=l2)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    z = upsample_conv(*wide, 2, "none")
    picture = 0.5 * torch.tanh(z) + 0.5 if squash else z
    expected = frame_loss(picture[:, :, :41, :65].permute(0, 2, 3, 1), target, pixels, l1=l1, l2=l2, ssim=0.0)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    found = torch.autograd.grad(3 * loss, leaves)
    for a, e in zip(found, torch.autograd.grad(3 * expected, wide), strict=True):
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
        assert (a.double() - e).norm() <= tolerance * e.norm()


def test_float16_keeps_its_gradients():
    """Those of a mean over a picture are below float16's smallest numbers until they are added up."""
    x = torch.rand(1, 4, 80, 80).half()
    weight = torch.rand(3, 4, 3, 3).half().requires_grad_()
    upsample_conv_loss(x, weight, None, torch.zeros(1, 80, 80, 3, dtype=torch.uint8)).backward()
    exact = weight.detach().float().requires_grad_()
    upsample_conv_loss(x.float(), exact, None, torch.zeros(1, 80, 80, 3, dtype=torch.uint8)).backward()
    torch.testing.assert_close(weight.grad.float(), exact.grad, rtol=1e-3, atol=0)


def test_autocast_takes_bfloat16():
    x, weight = torch.rand(1, 4, 8, 8), torch.rand(3, 4, 3, 3, requires_grad=True)
    target = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = upsample_conv_loss(x, weight, None, target)
    assert loss.dtype is torch.float32
    loss.backward()
    assert weight.grad.dtype is torch.float32
    torch.testing.assert_close(loss, upsample_conv_loss(x, weight, None, target), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.zeros(1, 4, 4, 3)}, "uint8"),
        ({"target": torch.zeros(1, 9, 8, 3, dtype=torch.uint8)}, "h <= 8"),
        ({"target": torch.zeros(2, 8, 8, 3, dtype=torch.uint8)}, "`target`"),
        ({"pixel_weight": torch.ones(1, 8, 7)}, "pixel_weight"),
        ({"weight": torch.zeros(3, 5, 3, 3)}, "channels of `x`"),
    ],
)
def test_refusals(change, message):
    good = {"x": torch.zeros(1, 4, 8, 8), "weight": torch.zeros(3, 4, 3, 3), "bias": None,
            "target": torch.zeros(1, 8, 8, 3, dtype=torch.uint8)}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        upsample_conv_loss(**(good | change))
