"""PFNR: subnetworks that no optimiser can change once they are done, and how they are made of shares and bits."""

import pytest
import torch
from torch.nn import functional as F

from vidkernels.models.nerv.fit import FitConfig, decode_video, fit_video
from vidkernels.models.nerv.pfnr import PFNR
from vidkernels.nn.nerv.subnet import SubnetParameter


def made(seed=0):
    return torch.Generator().manual_seed(seed)


def small(frames=3, **options):
    sizes = {"width": 6, "hidden": 12, "lowest": 5, "strides": (3, 2), "modes": (3, 2), "share": 0.6}
    return PFNR(frames, (14, 22), generator=made(), **{**sizes, **options})


def video(frames=3, seed=0):
    return torch.randint(0, 256, (frames, 14, 22, 3), dtype=torch.uint8, generator=made(seed))


@pytest.mark.parametrize("share", [0.25, 0.6, 1.0])
def test_a_session_has_its_share_of_every_tensor(share):
    model = small(share=share)
    model.start_session(generator=made(1))
    model.finish_session()
    for tensor in model.tensors():
        for session in (0, 1):
            assert int(tensor.finished(session)[1].sum()) == round(share * tensor.weight.numel())
    total = sum(tensor.weight.numel() for tensor in model.tensors())
    assert model.taken(0) + model.taken(1) == sum(int(tensor.frozen.sum()) for tensor in model.tensors()) <= total


def test_pictures_are_those_of_plain_layers():
    """The second block has a Fourier layer beside it."""
    model = small().double()
    model.finish_session()

    def values(layer):
        return [torch.where(mask, value, 0) for value, mask in (layer[n].finished(0) for n in ("weight", "bias"))]

    t = torch.tensor([0, 2])
    x = torch.cat([model.time(t / 3), model.time(torch.zeros(2))], 1).double()
    for layer in model.stem:
        x = F.gelu(F.linear(x, *values(layer)))
    x = x.view(2, 6, 3, 4)
    x = F.gelu(F.pixel_shuffle(F.conv2d(x, *values(model.blocks[0]), padding=1), 3))
    near = F.pixel_shuffle(F.conv2d(x, *values(model.blocks[1]), padding=1), 2)
    kernel, mask = model.spectra["1"].finished(0)
    kernel = torch.view_as_complex(torch.where(mask, kernel, 0))
    spectrum, full = torch.fft.rfft2(x, norm="forward"), torch.zeros(2, 5, 18, 13, dtype=torch.complex128)
    for row, to in ((0, 0), (1, 1), (-1, -1)):
        full[:, :, to, :2] = torch.einsum("bic,cio->boc", spectrum[:, :, row, :2], kernel[row])
    x = F.gelu(near + torch.fft.irfft2(full, s=(18, 24), norm="forward"))
    expected = torch.tanh(model.heads[0](x)) / 2 + 0.5
    torch.testing.assert_close(_wide(model, t), expected[:, :, :14, :22], rtol=1e-5, atol=1e-6)


def _wide(model, t):
    """In float64 up to the head, whose tanh is float32; the encoding of times is float32 too."""
    time = model.time.forward
    model.time.forward = lambda values: time(values).double()
    return model(t).double()


OPTIMISERS = {
    "adam": lambda p: torch.optim.Adam(p, 0.05),
    "decaying adam": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.5),
    "momentum": lambda p: torch.optim.SGD(p, 0.5, momentum=0.95, weight_decay=0.1),
}


@pytest.mark.parametrize("kind", OPTIMISERS)
@pytest.mark.parametrize("kept", [False, True])
def test_what_is_finished_stays_to_the_bit(kind, kept):
    """Also if the optimiser of the first session goes on, momentum and all."""
    model, t = small(), torch.tensor([0, 1, 2])
    optimizer = OPTIMISERS[kind](model.parameters())

    def learn(target):
        nonlocal optimizer
        for _ in range(4):
            optimizer.zero_grad(set_to_none=False)
            (model(t) - target).square().mean().backward()
            optimizer.step()

    learn(torch.rand(3, 3, 14, 22, generator=made(1)))
    drawn = [model(t).detach()]
    for session in (1, 2):
        model.start_session(generator=made(session))
        if not kept:
            optimizer = OPTIMISERS[kind](model.parameters())
        learn(torch.rand(3, 3, 14, 22, generator=made(session + 1)))
        drawn.append(model(t).detach())
        for k, picture in enumerate(drawn):
            assert torch.equal(model(t, session=k), picture)
    assert not torch.equal(drawn[0], drawn[1])


def test_finishing_changes_no_picture():
    model, t = small(), torch.tensor([0, 2])
    before = model(t).detach()
    model.finish_session()
    assert torch.equal(model(t), before)
    model.finish_session()
    assert model.finished == 1


