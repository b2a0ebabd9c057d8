"""Quantisation against closed forms, torch.distributions and vector_quantize_pytorch."""

import math

import pytest
import torch
from torch.distributions import Dirichlet, kl_divergence

from vidkernels.functional.quantize.dirichlet import dirichlet_kl, dirichlet_sample
from vidkernels.functional.quantize.fsq import fsq, fsq_codes
from vidkernels.functional.quantize.vq import code_sums, ema_codebook, perplexity, straight_through, vector_quantize

# ---- vector quantisation


def plain(x, codebook, commitment, codebook_loss):
    """The textbook form, by autograd."""
    flat = x.reshape(-1, x.shape[-1])
    index = torch.cdist(flat, codebook).argmin(1)
    q = codebook[index].view(x.shape)
    loss = commitment * (x - q.detach()).square().mean() + codebook_loss * (x.detach() - q).square().mean()
    return x + (q - x).detach(), index.view(x.shape[:-1]), loss


@pytest.mark.parametrize("codebook_loss", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(30, 5), (2, 7, 3, 5), (5,), (0, 5)])
def test_values_and_gradients_are_the_textbooks(shape, codebook_loss, generator):
    data = torch.randn(shape, generator=generator, dtype=torch.float64)
    codes = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    results = []
    for function in (plain, lambda x, c, a, b: vector_quantize(x, c, commitment=a, codebook_loss=b)):
        x, codebook = data.clone().requires_grad_(), codes.clone().requires_grad_()
        quantized, index, loss = function(x, codebook, 0.25, codebook_loss)
        ((quantized * weight).sum() + 3 * loss).backward()
        results.append((quantized, index, loss, x.grad, codebook.grad))
    for name, want, got in zip(("quantized", "index", "loss", "grad x", "grad codes"), *results):
        if name == "loss" and data.numel() == 0:
            assert got == 0  # the mean of nothing is NaN in torch, and would spoil a sum of losses
            continue
        want = torch.zeros_like(codes) if want is None else want
        torch.testing.assert_close(torch.zeros_like(codes) if got is None else got, want, msg=lambda m, n=name: n + m)


def test_the_gradient_goes_straight_through(generator):
    """d loss / d x equals d loss / d quantized, bit for bit."""
    x = torch.randn(6, 4, generator=generator, requires_grad=True)
    codebook = torch.randn(3, 4, generator=generator)
    quantized = vector_quantize(x, codebook, commitment=0.0).quantized
    quantized.retain_grad()
    (quantized.sin() * torch.randn(6, 4, generator=generator)).sum().backward()
    assert torch.equal(x.grad, quantized.grad)
    assert torch.equal(quantized, codebook[torch.cdist(x, codebook).argmin(1)])  # codes, not x + (code - x)


def test_equally_near_codes_give_the_first():
    codebook = torch.tensor([[5.0], [1.0], [-1.0], [1.0]])
    assert vector_quantize(torch.tensor([[0.0], [1.0]]), codebook).index.tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_vectors(dtype, generator):
    x = torch.randn(50, 8, generator=generator).to(dtype)
    codebook = torch.randn(6, 8, generator=generator)
    got, want = vector_quantize(x.clone().requires_grad_(), codebook), vector_quantize(x.float(), codebook)
    assert got.quantized.dtype is dtype
    assert got.loss.dtype is torch.float32
    assert torch.equal(got.index, want.index)
    assert torch.equal(got.loss, want.loss)
    assert torch.equal(got.quantized, want.quantized.to(dtype))


