"""Codebook modules: what a training step does, against numbers by hand and another implementation."""

import copy

import pytest
import torch
from torch.nn import functional as F

from vidkernels.nn.quantize.composed import ProductVQ, ResidualVQ
from vidkernels.nn.quantize.dirichlet import DirichletCodebook
from vidkernels.nn.quantize.fsq import FSQ
from vidkernels.nn.quantize.vector_quantizer import VectorQuantizer


def quantizer(*args, seed=0, scale=1.0, **settings):
    torch.manual_seed(seed)
    vq = VectorQuantizer(*args, **settings)
    with torch.no_grad():
        codes = torch.randn(vq.codebook.shape) * scale
        vq.codebook.copy_(F.normalize(codes, dim=1) if vq.metric == "cosine" else codes)
        if vq.decay is not None:
            vq.ema_sums.copy_(vq.codebook)
    return vq


def test_a_step_by_hand():
    """Two codes on a line. The batch is quantised with the old codebook, then the codebook moves."""
    vq = VectorQuantizer(1, 2, decay=0.5, eps=0.0)
    vq.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    vq.ema_sums.copy_(vq.codebook)
    quantized, index, loss = vq(torch.tensor([[1.0], [2.0], [3.0], [8.0]]))
    assert index.tolist() == [0, 0, 0, 1]
    assert quantized.flatten().tolist() == [0.0, 0.0, 0.0, 10.0]
    assert loss.item() == pytest.approx(0.25 * (1 + 4 + 9 + 4) / 4)
    assert vq.ema_counts.tolist() == [2.0, 1.0]  # (1 + 3) / 2, (1 + 1) / 2
    assert vq.ema_sums.flatten().tolist() == [3.0, 9.0]  # (0 + 6) / 2, (10 + 8) / 2
    assert vq.codebook.flatten().tolist() == [1.5, 9.0]


def test_evaluation_changes_nothing(generator):
    vq = quantizer(4, 8, dead_below=1.0).eval()
    before = copy.deepcopy(vq.state_dict())
    vq(torch.randn(20, 4, generator=generator))
    assert all(torch.equal(v, before[k]) for k, v in vq.state_dict().items())


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_training_follows_vector_quantize_pytorch(metric, generator):
    """Twenty steps of a moving average beside the package, from one codebook; outputs, losses, codes, gradients."""
    package = pytest.importorskip("vector_quantize_pytorch")
    theirs = package.VectorQuantize(
        dim=6, codebook_size=10, decay=0.8, eps=1e-5, commitment_weight=0.25, use_cosine_sim=metric == "cosine",
        threshold_ema_dead_code=0, rotation_trick=False,
    )  # fmt: skip
    ours = quantizer(6, 10, metric=metric, decay=0.8)
    with torch.no_grad():
        theirs._codebook.embed.copy_(ours.codebook[None])
        theirs._codebook.embed_avg.copy_(ours.codebook[None])
    for _ in range(20):
        data = torch.randn(2, 30, 6, generator=generator)
        x, y = data.clone().requires_grad_(), data.clone().requires_grad_()
        got, want = ours(x), theirs(y)
        assert torch.equal(got.index, want[1])
        torch.testing.assert_close(got.quantized, want[0])
        torch.testing.assert_close(got.loss, want[2].squeeze())
        weight = torch.randn(2, 30, 6, generator=generator)
        for result in ((got[0], got[2]), (want[0], want[2].squeeze())):
            ((result[0] * weight).sum() + 7 * result[1]).backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.codebook, theirs._codebook.embed[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.ema_counts, theirs._codebook.cluster_size[0], rtol=1e-5, atol=1e-6)


def test_a_learned_codebook_gets_the_textbook_gradient(generator):
    vq = quantizer(3, 5, decay=None, dead_below=0.0)
    x = torch.randn(40, 3, generator=generator)
    _, index, loss = vq(x)
    loss.backward()
    codes = vq.codebook.detach().clone().requires_grad_()
    wanted = (x - codes[index]).square().mean()
    torch.testing.assert_close(loss, 1.25 * wanted)
    torch.testing.assert_close(vq.codebook.grad, torch.autograd.grad(wanted, codes)[0])
    before = loss.item()
    with torch.no_grad():
        vq.codebook -= 2.0 * vq.codebook.grad
    assert vq(x).loss < before