def test_frozen_weights_get_no_gradient_and_are_used():
    layer = SubnetParameter((40, 40), 1.0, generator=made())
    layer.finish(0.5)
    layer.draw_scores(made(1))
    mask, frozen = layer.mask(0.5), layer.frozen
    used = layer.learning(0.5)
    assert torch.equal(used[mask & frozen], layer.stored[mask & frozen])
    assert (mask & frozen).sum() > 100
    used.sum().backward()
    assert torch.equal(layer.weight.grad != 0, mask & ~frozen)
    assert (layer.scores.grad != 0).all()  # also those of weights that are not chosen: they may be, later
    assert layer.finish(0.5) == int((mask & frozen).sum())
    assert layer.taken(1) == int((mask & ~frozen).sum())
    assert layer.sessions == 2


def test_values_are_multiples_of_a_step_and_learn_all_the_same():
    layer = SubnetParameter((30, 30), 1.0, generator=made())
    layer.finish(0.3)
    layer.draw_scores(made(1))
    layer.step = 0.125
    mask, frozen = layer.mask(0.5), layer.frozen
    used = layer.learning(0.5)
    new = mask & ~frozen
    assert torch.equal(used[new], (layer.weight[new] / 0.125).round() * 0.125)
    assert torch.equal(used[mask & frozen], layer.stored[mask & frozen])  # these have no step
    used.sum().backward()
    assert torch.equal(layer.weight.grad, new.float())
    layer.finish(0.5)
    assert torch.equal(layer.finished(1)[0][new], used[new])


def test_sessions_can_be_taken_over():
    model, other, t = small(), small(), torch.tensor([0, 1])
    model.start_session(5, generator=made(1))
    model.finish_session()
    with torch.no_grad():
        for tensor in other.tensors():
            tensor.weight.normal_(generator=made(2))
    for session, frames in enumerate(model.lengths):
        values, masks = zip(*(tensor.finished(session) for tensor in model.tensors()), strict=True)
        other.adopt_session(frames, masks, values, tuple(model.heads[session].parameters()))
    assert (other.lengths, other.finished, other.frames) == ([3, 5], 2, 5)
    for session in (0, 1):
        assert torch.equal(other(t, session), model(t, session))


def test_without_reuse_sessions_have_nothing_in_common():
    model = small(reuse=False, share=0.4)
    for session in range(3):  # the third finds a fifth of the weights
        model.start_session(generator=made(session))
    for tensor in model.tensors():
        masks = [tensor.finished(session)[1] for session in range(3)]
        assert sum(mask.int() for mask in masks).max() == 1
        sizes = [round(0.4 * tensor.weight.numel())] * 2
        assert [int(m.sum()) for m in masks] == [*sizes, tensor.weight.numel() - sum(sizes)]


def test_sessions_have_lengths_and_times_of_their_own():
    model = small(3)
    model.start_session(7, generator=made(1))
    assert (model.session, model.frames, model.lengths) == (1, 7, [3, 7])
    assert torch.equal(model(torch.tensor([2]), 0), model(torch.tensor([2 / 3], dtype=torch.float64), 0))
    assert torch.equal(model(torch.tensor([2])), model(torch.tensor([2 / 7], dtype=torch.float64), 1))
    losses = fit_video(model, video(7), FitConfig(3, loss="l1_ssim"), generator=made())
    assert len(losses) == 3
    assert decode_video(model, video(7)).shape == (7, 14, 22, 3)


def test_a_state_brings_its_sessions_along():
    model = small()
    model.start_session(5, generator=made(1))
    model.start_session(2, generator=made(2))
    for other in (small(), model):
        other.load_state_dict(model.state_dict())
        assert (other.lengths, other.finished, other.frames) == ([3, 5, 2], 2, 2)
        assert [h.weight.requires_grad for h in other.heads] == [False, False, True]
        for session in range(3):
            t = torch.tensor([0, 1])
            assert torch.equal(other(t, session), model(t, session))
    fresh = small()
    first = fresh.state_dict()
    model.load_state_dict(first)  # and back
    assert model.lengths == [3]


def test_the_widest_network_of_a_size():
    model = PFNR.from_size(20_000, 48, 96, 12, strides=(4, 2, 2), hidden=32, lowest=8, modes=(4, 3))
    wider = PFNR(12, (48, 96), width=model.width + 1, strides=(4, 2, 2), hidden=32, lowest=8, modes=(4, 3))
    assert model.stored_parameters() <= 20_000 < wider.stored_parameters()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="`share` above 0"):
        small(share=0)
    with pytest.raises(ValueError, match="`fourier` to name stages"):
        small(fourier=(2,))
    model = small()
    with pytest.raises(ValueError, match="`session` from 0 to 0"):
        model(torch.tensor([0]), session=1)
    with pytest.raises(ValueError, match="a frame or more"):
        model.start_session(0)
