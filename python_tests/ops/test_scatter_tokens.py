"""scatter_tokens against the usual code written out, its gradients against sums in float64, and its refusals."""

import pytest
import torch

import vidkernels as vk
from vidkernels.ops.scatter_tokens.op import scatter_tokens, scatter_tokens_backward

F = vk.functional
NATIVE = [
    pytest.param(
        b,
        marks=pytest.mark.skipif(
            scatter_tokens.why_not(b, torch.zeros(1, 1, 1), torch.zeros(1, 1).int(), 1, torch.zeros(1), None)
            is not None,
            reason=b,
        ),
    )
    for b in ("cpu", "simt")
]
BACKENDS = ["reference", *NATIVE]


def inputs(batch=3, length=41, dim=24, count=13, dtype=torch.float32, param=None, seed=0):
    g = torch.Generator().manual_seed(seed)
    visible = torch.randn(batch, count, dim, generator=g).to(dtype)
    index = torch.rand(batch, length, generator=g).argsort(1)[:, :count].int()
    mask_token = torch.randn(dim, generator=g).to(param or dtype)
    position = torch.randn(length, dim, generator=g).to(param or dtype)
    return visible, index, length, mask_token, position


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    out = F.scatter_tokens(
        torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[3, 1]]), 4, torch.tensor([-1.0, -2.0]),
        torch.tensor([[10.0, 10.0], [20.0, 20.0], [30.0, 30.0], [40.0, 40.0]]), backend=backend)  # fmt: skip
    assert out.tolist() == [[[9.0, 8.0], [23.0, 24.0], [29.0, 28.0], [41.0, 42.0]]]
    bare = F.scatter_tokens(torch.ones(1, 1, 2), torch.tensor([[1]]), 3, torch.zeros(1, 1, 2), backend=backend)
    assert bare.tolist() == [[[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dim", [1, 7, 24, 520])
def test_equals_the_usual_code_bit_for_bit(backend, dim):
    visible, index, length, mask_token, position = inputs(dim=dim)
    expected = mask_token.expand(3, length, dim).clone()
    for b in range(3):
        expected[b, index[b].long()] = visible[b]
    expected += position
    assert torch.equal(F.scatter_tokens(visible, index, length, mask_token, position, backend=backend), expected)
    assert torch.equal(
        F.scatter_tokens(visible, index.long(), length, mask_token.view(1, 1, -1), position[None], backend=backend),
        expected,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_parameters_are_added_before_the_one_rounding(backend, dtype):
    visible, index, length, mask_token, position = inputs(dtype=dtype, param=torch.float32)
    out = F.scatter_tokens(visible, index, length, mask_token, position, backend=backend)
    expected = F.scatter_tokens(visible.float(), index, length, mask_token, position, backend="reference").to(dtype)
    assert out.dtype is dtype
    assert torch.equal(out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "param", "rtol"),
    [
        (torch.float64, torch.float64, 1e-14),
        (torch.float32, torch.float32, 1e-6),
        (torch.bfloat16, torch.float32, 1e-6),
        (torch.float16, torch.float32, 1e-6),
        (torch.bfloat16, torch.bfloat16, 5e-3),
    ],
)
def test_gradients_are_float32_sums_rounded_once(backend, dtype, param, rtol):
    visible, index, length, mask_token, position = inputs(batch=37, length=67, dtype=dtype, param=param)
    leaves = [t.requires_grad_() for t in (visible, mask_token, position)]
    out = F.scatter_tokens(visible, index, length, mask_token, position, backend=backend)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = torch.autograd.grad(out, leaves, grad)
    masked = torch.ones(out.shape[:2], dtype=torch.bool).scatter_(1, index.long(), False)
    wide = grad.double()
    rows = grad.gather(1, index.long()[..., None].expand_as(visible))
    assert torch.equal(got[0], rows)
    for g, e, p in ((got[1], wide[masked].sum(0), mask_token), (got[2], wide.sum(0), position)):
        assert g.dtype is p.dtype
        assert float((g.double() - e).abs().max()) <= rtol * float(e.abs().max()) * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_and_none_visible(backend):
    visible, index, length, mask_token, position = inputs(length=13)
    out = F.scatter_tokens(visible, index, length, mask_token, position, backend=backend)
    assert torch.equal(F.gather_tokens(out, index), visible + position[index.long()])
    grads = scatter_tokens_backward(out, index, torch.float32, True, backend=backend)
    assert bool((grads[1] == 0).all())
    none = F.scatter_tokens(visible[:, :0], index[:, :0], length, mask_token, position, backend=backend)
    assert torch.equal(none, (mask_token + position).expand(3, -1, -1))
    grads = scatter_tokens_backward(torch.ones(0, 5, 4), index[:0], torch.float32, True, backend=backend)
    assert bool((grads[1] == 0).all())
    assert grads[2].abs().sum() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivative(backend):
    visible, index, length, mask_token, position = inputs(batch=2, length=5, dim=3, count=2, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (visible, mask_token, position)]

    def function(v, m, p):
        return F.scatter_tokens(v, index, length, m, p, backend=backend)

    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("backend", ["reference", NATIVE[0]])
@pytest.mark.parametrize(
    ("index", "message"),
    [([[0, 9]], "9, outside the 9 tokens|leaves the 9 tokens"), ([[-1, 0]], "outside|leaves"),
     ([[4, 4]], "named before|twice")],
)  # fmt: skip
def test_indices_that_the_cpu_refuses(backend, index, message):
    index = torch.tensor(index, dtype=torch.int32)
    with pytest.raises(ValueError, match=message):
        F.scatter_tokens(torch.zeros(1, 2, 4), index, 9, torch.zeros(4), backend=backend)
    with pytest.raises(ValueError, match=message):
        scatter_tokens_backward(torch.zeros(1, 9, 4), index, torch.float32, True, backend=backend)


@pytest.mark.parametrize("backend", [NATIVE[1]])
def test_what_the_gpu_does_with_such_indices(backend):
    """Rows with a bad index are left out, the first of equal ones stays, and rows left out have no gradient."""
    visible = torch.arange(1.0, 6.0).view(1, 5, 1).repeat(1, 1, 4)
    index = torch.tensor([[2, -1, 2, 40, 35]], dtype=torch.int32)
    out = F.scatter_tokens(visible, index, 40, torch.zeros(4), backend=backend)
    assert out[0, :, 0].nonzero()[:, 0].tolist() == [2, 35]
    assert out[0, 2, 0] == 1
    assert out[0, 35, 0] == 5
    grads = scatter_tokens_backward(torch.ones(1, 40, 4), index, torch.float32, True, backend=backend)
    assert grads[0][0, :, 0].tolist() == [1, 0, 0, 0, 1]
    assert grads[1].tolist() == [38.0] * 4


def test_module_round_trip():
    mask = F.tube_mask(2, (2, 3, 3), 0.5)
    tokens, position = torch.randn(2, 18, 8), torch.randn(1, 18, 8)
    kept = F.gather_tokens(tokens, mask.visible_index)
    full = F.scatter_tokens(kept, mask.visible_index, 18, torch.zeros(1, 1, 8), position)
    expected = tokens.masked_fill(mask.to_bool()[..., None], 0) + position
    assert torch.equal(full, expected)


def test_autocast_keeps_the_tokens_dtype():
    visible, index, length, mask_token, position = inputs()
    leaves = [t.requires_grad_() for t in (mask_token, position)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = F.scatter_tokens(visible.bfloat16(), index, length, mask_token, position)
    assert out.dtype is torch.bfloat16
    assert all(g.dtype is torch.float32 for g in torch.autograd.grad(out.float().sum(), leaves))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (torch.zeros(2, 3), torch.zeros(2, 3).int(), 9, torch.zeros(4)),
            r"`visible` of shape \[B, K, D\], got \[2, 3\]",
        ),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 2).int(), 9, torch.zeros(4)), r"`visible_index` of shape \[B, K\]"),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 3), 9, torch.zeros(4)), "to hold integers"),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 3).int(), 9, torch.zeros(5)), "`mask_token` of 4 elements"),
        (
            (torch.zeros(2, 3, 4), torch.zeros(2, 3).int(), 9, torch.zeros(4), torch.zeros(8, 4)),
            r"`position` of shape \[N, D\] or \[1, N, D\] with N = 9, D = 4",
        ),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        F.scatter_tokens(*arguments)


@pytest.mark.parametrize("backend", [NATIVE[0]])
@pytest.mark.parametrize("dim", [512, 520])
def test_outputs_too_large_for_a_cache(backend, dim):
    """Above 32 MiB rows are streamed past the caches (where their size allows it): the same values."""
    visible, index, length, mask_token, position = inputs(batch=2, length=8400, dim=dim, count=800)
    expected = F.scatter_tokens(visible, index, length, mask_token, position, backend="reference")
    assert expected.nbytes > 32 << 20
    assert torch.equal(F.scatter_tokens(visible, index, length, mask_token, position, backend=backend), expected)
    bare = F.scatter_tokens(visible, index, length, mask_token, backend=backend)
    assert torch.equal(bare, F.scatter_tokens(visible, index, length, mask_token, backend="reference"))
    index[:, 5] = index[:, 9]  # a row that is picked twice is summed, not streamed
    tokens = expected.requires_grad_()
    grads = [
        torch.autograd.grad(F.gather_tokens(tokens, index, backend=b), tokens, visible)[0]
        for b in (backend, "reference")
    ]
    assert torch.equal(*grads)