def test_learned_cosine_codes_are_brought_to_unit_length(generator):
    vq = quantizer(3, 5, decay=None, metric="cosine", scale=9.0)
    with torch.no_grad():
        vq.codebook.mul_(torch.arange(1.0, 6.0)[:, None])
    x = torch.randn(40, 3, generator=generator)
    quantized, index, loss = vq(x)
    unit, codes = F.normalize(x, dim=1), F.normalize(vq.codebook, dim=1)
    assert torch.equal(index, (unit @ codes.t()).argmax(1))
    torch.testing.assert_close(quantized, codes[index])
    torch.testing.assert_close(loss, 1.25 * (unit - codes[index]).square().mean())
    loss.backward()
    assert vq.codebook.grad.abs().sum() > 0


# ---- dead codes


def test_dead_codes_move_to_vectors_of_the_batch(generator):
    vq = quantizer(4, 6, decay=0.5, dead_below=0.6)
    with torch.no_grad():
        vq.codebook[3:] = 1000.0
        vq.ema_sums[3:] = 1000.0
    x = torch.randn(50, 4, generator=generator)
    vq(x, generator=torch.Generator().manual_seed(3))
    place = (torch.rand(6, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 50).long()
    assert torch.equal(vq.codebook[3:], x[place[3:]])
    assert vq.ema_counts[3:].tolist() == pytest.approx([0.6] * 3)
    torch.testing.assert_close(vq.ema_sums[3:], 0.6 * x[place[3:]])
    assert not torch.isin(vq.codebook[:3], x).any()
    assert set(vq(x).index.tolist()) >= {3, 4, 5}  # they lie on vectors now, so these choose them


@pytest.mark.parametrize("decay", [0.9, None])
def test_revival_fills_a_collapsed_codebook(decay, generator):
    vq = quantizer(8, 32, decay=decay, dead_below=0.5, scale=1e-3)
    with torch.no_grad():
        vq.codebook.add_(5.0)
    x = torch.randn(400, 8, generator=generator)
    used = vq.eval()(x).index.unique().numel()
    vq.train()
    for _ in range(120):
        vq(x, generator=generator).loss.backward() if decay is None else vq(x, generator=generator)
    assert used < 16
    index = vq.eval()(x).index
    assert index.unique().numel() >= 30
    assert vq.perplexity(index) > 15


def test_revival_repeats_with_the_generator(generator):
    x = torch.randn(30, 4, generator=generator)
    states = []
    for _ in range(2):
        vq = quantizer(4, 20, dead_below=1.5)
        vq(x, generator=torch.Generator().manual_seed(7))
        states.append(vq.state_dict())
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_threads_do_not_matter(one_and_two_threads, generator):
    x = torch.randn(3000, 16, generator=generator)

    def train():
        vq, v = quantizer(16, 70, decay=0.8, dead_below=2.0, start="k-means"), x.clone().requires_grad_()
        for _ in range(3):
            quantized, _, loss = vq(v, generator=torch.Generator().manual_seed(1))
        (quantized.sum() + loss).backward()
        return [*vq.state_dict().values(), loss.detach(), v.grad]

    assert all(torch.equal(a, b) for a, b in zip(*one_and_two_threads(train)))


# ---- start, state, shapes


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_k_means_start_serves_the_first_batch_well(metric, generator):
    heaps = F.normalize(torch.randn(10, 6, generator=generator), dim=1) * 20
    x = heaps.repeat(30, 1) + 0.01 * torch.randn(300, 6, generator=generator)
    vq = VectorQuantizer(6, 10, start="k-means", metric=metric)
    assert not vq.started
    _, index, loss = vq(x, generator=generator)
    assert vq.started
    assert loss < 1e-3
    assert torch.bincount(index, minlength=10).tolist() == [30] * 10
    codebook = vq.codebook.clone()
    vq(x + 100.0)
    torch.testing.assert_close(vq.codebook, codebook, rtol=0, atol=60 if metric == "l2" else 1)  # no second start


def test_too_few_vectors_for_a_k_means_start(generator):
    with pytest.raises(ValueError, match=r"`k` in \[1, N\], N = 5"):
        VectorQuantizer(3, 10, start="k-means")(torch.randn(5, 3, generator=generator))


def test_state_dict_round_trip(generator):
    x = torch.randn(100, 4, generator=generator)
    first = VectorQuantizer(4, 8, start="k-means", dead_below=1.0)
    first(x, generator=generator)
    second = VectorQuantizer(4, 8, start="k-means", dead_below=1.0)
    second.load_state_dict(first.state_dict())
    for vq in (first, second):  # the second must not start again
        vq(x, generator=torch.Generator().manual_seed(2))
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


@pytest.mark.parametrize("make", [VectorQuantizer, lambda d, k, **s: ResidualVQ(d, k, 2, **s),
                                  lambda d, k, **s: ProductVQ(d, k, 2, **s)])  # fmt: skip
def test_channel_first_is_a_transposition(make, generator):
    torch.manual_seed(0)
    first = make(6, 9, channel_first=True, decay=0.8)
    last = make(6, 9, decay=0.8)
    last.load_state_dict(first.state_dict())
    clip = torch.randn(2, 6, 3, 4, 5, generator=generator)
    got, want = first(clip), last(clip.movedim(1, -1))
    assert got.quantized.shape == clip.shape
    assert torch.equal(got.quantized.movedim(1, -1), want.quantized)
    assert torch.equal(got.index, want.index)
    assert torch.equal(got.loss, want.loss)
    assert got.index.shape[:4] == (2, 3, 4, 5)
    for (name, a), b in zip(first.state_dict().items(), last.state_dict().values()):
        assert torch.equal(a, b), name
    assert first.lookup(got.index).shape == clip.shape


def test_lookup_undoes_the_index(generator):
    vq = quantizer(4, 8).eval()
    quantized, index, _ = vq(torch.randn(3, 7, 4, generator=generator))
    assert torch.equal(vq.lookup(index), quantized)


def test_no_vectors():
    vq = quantizer(4, 8)
    quantized, index, loss = vq(torch.zeros(0, 4))
    assert quantized.shape == (0, 4)
    assert index.shape == (0,)
    assert loss == 0
    assert vq.codebook.isfinite().all()


def test_bad_settings_and_input(generator):
    for settings in ({"metric": "ip"}, {"start": "kmeans"}, {"decay": 2.0}):
        with pytest.raises(ValueError, match="VectorQuantizer"):
            VectorQuantizer(4, 8, **settings)
    with pytest.raises(ValueError, match=r"\[\.\.\., 4\]"):
        VectorQuantizer(4, 8)(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"\[B, 4, \.\.\.\]"):
        VectorQuantizer(4, 8, channel_first=True)(torch.zeros(3, 5, 4))
    x = torch.randn(9, 4, generator=generator)
    x[6, 2] = float("nan")
    vq = quantizer(4, 8)
    before = vq.codebook.clone()
    with pytest.raises(ValueError, match="6"):
        vq(x)
    assert torch.equal(vq.codebook, before)
    with pytest.raises(ValueError, match="multiple"):
        ProductVQ(5, 8, 2)
    with pytest.raises(ValueError, match="metric"):
        ResidualVQ(5, 8, 2, metric="cosine")


# ---- several codebooks


def test_residual_stages_quantise_what_is_left(generator):
    torch.manual_seed(0)
    vq = ResidualVQ(4, 16, 3, start="k-means")
    x = torch.randn(200, 4, generator=generator, requires_grad=True)
    vq(x, generator=generator)
    vq.eval()
    quantized, index, loss = vq(x)
    rest, losses = x.detach(), []
    for s, stage in enumerate(vq.stages):
        chosen = torch.cdist(rest, stage.codebook).argmin(1)
        assert torch.equal(chosen, index[:, s])
        losses.append((rest - stage.codebook[chosen]).square().mean())
        rest = rest - stage.codebook[chosen]
    torch.testing.assert_close(loss, 0.25 * sum(losses))
    torch.testing.assert_close(x - quantized, rest)
    assert losses[2] < losses[1] < losses[0]
    torch.testing.assert_close(vq.lookup(index), quantized.detach())
    coarse = (x - vq.lookup(index[:, :1])).square().mean()
    torch.testing.assert_close(coarse.detach(), losses[0])
    (grad,) = torch.autograd.grad((quantized * 3).sum(), x)
    assert torch.equal(grad, torch.full_like(x, 3))


def test_parts_are_quantised_on_their_own(generator):
    torch.manual_seed(0)
    vq = ProductVQ(6, 16, 3, decay=None)
    x = torch.randn(200, 6, generator=generator)
    quantized, index, loss = vq(x)
    for p, part in enumerate(vq.parts):
        piece = x[:, 2 * p : 2 * p + 2]
        assert torch.equal(index[:, p], torch.cdist(piece, part.codebook).argmin(1))
        assert torch.equal(quantized[:, 2 * p : 2 * p + 2], part.codebook[index[:, p]])
    torch.testing.assert_close(loss, 1.25 * (x - quantized).square().mean())


# ---- compiled, under autocast


def test_compiled_whole(generator):
    """One graph, in evaluation and in training with revival; the same numbers as eager."""
    torch._dynamo.reset()
    x = torch.randn(64, 4, generator=generator)
    eager, compiled = (quantizer(4, 8, decay=0.8, dead_below=0.01) for _ in range(2))
    step = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        eager.train(training)
        compiled.train(training)
        for _ in range(3):
            a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
            want, got = eager(a), step(b)
            assert torch.equal(want.index, got.index)
            torch.testing.assert_close(got.quantized, want.quantized)
            torch.testing.assert_close(got.loss, want.loss)
            (want.quantized.square().sum() + want.loss).backward()
            (got.quantized.square().sum() + got.loss).backward()
            torch.testing.assert_close(a.grad, b.grad)
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[key], value)


