"""gather_tokens: values written by hand, so that the reference itself is pinned; properties; refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidkernels.ops.gather_tokens.op import gather_tokens, gather_tokens_backward

BACKENDS = ("reference", "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_by_hand(backend):
    tokens = torch.tensor([[[1.0, 2], [3, 4], [5, 6]], [[7, 8], [9, 10], [11, 12]]])
    index = torch.tensor([[2, 0], [1, 1]], dtype=torch.int32)
    out = gather_tokens(tokens, index, backend=backend)
    assert out.tolist() == [[[5, 6], [1, 2]], [[9, 10], [9, 10]]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_by_hand(backend):
    grad_out = torch.tensor([[[1.0, 10], [2, 20], [4, 40]]])
    index = torch.tensor([[3, 1, 3]], dtype=torch.int32)
    grad = gather_tokens_backward(grad_out, index, 4, backend=backend)
    assert grad.tolist() == [[[0, 0], [2, 20], [0, 0], [5, 50]]]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(0, 40), st.integers(1, 40)), seed=st.integers(0)
)
def test_backward_is_the_adjoint(sizes, seed):
    batch, length, count, dim = sizes
    g = torch.Generator().manual_seed(seed % 2**63)
    index = torch.randint(0, length, (batch, count), generator=g, dtype=torch.int32)
    x = torch.randn(batch, length, dim, generator=g, dtype=torch.float64)
    y = torch.randn(batch, count, dim, generator=g, dtype=torch.float64)
    left = (gather_tokens(x, index) * y).sum()
    right = (x * gather_tokens_backward(y, index, length)).sum()
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-9)


def test_a_large_output_is_written_past_the_caches(generator):
    """From 32 MB on, as when merged tokens are put back."""
    tokens = torch.randn(2, 5000, 768, generator=generator)
    index = torch.randint(0, 5000, (2, 6000), generator=generator, dtype=torch.int32)
    out = gather_tokens(tokens, index, backend="cpu")
    assert out.nbytes >= 32 << 20
    assert torch.equal(out, gather_tokens(tokens, index, backend="reference"))


@pytest.mark.parametrize("bad", [-1, 3, 2**31 - 1])
def test_index_outside_is_refused_with_its_place(bad):
    index = torch.tensor([[0, 2], [1, bad]], dtype=torch.int32)
    with pytest.raises(ValueError, match=rf"`index`\[1, 1\] is {bad}, outside the 3 tokens"):
        gather_tokens(torch.zeros(2, 3, 4), index, backend="cpu")
    with pytest.raises(ValueError, match="outside the 3 tokens"):
        gather_tokens_backward(torch.zeros(2, 2, 4), index, 3, backend="cpu")


def test_native_wall_names_every_argument():
    with pytest.raises(ValueError, match=r"gather_tokens: expected `index` of dtype int32(.|\n)*tokens *: shape="):
        gather_tokens(torch.zeros(2, 3, 4), torch.zeros(2, 1, dtype=torch.int64), backend="cpu")