def test_autocast_quantises_in_float32(generator):
    x, codebook = torch.randn(50, 8, generator=generator), torch.randn(6, 8, generator=generator)
    want = vector_quantize(x, codebook)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = vector_quantize(x, codebook)
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_second_derivatives(generator):
    """Of the commitment loss those of a parabola; those in the codebook are refused."""
    x = torch.randn(5, 2, generator=generator, requires_grad=True)
    codebook = torch.randn(3, 2, generator=generator)
    result = vector_quantize(x, codebook)
    (first,) = torch.autograd.grad(result.loss + (result.quantized**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, 2 * 0.25 / 10 + 6 * result.quantized.detach())
    codebook.requires_grad_()
    loss = vector_quantize(x, codebook, codebook_loss=1.0).loss
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_bad_vectors(generator):
    x, codebook = torch.randn(5, 4, generator=generator), torch.randn(3, 4, generator=generator)
    for bad in (codebook[:, :3], codebook[:0]):
        with pytest.raises(ValueError, match="codebook"):
            vector_quantize(x, bad)
    with pytest.raises(ValueError, match="floating-point"):
        vector_quantize(x.long(), codebook)
    x[3] = float("nan")
    with pytest.raises(ValueError, match="3"):
        vector_quantize(x, codebook)


def test_straight_through_refuses_other_shapes():
    with pytest.raises(ValueError, match="shape"):
        straight_through(torch.zeros(2), torch.zeros(3))


def test_sums_of_codes(generator):
    x, index = torch.randn(90, 3, generator=generator), torch.randint(-1, 7, (90,), generator=generator)
    sums, counts = code_sums(x, index, 7)
    for j in range(7):
        torch.testing.assert_close(sums[j], x[index == j].sum(0))
        assert counts[j] == (index == j).sum()
    with pytest.raises(ValueError, match="index"):
        code_sums(x, index[:5], 7)


def test_moving_average_by_hand():
    """Two codes, decay 0.8, smoothing 0.1: every number written out."""
    codebook, counts, sums = ema_codebook(
        torch.tensor([5.0, 0.0]), torch.tensor([[10.0], [0.0]]), torch.tensor([10.0, 5.0]),
        torch.tensor([[30.0], [-5.0]]), decay=0.8, eps=0.1,
    )  # fmt: skip
    assert counts.tolist() == pytest.approx([6.0, 1.0])  # 0.8 * 5 + 0.2 * 10, 0.2 * 5
    assert sums.flatten().tolist() == pytest.approx([14.0, -1.0])
    smooth = [6.1 / 7.2 * 7, 1.1 / 7.2 * 7]
    assert codebook.flatten().tolist() == pytest.approx([14 / smooth[0], -1 / smooth[1]])
    with pytest.raises(ValueError, match="decay"):
        ema_codebook(counts, sums, counts, sums, decay=1.5)


def test_perplexity():
    assert perplexity(torch.arange(12), 12).item() == pytest.approx(12)
    assert perplexity(torch.full((4, 5), 3), 12).item() == pytest.approx(1)
    assert perplexity(torch.tensor([0, 0, 0, 7, -1]), 12).item() == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )
    assert perplexity(torch.zeros(0, dtype=torch.int64), 4).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="int64"):
        perplexity(torch.zeros(3), 4)


# ---- finite scalars


