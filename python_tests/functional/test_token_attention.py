"""Proportional attention against attention over repeated tokens, in float64."""

import pytest
import torch
from torch.nn import functional as F

from vidkernels.functional.tokens.attention import proportional_attention


def inputs(batch=2, heads=3, rows=7, length=9, dim=4, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, rows, dim, generator=g, dtype=torch.float64)
    key, value = torch.randn(2, batch, heads, length, dim, generator=g, dtype=torch.float64).unbind(0)
    size = torch.randint(0, 6, (batch, length), generator=g)
    size[:, 0] = 1
    return query.to(dtype), key.to(dtype), value.to(dtype), size


def repeated(query, key, value, size, scale=None):
    """Every key and value as often as its size says, and plain softmax."""
    rows = []
    for b in range(len(query)):
        k, v = (t[b].double().repeat_interleave(size[b], 1) for t in (key, value))
        scores = query[b].double() @ k.transpose(1, 2) * (query.shape[3] ** -0.5 if scale is None else scale)
        rows.append(scores.softmax(2) @ v)
    return torch.stack(rows)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.float16])
def test_a_token_of_size_s_is_s_tokens(scale, dtype):
    query, key, value, size = inputs()
    out = proportional_attention(query, key, value, size.to(dtype), scale=scale)
    tolerance = 1e-12  # small sizes are exact in every dtype
    torch.testing.assert_close(out, repeated(query, key, value, size, scale), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("length", [1, 5, 64, 131])
def test_lower_precision(dtype, tolerance, length):
    query, key, value, size = inputs(length=length, rows=65, dim=16, dtype=dtype)
    out = proportional_attention(query, key, value, size.to(dtype))
    assert out.dtype is dtype
    torch.testing.assert_close(out.double(), repeated(query, key, value, size), rtol=tolerance, atol=tolerance)


def test_without_sizes_it_is_torch():
    query, key, value, _ = inputs(dtype=torch.float32)
    assert torch.equal(proportional_attention(query, key, value), F.scaled_dot_product_attention(query, key, value))
    torch.testing.assert_close(
        proportional_attention(query, key, value, torch.ones(2, 9)), F.scaled_dot_product_attention(query, key, value)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sizes_of_any_value(dtype):
    query, key, value, _ = inputs(dtype=dtype)
    size = torch.tensor([1.0, 65504, 1e-7, 6e4, 3, 1e4, 2, 0, 5]).expand(2, 9)
    out = proportional_attention(query, key, value, size)
    weight = (query.double() @ key.double().transpose(2, 3) / 2).exp() * size.double()[:, None, None]
    expected = weight / weight.sum(3, keepdim=True) @ value.double()
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)


def test_padding_of_a_whole_clip_gives_zeros():
    query, key, value, size = inputs(dtype=torch.float32)
    size[1] = 0
    query.requires_grad_()
    out = proportional_attention(query, key, value, size)
    assert out[1].eq(0).all()
    assert torch.autograd.grad(out.sum(), query)[0].isfinite().all()


def test_what_padding_holds_does_not_matter():
    query, key, value, size = inputs()
    size[:, 4] = 0
    expected = proportional_attention(query, key, value, size)
    key[:, :, 4], value[:, :, 4] = 1e4, -1e4
    torch.testing.assert_close(proportional_attention(query, key, value, size), expected)


def test_masks_add_up():
    query, key, value, size = inputs()
    allowed = torch.rand(2, 1, 7, 9, generator=torch.Generator().manual_seed(3)) > 0.4
    allowed[..., 0] = True
    expected = proportional_attention(query, key, value, size, attn_mask=allowed)
    as_numbers = torch.zeros(2, 1, 7, 9, dtype=torch.float64).masked_fill(~allowed, float("-inf"))
    torch.testing.assert_close(proportional_attention(query, key, value, size, attn_mask=as_numbers), expected)
    one = proportional_attention(
        query[:1, :, :1], key[:1, :, allowed[0, 0, 0]], value[:1, :, allowed[0, 0, 0]], size[:1, allowed[0, 0, 0]]
    )
    torch.testing.assert_close(expected[:1, :, :1], one)


def test_gradients():
    query, key, value, _ = inputs(1, 2, 3, 4, 2)
    size = torch.tensor([[1.0, 2.5, 3.0, 1.0]], dtype=torch.float64)
    arguments = [t.requires_grad_() for t in (query, key, value, size)]
    assert torch.autograd.gradcheck(proportional_attention, arguments)


def test_gradients_of_a_fixed_size_take_the_fused_kernel():
    query, key, value, size = inputs(dtype=torch.float32)
    leaves = [t.requires_grad_() for t in (query, key, value)]
    out = proportional_attention(*leaves, size)
    assert "Flash" in type(out.grad_fn).__name__
    exact = [t.detach().double().requires_grad_() for t in (query, key, value)]
    expected = torch.autograd.grad(repeated(*exact, size).sin().sum(), exact)
    for a, b in zip(torch.autograd.grad(out.sin().sum(), leaves), expected):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 2, 3, 5), (1, 2, 0, 5), (1, 2, 3, 0)])
def test_empty(shape):
    batch, heads, rows, length = shape
    query, key = torch.zeros(batch, heads, rows, 4), torch.zeros(batch, heads, length, 4)
    out = proportional_attention(query, key, key, torch.ones(batch, length))
    assert out.shape == (batch, heads, rows, 4)
    assert out.eq(0).all()


def test_compiles_without_graph_breaks():
    query, key, value, size = inputs(dtype=torch.float32)
    compiled = torch.compile(proportional_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(query, key, value, size), proportional_attention(query, key, value, size), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
def test_flex_attention():
    query, key, value, size = inputs(rows=150, length=150, dim=32, dtype=torch.float32)
    size[1] = 0
    with torch.no_grad():
        torch.testing.assert_close(
            proportional_attention(query, key, value, size, kernel="flex"),
            proportional_attention(query, key, value, size),
        )


def test_refusals():
    query, key, value, size = inputs()
    with pytest.raises(ValueError, match=r"expected `query` of shape \[B, H, N, d\]"):
        proportional_attention(query[0], key, value, size)
    with pytest.raises(ValueError, match="one number per key"):
        proportional_attention(query, key, value, size[:, :, None])
    with pytest.raises(ValueError, match="one number per key"):
        proportional_attention(query, key, value, size[:, 1:])
    with pytest.raises(ValueError, match="expected `kernel`"):
        proportional_attention(query, key, value, size, kernel="flash")
    with pytest.raises(ValueError, match="takes neither"):
        proportional_attention(query, key, value, size, kernel="flex", dropout_p=0.1)
