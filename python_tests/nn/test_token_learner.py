"""TokenLearner and TokenFuser against the formulas written out, one position at a time."""

import math

import pytest
import torch
from torch import nn

from vidkernels.functional.tokens.learner import fuse_tokens, pool_tokens
from vidkernels.nn.tokens.learner import TokenFuser, TokenLearner


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def normalised(x, norm):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias


def test_pooling_is_the_weighted_sum_over_positions(generator):
    x = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    logits = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    for activation in ("softmax", "sigmoid"):
        for pooling in ("sum", "mean"):
            out = pool_tokens(x, logits, activation=activation, pooling=pooling)
            for b in range(2):
                for s in range(4):
                    column = logits[b, :, s]
                    weight = column.exp() / column.exp().sum() if activation == "softmax" else 1 / (1 + (-column).exp())
                    expected = sum(weight[p] * x[b, p] for p in range(5)) / (5 if pooling == "mean" else 1)
                    torch.testing.assert_close(out[b, s], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_hot_maps_return_the_exact_token(dtype, generator):
    x = torch.randn(3, 50, 8, generator=generator).to(dtype)
    chosen = torch.randint(50, (3, 4), generator=generator)
    hot = nn.functional.one_hot(chosen, 50).transpose(1, 2).to(dtype)
    expected = x.gather(1, chosen[..., None].expand(-1, -1, 8))
    assert torch.equal(pool_tokens(x, hot, activation=None), expected)
    assert torch.equal(pool_tokens(x, 400 * hot - 200, activation="softmax"), expected)
    assert torch.equal(pool_tokens(x, 400 * hot - 200, activation="sigmoid"), expected)


def test_v11_is_norm_mlp_softmax_sum(generator):
    net = TokenLearner(6, 3, bottleneck=5).double()
    x = torch.randn(2, 4, 7, 6, generator=generator, dtype=torch.float64)
    h = normalised(x.view(2, 28, 6), net.norm)
    logits = gelu(h @ net.mlp[0].weight.T + net.mlp[0].bias) @ net.mlp[3].weight.T + net.mlp[3].bias
    maps = logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(net(x), torch.einsum("bps,bpc->bsc", maps, x.view(2, 28, 6)))
    torch.testing.assert_close(net.maps(x).sum(-1), torch.ones(2, 3, dtype=torch.float64))


def test_v1_is_norm_four_convolutions_sigmoid_mean(generator):
    net = TokenLearner(4, 3, form="v1").double()
    x = torch.randn(2, 5, 6, 4, generator=generator, dtype=torch.float64)

    def conv(h, weight):  # [B, H, W, C], the outside is 0
        padded = torch.zeros(2, 7, 8, h.shape[-1], dtype=h.dtype)
        padded[:, 1:-1, 1:-1] = h
        out = 0
        for dy in range(3):
            for dx in range(3):
                out = out + padded[:, dy : dy + 5, dx : dx + 6] @ weight[:, :, dy, dx].T
        return out

    h = normalised(x, net.norm)
    for i in range(3):
        h = gelu(conv(h, net.convs[i].weight))
    maps = 1 / (1 + (-conv(h, net.convs[3].weight)).exp())
    expected = torch.einsum("bhws,bhwc->bsc", maps, x) / 30
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(net.maps(x), maps.flatten(1, 2).transpose(1, 2))
    torch.testing.assert_close(TokenLearner(4, 3, form="v1", pooling="sum").double()(x).shape, torch.Size([2, 3, 4]))


@pytest.mark.parametrize("form", ["v1", "v1.1"])
def test_frames_are_pooled_alone_and_clips_as_a_whole(form, generator):
    torch.manual_seed(0)
    clip = torch.randn(2, 3, 4, 5, 6, generator=generator)
    per_frame = TokenLearner(6, 7, form=form)
    out = per_frame(clip)
    assert out.shape == (2, 3, 7, 6)
    torch.testing.assert_close(out[1, 2], per_frame(clip[1:, 2])[0])
    torch.testing.assert_close(per_frame(clip.flatten(1, 3), grid=(3, 4, 5)), out)
    other = clip.clone()
    other[:, 0] += 1
    assert torch.equal(per_frame(other)[:, 1:], out[:, 1:])
    whole = TokenLearner(6, 7, form=form, axes=3)
    assert whole(clip).shape == (2, 7, 6)
    assert TokenLearner(6, 7, form=form, axes=1)(clip[:, :, 0, 0]).shape == (2, 7, 6)


def test_fuser_adds_mixed_tokens_by_maps_of_the_grid(generator):
    net = TokenFuser(6, 3, bottleneck=None).double()
    x = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    tokens = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    mixed = torch.einsum("ts,bsc->btc", net.mix.weight, normalised(tokens, net.norm_tokens)) + net.mix.bias[:, None]
    maps = torch.sigmoid(normalised(x, net.norm_grid) @ net.maps.weight.T + net.maps.bias)
    torch.testing.assert_close(net(tokens, x), x + torch.einsum("bhws,bsc->bhwc", maps, mixed))
    assert TokenFuser(6, 3)(torch.randn(2, 4, 3, 6), torch.randn(2, 4, 5, 7, 6)).shape == (2, 4, 5, 7, 6)
    assert TokenFuser(6, 3)(torch.randn(2, 3, 6), torch.randn(2, 9, 6)).shape == (2, 9, 6)


@pytest.mark.parametrize("form", ["v1", "v1.1"])
def test_compiles_in_one_piece_and_every_parameter_learns(form):
    torch.manual_seed(0)
    learner, fuser = TokenLearner(6, 3, form=form), TokenFuser(6, 3)
    x = torch.randn(2, 2, 4, 4, 6, requires_grad=True)

    def both(x):
        return fuser(learner(x), x)

    eager = both(x)
    torch.testing.assert_close(torch.compile(both, fullgraph=True, backend="aot_eager")(x), eager)
    eager.square().sum().backward()
    for parameter in (*learner.parameters(), *fuser.parameters(), x):
        assert parameter.grad.abs().sum() > 0


def test_gradients_of_the_functions(generator):
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)  # noqa: E731
    x, logits, tokens = draw(2, 5, 3), draw(2, 5, 4), draw(2, 4, 3)
    assert torch.autograd.gradcheck(lambda a, b: pool_tokens(a, b, activation="sigmoid", pooling="mean"), (x, logits))
    assert torch.autograd.gradcheck(pool_tokens, (x, logits))
    assert torch.autograd.gradcheck(fuse_tokens, (tokens, x, logits))


