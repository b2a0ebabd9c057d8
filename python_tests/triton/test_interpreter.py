"""The shared Triton helpers and kernels in the interpreter (TRITON_INTERPRET=1, set by conftest)."""

import math

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from vidkernels.functional import masked_patch_loss  # noqa: E402
from vidkernels.ops._triton.blocks import INTERPRETING, dot, power_of_2  # noqa: E402


@triton.jit
def multiply_kernel(a, b, out, SIZE: tl.constexpr):
    rows, columns = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    place = rows * SIZE + columns
    tl.store(out + place, dot(tl.load(a + place), tl.load(b + place)))


def test_the_interpreter_runs():
    assert INTERPRETING.value


@pytest.mark.parametrize(("n", "expected"), [(0, 1), (1, 1), (3, 4), (64, 64), (65, 128)])
def test_power_of_2(n, expected):
    assert power_of_2(n) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dot_multiplies_numbers_not_bit_patterns(dtype):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 16, generator=g).to(dtype) for _ in range(2))
    out = torch.empty(16, 16)
    multiply_kernel[(1,)](a, b, out, SIZE=16)
    assert float((out.double() - a.double() @ b.double()).abs().max()) < 1e-5


@pytest.mark.parametrize("convention", ["videomae", "mae_st"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_patch_loss_at_the_size_of_videomae(convention, dtype):
    g = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (1, 4, 48, 32, 3), generator=g, dtype=torch.uint8)
    video[:, :2, :16, :16] = 9  # one flat tube
    index = torch.tensor([[0, 7, 11, 3]])
    pred = torch.randn(1, 4, 1536, generator=g).to(dtype)
    leaf, wide = pred.clone().requires_grad_(), pred.double().requires_grad_()
    loss = masked_patch_loss(leaf, video, index, convention=convention, backend="triton")
    exact = masked_patch_loss(wide, video, index, convention=convention, backend="reference")
    (loss * 3).backward()
    (exact * 3).backward()
    assert loss.item() == pytest.approx(exact.item(), rel=2e-6)
    bound = wide.grad.abs() * torch.finfo(dtype).eps + 2e-6 * wide.grad.abs().max()
    assert bool(((leaf.grad.double() - wide.grad).abs() <= bound).all())


def test_index_outside_the_grid_is_nan_and_reads_nothing():
    """What the CUDA kernel does, too: looking would stall the stream."""
    video = torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8)
    pred = torch.ones(1, 3, 96, requires_grad=True)
    loss = masked_patch_loss(pred, video, torch.tensor([[0, 4, -1]]), tube=(2, 4, 4), backend="triton")
    loss.backward()
    assert math.isnan(loss.item())
    assert pred.grad.isnan().all(2).tolist() == [[False, True, True]]
    assert torch.equal(pred.grad[0, 0], torch.full((96,), 2 / pred.numel()))


def test_too_large_and_double_say_why():
    video = torch.zeros(1, 8, 64, 64, 3, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="at most 32768 elements"):
        masked_patch_loss(torch.zeros(1, 1, 98304), video, torch.tensor([[0]]), tube=(8, 64, 64), backend="triton")
    with pytest.raises(RuntimeError, match="computes in float32"):
        masked_patch_loss(
            torch.zeros(1, 1, 1536, dtype=torch.float64), video, torch.tensor([[0]]), backend="triton"
        )  # fmt: skip