@pytest.mark.parametrize("levels", [(3,), (3, 4), (8, 5, 5, 5), (8, 8, 8, 5, 5, 5)])
def test_fsq_agrees_with_vector_quantize_pytorch(levels, generator):
    lucid = pytest.importorskip("vector_quantize_pytorch").FSQ(list(levels))
    z = torch.randn(3, 50, len(levels), generator=generator) * 2
    ours, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    quantized, index = fsq(ours, levels)
    wanted, wanted_index = lucid(theirs)
    torch.testing.assert_close(quantized, wanted)
    assert torch.equal(index, wanted_index.long())
    weight = torch.randn(quantized.shape, generator=generator)
    (quantized * weight).sum().backward()
    (wanted * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_all_64000_codes_come_back():
    levels = [8, 8, 8, 5, 5, 5]
    index = torch.arange(64_000)
    codes = fsq_codes(index, levels)
    assert codes.unique(dim=0).shape[0] == 64_000
    assert codes.abs().max() <= 1
    # The vector that the bound maps onto a code's own grid point is quantised to it.
    half = (torch.tensor(levels, dtype=torch.float64) - 1) * 1.001 / 2
    offset = torch.tensor([0.5, 0.5, 0.5, 0, 0, 0])
    digits = codes.double() * torch.tensor([4, 4, 4, 2, 2, 2])
    z = torch.atanh((digits + offset) / half) - torch.atanh(offset / half)
    quantized, back = fsq(z, levels)
    assert torch.equal(back, index)
    assert torch.equal(quantized.float(), codes)
    assert torch.equal(fsq_codes(fsq(torch.zeros(6), levels).index, levels), torch.zeros(6))


def test_fsq_gradient_is_that_of_the_bound(generator):
    z = torch.randn(40, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    (fsq(z, (8, 5, 4)).quantized * weight).sum().backward()
    half = (torch.tensor([8, 5, 4], dtype=torch.float64) - 1) * 1.001 / 2
    offset = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
    slope = half * (1 - torch.tanh(z.detach() + torch.atanh(offset / half)) ** 2) / torch.tensor([4.0, 2.0, 2.0])
    torch.testing.assert_close(z.grad, weight * slope)


def test_fsq_bad_input():
    for levels in ((), (8, 2), (3,) * 40):
        with pytest.raises(ValueError, match="levels"):
            fsq(torch.zeros(1, len(levels)), levels)
    with pytest.raises(ValueError, match=r"\[\.\.\., 2\]"):
        fsq(torch.zeros(1, 3), (8, 8))


def test_fsq_of_half_precision_and_huge_values():
    z = torch.tensor([[1e4, -1e4, float("inf")]], dtype=torch.float16)
    quantized, index = fsq(z, (8, 8, 5))
    assert quantized.dtype is torch.float16
    assert quantized.tolist() == [[0.75, -1.0, 1.0]]
    assert index.item() == 7 + 0 * 8 + 4 * 64


# ---- Dirichlet


@pytest.mark.parametrize("prior", [1.1, 0.3, 20.0])
def test_kl_is_torch_distributions(prior, generator):
    alpha = (torch.randn(4, 6, 9, generator=generator, dtype=torch.float64) * 2).exp().requires_grad_()
    want = kl_divergence(Dirichlet(alpha), Dirichlet(torch.full_like(alpha, prior)))
    got = dirichlet_kl(alpha, prior)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), alpha)[0] for v in (got, want)))
    torch.testing.assert_close(dirichlet_kl(alpha, torch.full((9,), prior, dtype=torch.float64)), want)


def test_kl_from_itself_is_zero():
    assert dirichlet_kl(torch.full((3, 5), 1.1)).abs().max() < 1e-6


@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_draws_have_the_moments_of_the_dirichlet(scale, generator):
    alpha = torch.tensor([1.0, 2.0, 3.5, 0.5], dtype=torch.float64) * scale
    law, runs = Dirichlet(alpha), 20_000
    w = dirichlet_sample(alpha.expand(runs, 4), generator=generator)
    torch.testing.assert_close(w.sum(1), torch.ones(runs, dtype=torch.float64))
    assert ((w.mean(0) - law.mean).abs() <= 5 * (law.variance / runs).sqrt()).all()
    spread = (w - law.mean).square()
    assert ((spread.mean(0) - law.variance).abs() <= 5 * spread.std(0) / runs**0.5).all()


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_gradients_of_draws_are_unbiased(scale, generator):
    """E[w_i] = a_i / a0 and E[w_i^2] = a_i (a_i + 1) / (a0 (a0 + 1)): the mean gradient against theirs."""
    runs = 20_000
    alpha = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64) * scale
    weight = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)

    a = alpha.clone().requires_grad_()
    expected = (weight * a / a.sum() + a * (a + 1) / (a.sum() * (a.sum() + 1))).sum()
    (want,) = torch.autograd.grad(expected, a)
    many = alpha.expand(runs, 3).clone().requires_grad_()
    w = dirichlet_sample(many, generator=generator)
    (each,) = torch.autograd.grad((weight * w + w * w).sum(), many)
    assert ((each.mean(0) - want).abs() <= 5 * each.std(0) / runs**0.5).all()


def test_tiny_alpha_draws_corners_not_nans(generator):
    alpha = torch.full((500, 1024), 1e-2 / 100, requires_grad=True)
    w = dirichlet_sample(alpha, generator=generator)
    assert w.isfinite().all()
    torch.testing.assert_close(w.sum(1), torch.ones(500))
    (w * torch.arange(1024.0)).sum().backward()
    assert alpha.grad.isfinite().all()


def test_draws_repeat_with_the_generator():
    alpha = torch.rand(3, 4)
    first, second = (dirichlet_sample(alpha, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)


def test_bad_alpha():
    for function in (dirichlet_sample, dirichlet_kl):
        with pytest.raises(ValueError, match="alpha"):
            function(torch.tensor(1.0))
    with pytest.raises(ValueError, match="prior"):
        dirichlet_kl(torch.ones(2), -1.0)