def test_compiled_learned_codebook(generator):
    torch._dynamo.reset()
    x = torch.randn(64, 4, generator=generator)
    eager, compiled = (quantizer(4, 8, decay=None) for _ in range(2))
    eager(x).loss.backward()
    torch.compile(compiled, fullgraph=True, backend="aot_eager")(x).loss.backward()
    torch.testing.assert_close(compiled.codebook.grad, eager.codebook.grad)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_autocast_trains_in_float32(metric, generator):
    x = torch.randn(64, 4, generator=generator).bfloat16()
    plain, cast = (quantizer(4, 8, metric=metric, decay=0.8) for _ in range(2))
    want = plain(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = cast(x)
    assert got.quantized.dtype is torch.bfloat16
    assert torch.equal(got.index, want.index)
    assert torch.equal(got.loss, want.loss)
    assert all(torch.equal(v, cast.state_dict()[k]) for k, v in plain.state_dict().items())


# ---- grids and soft codes


def test_fsq_module(generator):
    grid = FSQ([8, 5, 5], channel_first=True)
    z = torch.randn(2, 3, 4, 5, 6, generator=generator, requires_grad=True)
    quantized, index = grid(z)
    assert quantized.shape == z.shape
    assert index.shape == (2, 4, 5, 6)
    assert grid.codes == 200
    assert index.min() >= 0
    assert index.max() < 200
    assert torch.equal(grid.lookup(index), quantized)
    quantized.sum().backward()
    assert (z.grad > 0).all()
    assert not list(grid.parameters())
    assert not list(grid.buffers())


def test_dirichlet_codebook(generator):
    codes = torch.randn(16, 4, generator=generator)
    module = DirichletCodebook(4, 16, codebook=codes, frozen=True)
    logits = torch.randn(2, 5, 16, generator=generator, requires_grad=True)
    feature, weights, kl = module(logits, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(feature, weights @ codes)
    alpha = (F.softplus(logits) + 1e-2).detach()
    law = torch.distributions.Dirichlet(alpha)
    torch.testing.assert_close(
        kl, torch.distributions.kl_divergence(law, torch.distributions.Dirichlet(torch.full((16,), 1.1))).detach(),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    (feature.square().sum() + kl.sum()).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0
    assert not list(module.parameters())
    assert "codebook" in module.state_dict()
    module.eval()
    torch.testing.assert_close(module(logits).feature, law.mean @ codes)
    with pytest.raises(ValueError, match="logits"):
        module(torch.zeros(2, 15))
    with pytest.raises(ValueError, match="codebook"):
        DirichletCodebook(4, 15, codebook=codes)
    assert len(list(DirichletCodebook(4, 16).parameters())) == 1