@pytest.mark.parametrize("form", ["v1", "v1.1"])
def test_no_tokens_and_no_positions(form):
    net = TokenLearner(6, 3, form=form)
    assert net(torch.zeros(0, 4, 4, 6)).shape == (0, 3, 6)
    assert torch.equal(net(torch.zeros(2, 0, 4, 6)), torch.zeros(2, 3, 6))
    assert net(torch.zeros(2, 4, 4, 6)).isfinite().all()
    assert TokenFuser(6, 3)(torch.zeros(2, 3, 6), torch.zeros(2, 0, 6)).shape == (2, 0, 6)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"pool_tokens: expected `x` \[..., P, C\]"):
        pool_tokens(torch.zeros(2, 5, 3), torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="'sum' or 'mean'"):
        pool_tokens(torch.zeros(5, 3), torch.zeros(5, 3), pooling="max")
    with pytest.raises(ValueError, match="'softmax', 'sigmoid' or None"):
        pool_tokens(torch.zeros(5, 3), torch.zeros(5, 3), activation="relu")
    with pytest.raises(ValueError, match="fuse_tokens: expected"):
        fuse_tokens(torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="TokenLearner: expected `form`"):
        TokenLearner(6, form="v2")
    with pytest.raises(ValueError, match="product of `grid`"):
        TokenLearner(6)(torch.zeros(2, 16, 6), grid=(3, 4))
    with pytest.raises(ValueError, match="pass flat tokens"):
        TokenLearner(6)(torch.zeros(2, 16, 6))
    with pytest.raises(ValueError, match="TokenFuser: expected"):
        TokenFuser(6, 3)(torch.zeros(2, 3, 6), torch.zeros(3, 9, 6))
