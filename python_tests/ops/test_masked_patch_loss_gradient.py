"""The gradient of masked_patch_loss: its value, its buffers, and what a second backward pass may do."""

import pytest
import torch

from vidkernels import _native
from vidkernels.functional import masked_patch_loss
from vidkernels.ops.masked_patch_loss.cases import inputs as case_inputs

needs_cpu = pytest.mark.skipif(_native._C is None, reason=f"cpu kernels: {_native.why_missing('_C')}")
needs_simt = pytest.mark.skipif(_native.module("_simt") is None, reason=f"emulator: {_native.why_missing('_simt')}")
emulated = pytest.mark.parametrize(
    "backend",
    ["reference", pytest.param("cpu", marks=needs_cpu), pytest.param("simt", marks=needs_simt)],
)
backends = pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])


def inputs(batch, grid, tube, channels, masked, dtype=torch.float32):
    return case_inputs(batch, grid, tube, channels, masked)(torch.Generator().manual_seed(0), dtype)[:3]


@backends
@pytest.mark.parametrize("upstream", [1.0, 0.25])
def test_gradient_is_the_scaled_difference(backend, upstream):
    """d loss / d pred = 2 (pred - target) / n, and the loss at the target is zero."""
    pred, video, index = inputs(2, (2, 2, 2), (2, 16, 16), 3, 5, torch.float64)
    leaf = pred.clone().requires_grad_()
    (masked_patch_loss(leaf, video, index, backend=backend) * upstream).backward()
    target = pred - leaf.grad * pred.numel() / 2 / upstream
    assert float(masked_patch_loss(target, video, index, backend=backend)) < 1e-24


@backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tube", [(2, 16, 16), (2, 4, 6)])
def test_half_precision_rounds_only_the_gradient(backend, dtype, tube):
    pred, video, index = inputs(2, (2, 2, 3), tube, 3, 7, dtype)
    leaf, wide = pred.clone().requires_grad_(), pred.double().requires_grad_()
    loss = masked_patch_loss(leaf, video, index, tube=tube, backend=backend)
    exact = masked_patch_loss(wide, video, index, tube=tube, backend="reference")
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    (loss * 1024).backward()
    (exact * 1024).backward()
    assert leaf.grad.dtype is dtype
    bound = torch.finfo(dtype).eps * wide.grad.abs() + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert bool(((leaf.grad.double() - wide.grad).abs() <= bound).all())


@needs_cpu
def test_second_backward_adds_and_a_changed_gradient_is_refused():
    pred, video, index = inputs(2, (2, 2, 2), (2, 4, 4), 3, 5)
    leaf = pred.requires_grad_()
    loss = masked_patch_loss(leaf, video, index, tube=(2, 4, 4))
    loss.backward(retain_graph=True)
    once = leaf.grad.clone()
    loss.backward(retain_graph=True)
    assert torch.equal(leaf.grad, 2 * once)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_cpu
def test_second_derivative_is_refused_not_wrong():
    pred, video, index = inputs(1, (1, 2, 2), (2, 4, 4), 3, 3)
    leaf = pred.requires_grad_()
    loss = masked_patch_loss(leaf, video, index, tube=(2, 4, 4))
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(loss, leaf, create_graph=True)


def test_second_derivative_of_the_reference():
    pred, video, index = inputs(1, (1, 2, 2), (2, 4, 4), 3, 3, torch.float64)
    leaf = pred.requires_grad_()
    loss = masked_patch_loss(leaf, video, index, tube=(2, 4, 4), backend="reference")
    (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    assert torch.allclose(second, torch.full_like(leaf, 2 / leaf.numel()), rtol=1e-12)


@emulated
def test_grad_out_receives_the_gradient(backend):
    pred, video, index = inputs(2, (2, 2, 2), (2, 16, 16), 3, 5)
    leaf = pred.clone().requires_grad_()
    masked_patch_loss(leaf, video, index, backend=backend).backward()
    buffer = torch.full_like(pred, float("nan"))
    loss = masked_patch_loss(pred, video, index, grad_out=buffer, backend=backend)  # without autograd
    assert not loss.requires_grad
    assert torch.equal(buffer, leaf.grad)
    other, buffer = pred.clone().requires_grad_(), torch.empty_like(pred)
    masked_patch_loss(other, video, index, grad_out=buffer, backend=backend).backward()
    assert torch.equal(other.grad, leaf.grad)
    assert other.grad.data_ptr() == buffer.data_ptr()
    third = pred.clone().requires_grad_()
    (3 * masked_patch_loss(third, video, index, grad_out=torch.empty_like(pred), backend=backend)).backward()
    assert torch.allclose(third.grad, 3 * leaf.grad, rtol=1e-6)


@emulated
def test_grad_out_in_place_consumes_pred(backend):
    pred, video, index = inputs(2, (2, 2, 2), (2, 16, 16), 3, 5)
    leaf = pred.clone().requires_grad_()
    masked_patch_loss(leaf * 2, video, index, backend=backend).backward()
    other = pred.clone().requires_grad_()
    doubled = other * 2
    loss = masked_patch_loss(doubled, video, index, grad_out=doubled, backend=backend)
    loss.backward()
    assert torch.equal(other.grad, leaf.grad)
    squashed = other.tanh()  # saves its output, which is about to be overwritten
    loss = masked_patch_loss(squashed, video, index, grad_out=squashed, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_grad_out_is_refused_where_it_cannot_work():
    pred, video, index = inputs(1, (1, 2, 2), (2, 4, 4), 3, 3)
    with pytest.raises(ValueError, match="contiguous and like `pred`"):
        masked_patch_loss(pred, video, index, tube=(2, 4, 4), grad_out=pred.double())
    with pytest.raises(ValueError, match="before any loss scale"):
        masked_patch_loss(pred.half(), video, index, tube=(2, 4, 4), grad_out=pred.half())
    with pytest.raises(Exception, match="plain eager mode only"):
        torch.compile(
            lambda p: masked_patch_loss(p, video, index, tube=(2, 4, 4), grad_out=torch.empty_like(p)),
            fullgraph=True, backend="eager",
        )(pred)  # fmt: skip


@needs_cpu
def test_grad_out_must_not_overlap_partly():
    pred, video, index = inputs(1, (1, 2, 2), (2, 4, 4), 3, 3)
    memory = torch.zeros(pred.numel() + 8)
    with pytest.raises(ValueError, match="overlaps"):
        masked_patch_loss(
            memory[: pred.numel()].view(pred.shape), video, index, tube=(2, 4, 4),
            grad_out=memory[8:].view(pred.shape), backend="cpu",
        )  # fmt: skip
