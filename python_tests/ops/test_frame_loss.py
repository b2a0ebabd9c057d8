"""frame_loss: against scikit-image and closed forms, gradients by differences, weights, borders, refusals."""

import numpy as np
import pytest
import torch

from vidkernels import _native
from vidkernels.functional.splatting.frame_loss import frame_loss
from vidkernels.ops.frame_loss.op import frame_loss as op

BACKENDS = ("reference", "cpu", "simt")


def need(backend):
    reason = op.why_not(backend)
    if reason is not None:
        pytest.skip(reason)


def picture(height, width, channels, seed=0, noise=0.1):
    g = torch.Generator().manual_seed(seed)
    frame = torch.randint(0, 256, (height, width, channels), generator=g, dtype=torch.uint8)
    return (frame / 255 + noise * torch.randn(frame.shape, generator=g)).float(), frame


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(11, 11, 1), (17, 29, 3), (40, 13, 4)])
def test_ssim_is_that_of_scikit_image(backend, size):
    skimage = pytest.importorskip("skimage.metrics")
    need(backend)
    image, frame = picture(*size)
    expected = skimage.structural_similarity(
        image.double().numpy(), frame.double().numpy() / 255, channel_axis=2, data_range=1.0,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip
    got = frame_loss(image, frame, l1=0.0, ssim=1.0, backend=backend)
    assert 1 - got.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_differences_are_means_by_hand(backend):
    need(backend)
    frame = torch.tensor([[[0], [255], [51]]], dtype=torch.uint8)
    image = torch.tensor([[[0.5], [1.25], [0.2]]])
    assert frame_loss(image, frame, l1=1.0, ssim=0.0, backend=backend).item() == pytest.approx(0.75 / 3, rel=1e-6)
    assert frame_loss(image, frame, l1=0.0, l2=1.0, ssim=0.0, backend=backend).item() == pytest.approx(
        0.3125 / 3, rel=1e-6
    )
    weight = torch.tensor([[0.5, 1.5, 0.0]])
    weighted = frame_loss(image, frame, weight, l1=1.0, ssim=0.0, backend=backend)
    assert weighted.item() == pytest.approx((0.25 + 0.375) / 2, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ssim_of_flat_pictures_has_its_closed_form(backend):
    """No variance: only the luminance factor is left."""
    need(backend)
    frame = torch.full((16, 20, 3), 51, dtype=torch.uint8)
    image = torch.full((16, 20, 3), 0.6)
    expected = 1 - (2 * 0.6 * 0.2 + 1e-4) / (0.6**2 + 0.2**2 + 1e-4)
    assert frame_loss(image, frame, l1=0.0, ssim=1.0, backend=backend).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_pictures_lose_nothing_and_pull_nowhere(backend):
    need(backend)
    frame = picture(20, 24, 3)[1]
    image = (frame.float() / 255).requires_grad_()
    loss = frame_loss(image, frame, l1=1.0, l2=1.0, ssim=1.0, backend=backend)
    loss.backward()
    assert loss.item() == (0.0 if backend != "reference" else pytest.approx(0.0, abs=1e-6))
    assert image.grad.abs().max().item() == pytest.approx(0.0, abs=0.0 if backend != "reference" else 1e-6)


@pytest.mark.parametrize("backend", ["cpu", "simt"])
def test_nearly_equal_pictures_keep_their_digits(backend):
    """1 - S of textbook float32 code is rounding noise here."""
    need(backend)
    image, frame = picture(24, 24, 1, noise=1e-4)
    exact = frame_loss(image.double(), frame, l1=0.0, ssim=1.0).item()
    assert exact < 1e-6
    assert frame_loss(image, frame, l1=0.0, ssim=1.0, backend=backend).item() == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("backend", ["cpu", "simt"])
@pytest.mark.parametrize("mix", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.3, 0.2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_is_that_of_autograd_through_the_reference_formula(backend, mix, weighted):
    need(backend)
    from vidkernels.ops.frame_loss import reference

    image, frame = picture(23, 31, 3, seed=3)
    l1, l2, ssim = mix
    weight = torch.rand(23, 31, generator=torch.Generator().manual_seed(4)) if weighted else None
    leaf = image.clone().requires_grad_()
    (3 * frame_loss(leaf, frame, weight, l1=l1, l2=l2, ssim=ssim, backend=backend)).backward()
    wide = image.double()[None].requires_grad_()
    wide_weight = None if weight is None else weight.double()[None]
    (3 * reference.frame_loss(wide, frame[None], wide_weight, l1, l2, ssim)).backward()
    torch.testing.assert_close(leaf.grad.double(), wide.grad[0], rtol=1e-5, atol=3e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_windows_inside_the_frame_count(backend):
    """A corner pixel lies in one window, with the smallest of its weights; a pixel in the middle in many."""
    need(backend)
    frame = torch.full((21, 21, 1), 128, dtype=torch.uint8)
    image = frame.float() / 255 + 0.05
    moved = image.clone()
    moved[0, 0] += 0.1
    loss = lambda x: frame_loss(x, frame, l1=0.0, ssim=1.0, backend=backend).item()  # noqa: E731
    corner = abs(loss(moved) - loss(image))
    moved = image.clone()
    moved[10, 10] += 0.1
    assert corner < 1e-3 * abs(loss(moved) - loss(image))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_weight_at_all_is_a_loss_of_zero(backend):
    need(backend)
    image, frame = picture(12, 15, 2)
    leaf = image.requires_grad_()
    loss = frame_loss(leaf, frame, torch.zeros(12, 15), l1=0.5, l2=0.5, ssim=0.5, backend=backend)
    loss.backward()
    assert loss.item() == 0.0
    assert leaf.grad.abs().max().item() == 0.0


@pytest.mark.parametrize("backend", ["cpu", "simt"])
def test_equal_weights_change_nothing(backend):
    need(backend)
    image, frame = picture(18, 22, 3)
    weight = torch.full((18, 22), 0.375)
    plain = frame_loss(image, frame, l1=0.5, l2=0.5, ssim=0.5, backend=backend)
    assert frame_loss(image, frame, weight, l1=0.5, l2=0.5, ssim=0.5, backend=backend).item() == pytest.approx(
        plain.item(), rel=1e-6
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_pixel_spoils_its_surroundings_only(backend):
    need(backend)
    image, frame = picture(40, 43, 3)
    image[20, 21, 1] = float("nan")
    leaf = image.requires_grad_()
    loss = frame_loss(leaf, frame, backend=backend)
    loss.backward()
    assert loss.isnan()
    spoiled = torch.zeros(40, 43, 3, dtype=torch.bool)
    spoiled[10:31, 11:32, 1] = True
    assert torch.equal(leaf.grad.isnan(), spoiled)


@pytest.mark.parametrize("backend", ["cpu", "simt"])
def test_batch_is_the_mean_of_its_frames(backend):
    need(backend)
    pairs = [picture(14, 19, 3, seed=s) for s in range(3)]
    whole = frame_loss(*map(torch.stack, zip(*pairs)), l2=0.5, backend=backend)
    each = [frame_loss(*pair, l2=0.5, backend=backend) for pair in pairs]
    assert whole.item() == pytest.approx(sum(e.item() for e in each) / 3, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float32(dtype):
    image, frame = picture(16, 18, 3)
    leaf = image.to(dtype).requires_grad_()
    loss = frame_loss(leaf, frame)
    loss.backward()
    wide = leaf.detach().float().requires_grad_()
    frame_loss(wide, frame).backward()
    assert loss.dtype is torch.float32
    assert torch.equal(leaf.grad, wide.grad.to(dtype))


def test_kept_gradient_is_scaled_and_adds_up():
    image, frame = picture(20, 33, 3)
    leaf, other = image.clone().requires_grad_(), image.clone().requires_grad_()
    loss = frame_loss(leaf, frame)
    loss.backward(retain_graph=True)
    once = leaf.grad.clone()
    loss.backward(retain_graph=True)
    assert torch.equal(leaf.grad, 2 * once)
    (frame_loss(other, frame) * 0.25).backward()
    assert torch.equal(other.grad, 0.25 * once)


@pytest.mark.skipif(_native._C is None, reason="needs vidkernels._C")
def test_kept_gradient_is_not_differentiated_again():
    image, frame = picture(12, 12, 1)
    leaf = image.requires_grad_()
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(frame_loss(leaf, frame), leaf, create_graph=True)


@pytest.mark.parametrize("backend", ["cpu", "simt"])
@pytest.mark.parametrize("size", [(300, 700, 3), (129, 341, 3), (256, 1025, 1), (45, 300, 5)])
def test_cuts_do_not_show(backend, size):
    """Frames of several bands, strips and groups of channels, against the reference in float64."""
    need(backend)
    image, frame = picture(*size, seed=7)
    leaf = image.requires_grad_()
    loss = frame_loss(leaf, frame, l1=0.3, l2=0.3, ssim=0.4, backend=backend)
    loss.backward()
    wide = image.detach().double().requires_grad_()
    exact = frame_loss(wide, frame, l1=0.3, l2=0.3, ssim=0.4, backend="reference")
    exact.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    scale = wide.grad.abs().max().item()
    np.testing.assert_allclose(leaf.grad.numpy(), wide.grad.numpy(), rtol=0, atol=2e-6 * scale)


def test_small_frames_need_ssim_0():
    image, frame = picture(10, 30, 3)
    with pytest.raises(ValueError, match=r"frame_loss: SSIM needs frames of at least 11 x 11(.|\n)*HINT: ssim=0"):
        frame_loss(image, frame)
    assert frame_loss(image, frame, ssim=0.0).item() > 0
    with pytest.raises(ValueError, match="at least 11 x 11"):
        op(image[None], frame[None], None, 0.0, 0.0, 1.0, backend="reference")
    if op.why_not("cpu") is None:
        with pytest.raises(ValueError, match="at least 11 x 11"):
            op(image[None], frame[None], None, 0.0, 0.0, 1.0, backend="cpu")


def test_what_does_not_fit_is_refused():
    image, frame = picture(12, 12, 3)
    with pytest.raises(ValueError, match="`target` of one shape"):
        frame_loss(image, frame[:-1])
    with pytest.raises(ValueError, match="dtype uint8"):
        frame_loss(image, frame.float())
    with pytest.raises(ValueError, match=r"`weight` of shape \[12, 12\]"):
        frame_loss(image, frame, torch.ones(12, 12, 3))
    with pytest.raises(TypeError, match="to be tensors"):
        frame_loss(image.numpy(), frame)
