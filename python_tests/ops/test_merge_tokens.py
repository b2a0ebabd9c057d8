"""merge_tokens: values written by hand, so that the reference itself is pinned; properties; refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidkernels.ops.merge_tokens.op import merge_tokens, merge_tokens_backward

BACKENDS = ("reference", "cpu")


def ints(*rows):
    return torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_means_by_hand(backend):
    tokens = torch.tensor([[[1.0, 10], [2, 20], [4, 40], [8, 80]]])
    merged, total = merge_tokens(tokens, ints([1, 0, 1, 1]), torch.tensor([[1.0, 5, 2, 1]]), 2, backend=backend)
    assert total.tolist() == [[5, 4]]
    assert merged.tolist() == [[[2, 20], [4.25, 42.5]]]  # (1 + 2 * 4 + 8) / 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_sizes_are_ones(backend):
    merged, total = merge_tokens(torch.tensor([[[1.0], [3.0], [7.0]]]), ints([0, 0, 1]), None, 3, backend=backend)
    assert merged.flatten().tolist() == [2, 7, 0]
    assert total.tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_by_hand(backend):
    grad_merged = torch.tensor([[[8.0], [3.0], [5.0]]])
    size, total = torch.tensor([[1.0, 3, 2, 0]]), torch.tensor([[4.0, 2, 0]])
    grad = merge_tokens_backward(grad_merged, ints([0, 0, 1, 2]), size, total, backend=backend)
    assert grad.flatten().tolist() == [2, 6, 3, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_of_size_zero_has_no_say(backend):
    tokens = torch.tensor([[[float("inf")], [2.0], [float("nan")], [float("inf")]]])
    merged, total = merge_tokens(tokens, ints([0, 0, 0, 1]), torch.tensor([[0.0, 3, 0, 0]]), 2, backend=backend)
    assert merged.flatten().tolist() == [2, 0]
    assert total.tolist() == [[3, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_means_of_the_largest_numbers_are_finite(backend, dtype):
    tokens = torch.full((1, 40, 24), 0.99 * torch.finfo(dtype).max, dtype=dtype)
    size = torch.full((1, 40), 1000.0)
    merged, _ = merge_tokens(tokens, torch.zeros(1, 40, dtype=torch.int32), size, 1, backend=backend)
    assert torch.isfinite(merged).all()
    rounding = max(torch.finfo(dtype).eps, 40 * torch.finfo(torch.float32).eps)  # of 40 shares, added up
    torch.testing.assert_close(merged, tokens[:, :1], rtol=rounding, atol=0)


def test_sizes_stay_exact_beside_half_precision():
    """A float16 sum of sizes stops at 2048."""
    tokens = torch.ones(1, 5000, 8, dtype=torch.float16)
    _, total = merge_tokens(tokens, torch.zeros(1, 5000, dtype=torch.int32), None, 1)
    assert total.dtype is torch.float32
    assert total.item() == 5000


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0)
)
def test_backward_is_the_adjoint_and_sums_are_kept(sizes, seed):
    batch, length, count, dim = sizes
    g = torch.Generator().manual_seed(seed % 2**63)
    source = torch.randint(0, count, (batch, length), generator=g, dtype=torch.int32)
    size = torch.randint(0, 4, (batch, length), generator=g).double()
    x = torch.randn(batch, length, dim, generator=g, dtype=torch.float64)
    y = torch.randn(batch, count, dim, generator=g, dtype=torch.float64)
    merged, total = merge_tokens(x, source, size, count)
    left, right = (merged * y).sum(), (x * merge_tokens_backward(y, source, size, total)).sum()
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-9)
    assert torch.equal(total.sum(1), size.sum(1))
    torch.testing.assert_close((merged * total[..., None]).sum(1), (x * size[..., None]).sum(1), rtol=1e-10, atol=1e-9)


def test_bits_do_not_depend_on_threads_or_on_the_rest_of_the_batch(generator, one_and_two_threads):
    tokens = torch.randn(4, 300, 96, generator=generator)
    source = torch.randint(0, 90, (4, 300), generator=generator, dtype=torch.int32)
    size = torch.rand(4, 300, generator=generator)
    one, two = one_and_two_threads(lambda: merge_tokens(tokens, source, size, 90)[0])
    assert torch.equal(one, two)
    alone = merge_tokens(tokens[2:3], source[2:3], size[2:3], 90)[0]
    assert torch.equal(alone, one[2:3])


@pytest.mark.parametrize(("dtype", "length"), [(torch.float32, 11500), (torch.float16, 23000)])
def test_large_outputs_are_written_past_the_caches(dtype, length, generator, one_and_two_threads):
    """From 32 MB on; every kind of row: copied, averaged, left empty."""
    tokens = torch.randn(1, length, 768, generator=generator).to(dtype)
    source = (torch.arange(length, dtype=torch.int32) % (length - 200)).add_(torch.arange(length) % 2)[None].int()
    size = torch.randint(0, 3, (1, length), generator=generator).float()
    (merged, total), again = one_and_two_threads(
        lambda: merge_tokens(tokens, source, size, length - 100, backend="cpu")
    )
    assert merged.nbytes >= 32 << 20
    expected, expected_total = merge_tokens(tokens, source, size, length - 100, backend="reference")
    assert torch.equal(total, expected_total)
    torch.testing.assert_close(merged, expected, rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)
    assert torch.equal(merged, again[0])
    grad = merge_tokens_backward(merged, source, size, total, backend="cpu")
    expected = merge_tokens_backward(merged, source, size, total, backend="reference")
    torch.testing.assert_close(grad, expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("bad", [-1, 3, 2**31 - 1])
def test_a_place_outside_is_refused_by_name(bad):
    source = ints([0, 2], [1, bad])
    with pytest.raises(ValueError, match=rf"`source`\[1, 1\] is {bad}, outside the 3 places"):
        merge_tokens(torch.zeros(2, 2, 4), source, None, 3, backend="cpu")
    with pytest.raises(ValueError, match="outside the 3 places"):
        merge_tokens_backward(torch.zeros(2, 3, 4), source, None, torch.ones(2, 3), backend="cpu")


def test_a_kernel_leaves_out_what_lies_outside():
    """The GPU kernels cannot refuse; nothing may be read or written there."""
    if (reason := merge_tokens.why_not("simt_trace")) is not None:
        pytest.skip(reason)
    tokens, source = torch.ones(1, 5, 8), ints([0, 7, -1, 2**31 - 1, 1])
    merged, total = merge_tokens(tokens, source, None, 3, backend="simt_trace")
    assert total.tolist() == [[1, 1, 0]]
    assert merged[0, :, 0].tolist() == [1, 1, 0]
    grad = merge_tokens_backward(merged, source, None, total, backend="simt_trace")
    assert grad[0, :, 0].tolist() == [1, 0, 0, 0, 1]
