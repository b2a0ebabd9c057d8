"""Token rolling and temporal shift against loops over single tokens."""

import pytest
import torch

from vidkernels.functional.tokens.roll import temporal_shift, token_roll
from vidkernels.nn.tokens.roll import TemporalShift, TokenRoll


def clip(batch=2, frames=5, tokens=8, width=6):
    return torch.arange(batch * frames * tokens * width, dtype=torch.float64).view(batch, frames, tokens, width)


@pytest.mark.parametrize("share", [0, 0.25, 0.4, 1])
@pytest.mark.parametrize("shift", [1, -2, 7])
def test_roll_by_hand(share, shift):
    x = clip()
    out = token_roll(x, share, shift=shift)
    for t in range(5):
        for n in range(8):
            expected = x[:, (t - shift) % 5, n] if n < round(share * 8) else x[:, t, n]
            assert torch.equal(out[:, t, n], expected)


def test_roll_is_a_permutation_with_an_inverse_and_a_period():
    x = clip()
    rolled = token_roll(x)
    assert not torch.equal(rolled, x)
    assert torch.equal(rolled.flatten().sort().values, x.flatten())
    assert torch.equal(token_roll(rolled, shift=-1), x)
    for _ in range(4):
        rolled = token_roll(rolled)
    assert torch.equal(rolled, x)


def test_information_travels_one_frame_per_layer():
    """A per-frame mean after each roll: with rolling an impulse reaches one more frame each layer, without it stays."""
    for share, reached in ((0.25, [0, 1, 2, 3]), (0, [0])):
        x = torch.zeros(1, 6, 8, 1)
        x[0, 0] = 1
        for _ in range(3):
            x = token_roll(x, share)
            x = x + x.mean(2, keepdim=True)
        assert x.flatten(2).any(2)[0].nonzero().flatten().tolist() == reached


@pytest.mark.parametrize("cyclic", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_shift_by_hand(cyclic, causal):
    x = clip()
    out = temporal_shift(x, 1 / 3, cyclic=cyclic, causal=causal)

    def at(t, c):
        if 0 <= t < 5 or cyclic:
            return x[:, t % 5, :, c]
        return torch.zeros(2, 8, dtype=x.dtype)

    for t in range(5):
        for c in range(6):
            source = t - 1 if c < 2 else t + 1 if c < 4 and not causal else t
            assert torch.equal(out[:, t, :, c], at(source, c))


def test_half_of_an_odd_width():
    out = temporal_shift(clip(width=3), 0.5, cyclic=True)
    assert torch.equal(out.flatten().sort().values, clip(width=3).flatten())


def test_gradients_travel_back():
    x = clip(1, 3, 4, 4).requires_grad_()
    for function in (token_roll, temporal_shift):
        assert torch.autograd.gradcheck(lambda t, f=function: f(t, 0.25), x)


@pytest.mark.parametrize("shape", [(0, 3, 4, 2), (2, 0, 4, 2), (2, 3, 0, 2), (2, 1, 4, 2)])
def test_empty_and_single_frames(shape):
    x = torch.rand(shape)
    assert torch.equal(token_roll(x, 0.5), x)
    assert temporal_shift(x).shape == shape


def test_layers():
    x = clip(tokens=9)
    roll = TokenRoll(0.5, prefix=1)
    out = roll(x)
    assert torch.equal(out[:, :, :1], x[:, :, :1])
    assert torch.equal(out[:, :, 1:], token_roll(x[:, :, 1:], 0.5))
    assert torch.equal(roll.inverse(out), x)
    inner = torch.nn.Linear(6, 6).double()
    torch.testing.assert_close(TemporalShift(inner, share=0.25)(x), inner(temporal_shift(x, 0.25)))
    assert torch.equal(torch.compile(roll, fullgraph=True, backend="aot_eager")(x), out)


def test_refusals():
    with pytest.raises(ValueError, match=r"\[B, T, N, D\]"):
        token_roll(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"`share` in \[0, 1\]"):
        token_roll(clip(), 1.5)
    with pytest.raises(ValueError, match=r"0\.5"):
        temporal_shift(clip(), 0.6)
    with pytest.raises(ValueError, match="prefix"):
        TokenRoll(prefix=-1)
