"""Resampler against attention written out, one query at a time."""

import pytest
import torch
from torch.nn import functional as F

from vidkernels.nn.tokens.resampler import Resampler

OPTIONS = {"queries": 3, "depth": 2, "heads": 2, "head_dim": 5, "max_frames": 4}


def build(**changes):
    torch.manual_seed(0)
    return Resampler(8, **OPTIONS | changes).double()


def by_hand(model, clip, there):
    """clip [T, N, D], there [T, N]: only the tokens that are there exist at all."""
    x = clip if model.time is None else clip + model.time[: len(clip)]
    x, queries = x[there], model.queries
    for layer in model.layers:
        own = layer.norm_queries(queries)
        seen = torch.cat([layer.norm_tokens(x), own])
        rows = []
        for q in layer.query(own):
            key, value = layer.key_value(seen).chunk(2, 1)
            parts = []
            for h in range(2):
                part = slice(5 * h, 5 * h + 5)
                weight = (key[:, part] @ q[part] / 5**0.5).exp()
                parts.append(weight @ value[:, part] / weight.sum())
            rows.append(torch.cat(parts))
        queries = queries + layer.proj(torch.stack(rows))
        queries = queries + layer.feed(queries)
    return F.layer_norm(queries, (8,), model.norm.weight, model.norm.bias)


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_equals_attention_by_hand(frames):
    model, x = build(), torch.randn(2, frames, 6, 8).double()
    out = model(x)
    for b in range(2):
        torch.testing.assert_close(out[b], by_hand(model, x[b], torch.ones(frames, 6, dtype=torch.bool)))


def test_padding_does_not_exist():
    model, x = build(), torch.randn(2, 3, 6, 8).double()
    padding = torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(0)) < 0.4
    padding[1] = True
    broken = x.masked_fill(padding[..., None], float("nan"))
    out = model(broken, padding)
    for b in range(2):
        torch.testing.assert_close(out[b], by_hand(model, x[b], ~padding[b]))
    frames = torch.tensor([[False, True, False], [True, True, False]])
    torch.testing.assert_close(model(x, frames), model(x, frames[:, :, None].expand(2, 3, 6)))
    torch.testing.assert_close(model(x, torch.zeros(2, 3, dtype=torch.bool)), model(x))


def test_flat_tokens_are_one_frame():
    model, x = build(max_frames=None), torch.randn(2, 7, 8).double()
    torch.testing.assert_close(model(x), model(x[:, None]))
    padding = torch.arange(7).expand(2, 7) > 4
    torch.testing.assert_close(model(x, padding), model(x[:, :5]))
    shuffled = x[:, torch.randperm(7)]
    torch.testing.assert_close(model(shuffled), model(x))


def test_time_matters_only_with_time_embeddings():
    x = torch.randn(1, 3, 4, 8).double()
    for frames, same in ((None, True), (4, False)):
        model = build(max_frames=frames)
        assert torch.allclose(model(x), model(x.flip(1))) == same


def test_trains_and_compiles():
    model, x = build(), torch.randn(2, 3, 6, 8).double().requires_grad_()
    padding = torch.zeros(2, 3, 6, dtype=torch.bool)
    padding[0, 1:] = True
    gradients = torch.autograd.grad(model(x, padding).sin().sum(), [x, *model.parameters()])
    assert all(g.isfinite().all() and g.any() for g in gradients)
    assert not gradients[0][padding].any()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, padding), model(x, padding))


def test_no_tokens_at_all():
    assert build()(torch.zeros(2, 3, 0, 8).double()).isfinite().all()


def test_refusals():
    model = build()
    with pytest.raises(ValueError, match="at most max_frames = 4"):
        model(torch.zeros(1, 5, 2, 8).double())
    with pytest.raises(ValueError, match="expected `padding` bool"):
        model(torch.zeros(1, 2, 2, 8).double(), torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="expected `padding` bool"):
        model(torch.zeros(1, 2, 2, 8).double(), torch.zeros(1, 2, 3, dtype=torch.bool))
