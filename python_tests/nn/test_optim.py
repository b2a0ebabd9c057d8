"""MultiTensorAdam and Muon in the place of torch's: steps, groups, state dicts, memory formats."""

import copy

import pytest
import torch
from torch import nn

from vidkernels.functional.nerv.optim import multi_tensor_adam, multi_tensor_muon
from vidkernels.functional.splatting.adam import adam_step
from vidkernels.nn.nerv.optim import MultiTensorAdam, Muon
from vidkernels.ops.adam_step.op import adam_step as op
from vidkernels.ops.newton_schulz.op import newton_schulz as newton_schulz_op

SHAPES = [(5,), (7, 3), (1,), (16, 4, 3, 3), (4097,), (0, 3), (33, 129)]


def tensors(seed=0, shapes=SHAPES, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g).to(dtype) for s in shapes]


def parameters(**options):
    return [nn.Parameter(t) for t in tensors(**options)]


def pull(params, optimizer, steps=1, start=0):
    for step in range(start, start + steps):
        for i, p in enumerate(params):
            p.grad = (p.detach() * (i + 1)).sin() + torch.randn(
                p.shape, generator=torch.Generator().manual_seed(step)
            ).to(p.dtype)
        optimizer.step()


def same(ours, theirs, tolerance=2e-6):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("how", [{"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_twenty_steps_are_those_of_torch(kind, decay, how):
    ours, theirs = parameters(), parameters()
    pull(theirs, kind(theirs, lr=0.01, betas=(0.8, 0.95), weight_decay=decay, **how), 20)
    adam = MultiTensorAdam(
        ours, lr=0.01, betas=(0.8, 0.95), weight_decay=decay, decoupled_weight_decay=kind is torch.optim.AdamW
    )
    pull(ours, adam, 20)
    same(ours, theirs)


@pytest.mark.parametrize("backend", ["reference", "cpu", "simt", "simt_trace"])
def test_the_bits_are_those_of_single_steps(backend):
    reason = op.why_not(backend)
    if reason is not None:
        pytest.skip(reason)
    shapes = SHAPES + [(k % 7 + 1, 3) for k in range(44)]  # more than a table of the GPU kernel holds
    rows = [tensors(seed=s, shapes=shapes) for s in range(4)]
    rows[3] = [t.square() for t in rows[3]]
    single = [[t.clone() for t in row] for row in rows]
    settings = [(0.01 * (1 + k % 3), 0.9, 0.99, 1e-8, 0.1 * (k % 2), k % 4 < 2, 1 + k) for k in range(len(shapes))]
    multi_tensor_adam(*rows, settings, backend=backend)
    for p, g, m, v, (lr, b1, b2, eps, decay, decoupled, step) in zip(*single, settings):
        adam_step(
            p, g, m, v, step=step, lr=lr, betas=(b1, b2), eps=eps, weight_decay=decay,
            decoupled_weight_decay=decoupled, backend=backend,
        )  # fmt: skip
    for many, one in zip(rows, single):
        assert all(torch.equal(a, b) for a, b in zip(many, one))


def test_groups_have_their_own_numbers():
    ours, theirs = parameters(), parameters()

    def groups(ps):
        return [
            {"params": ps[:3], "lr": 0.1, "betas": (0.5, 0.9)},
            {"params": ps[3:5], "weight_decay": 0.3},
            {"params": ps[5:], "eps": 1e-3},
        ]

    pull(theirs, torch.optim.Adam(groups(theirs), lr=0.01), 5)
    pull(ours, MultiTensorAdam(groups(ours), lr=0.01), 5)
    same(ours, theirs)


@pytest.mark.parametrize(("first", "second"), [
    (MultiTensorAdam, torch.optim.Adam), (torch.optim.Adam, MultiTensorAdam), (MultiTensorAdam, MultiTensorAdam)
])  # fmt: skip
def test_adam_state_goes_from_one_to_the_other(first, second):
    whole = parameters()
    pull(whole, torch.optim.Adam(whole, lr=0.01), 8)
    begun = parameters()
    optimizer = first(begun, lr=0.01)
    pull(begun, optimizer, 4)
    resumed = [nn.Parameter(p.detach().clone()) for p in begun]
    other = second(resumed, lr=0.5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    pull(resumed, other, 4, start=4)
    same(resumed, whole)


@pytest.mark.parametrize("kind", [MultiTensorAdam, Muon])
def test_saved_and_loaded_goes_on_with_the_same_bits(kind, tmp_path):
    shapes = [(16, 4, 3, 3), (33, 29), (5, 70)]
    whole, begun = parameters(shapes=shapes), parameters(shapes=shapes)
    pull(whole, kind(whole, lr=0.02), 7)
    optimizer = kind(begun, lr=0.02)
    pull(begun, optimizer, 3)
    torch.save({"params": begun, "optimizer": optimizer.state_dict()}, tmp_path / "fit.pt")
    saved = torch.load(tmp_path / "fit.pt", weights_only=False)
    resumed = kind(saved["params"], lr=0.5)
    resumed.load_state_dict(saved["optimizer"])
    pull(saved["params"], resumed, 4, start=3)
    assert all(torch.equal(a, b) for a, b in zip(saved["params"], whole))


@pytest.mark.parametrize("kind", [MultiTensorAdam, Muon])
def test_any_number_of_threads_gives_the_same_bits(kind, one_and_two_threads):
    def fitted():
        params = parameters(shapes=[(300, 300), (64, 1000), (7, 5)])
        pull(params, kind(params, lr=0.02), 2)
        return [p.detach() for p in params]

    for a, b in zip(*one_and_two_threads(fitted), strict=True):
        assert torch.equal(a, b)


def test_channels_last_parameters_move_in_place():
    theirs = nn.Parameter(torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)))
    ours = nn.Parameter(theirs.detach().clone().to(memory_format=torch.channels_last))
    pull([theirs], torch.optim.Adam([theirs], lr=0.01), 5)
    optimizer = MultiTensorAdam([ours], lr=0.01)
    address = ours.data_ptr()
    pull([ours], optimizer, 5)
    same([ours], [theirs])
    assert ours.data_ptr() == address
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert optimizer.state[ours]["exp_avg"].is_contiguous(memory_format=torch.channels_last)


def test_what_the_kernel_cannot_take_goes_to_the_reference():
    shapes = [(6, 5), (9,)]
    for dtype in (torch.float64, torch.bfloat16):
        ours, theirs = parameters(shapes=shapes, dtype=dtype), parameters(shapes=shapes, dtype=dtype)
        pull(theirs, torch.optim.Adam(theirs, lr=0.125), 3)
        pull(ours, MultiTensorAdam(ours, lr=0.125), 3)
        same(ours, theirs, 1e-12 if dtype is torch.float64 else 0.05)
    strided = torch.randn(6, 10)[:, ::2]
    ours, theirs = nn.Parameter(strided), nn.Parameter(strided.clone())
    pull([theirs], torch.optim.Adam([theirs], lr=0.125), 3)
    pull([ours], MultiTensorAdam([ours], lr=0.125), 3)
    same([ours], [theirs])


def test_autograd_notices_that_parameters_moved():
    p = nn.Parameter(torch.ones(5))
    loss = (p * p).sum()
    p.grad = torch.ones(5)
    MultiTensorAdam([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_parameters_without_a_gradient_stay():
    a, b = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    for kind in (MultiTensorAdam, Muon):
        optimizer = kind([a, b])
        a.grad = torch.eye(3)
        optimizer.step()
        assert torch.equal(b, torch.ones(3, 3))
        assert b not in optimizer.state


@pytest.mark.parametrize("kind", [MultiTensorAdam, Muon])
def test_schedulers_and_closures_work(kind):
    p = nn.Parameter(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)))
    optimizer = kind([p], lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    losses = []
    for _ in range(6):
        losses.append(optimizer.step(closure).item())
        schedule.step()
    assert losses == sorted(losses, reverse=True)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.9**6)


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


@needs_muon
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", [None, "original", "match_rms_adamw"])
def test_muon_is_that_of_torch_but_for_its_rounding(nesterov, adjust):
    """torch works in bfloat16; a step's length is about the rate, so a few per cent of it is the difference."""
    shapes = [(9, 60), (7, 70), (64, 8)]
    options = {"lr": 0.05, "weight_decay": 0.1, "nesterov": nesterov, "adjust_lr_fn": adjust}
    ours, theirs = parameters(shapes=shapes), parameters(shapes=shapes)
    before = [p.detach().clone() for p in theirs]
    pull(theirs, torch.optim.Muon(theirs, **options))
    pull(ours, Muon(ours, **options))
    for a, b, start in zip(ours, theirs, before):
        assert ((a - b).norm() / (b - start).norm()).item() < 0.06


@needs_muon
def test_muon_takes_the_state_of_torch():
    shapes = [(9, 60), (7, 70)]
    theirs = parameters(shapes=shapes)
    optimizer = torch.optim.Muon(theirs, lr=0.05, adjust_lr_fn="match_rms_adamw")
    pull(theirs, optimizer, 3)
    ours = [nn.Parameter(p.detach().clone()) for p in theirs]
    muon = Muon(ours, lr=1.0)
    muon.load_state_dict(optimizer.state_dict())
    assert muon.param_groups[0]["adjust_lr_fn"] == "match_rms_adamw"
    before = [p.detach().clone() for p in theirs]
    pull(theirs, optimizer, start=3)
    pull(ours, muon, start=3)
    for a, b, start in zip(ours, theirs, before):
        torch.testing.assert_close(
            muon.state[a]["momentum_buffer"], optimizer.state[b]["momentum_buffer"], rtol=1e-3, atol=1e-3
        )
        assert ((a - b).norm() / (b - start).norm()).item() < 0.15  # momentum has small singular values: bfloat16 errs


def test_muon_follows_its_formula():
    """Two steps of the docstring's formula, with the orthogonal factor from a singular value decomposition."""
    p = nn.Parameter(torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0)))
    expected, momentum = p.detach().double().flatten(1), torch.zeros(6, 18, dtype=torch.float64)
    classical = {"ns_coefficients": (1.5, -0.5, 0.0), "ns_steps": 16}
    optimizer = Muon([p], lr=0.1, weight_decay=0.2, momentum=0.9, **classical)
    for step in range(2):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 + step))
        grad = p.grad.double().flatten(1)
        momentum = 0.9 * momentum + 0.1 * grad
        u, _, v = torch.linalg.svd(0.1 * grad + 0.9 * momentum, full_matrices=False)
        expected = (1 - 0.1 * 0.2) * expected - 0.1 * (u @ v)
        optimizer.step()
    torch.testing.assert_close(p.detach().flatten(1).double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("backend", ["reference", "simt"])
def test_one_native_call_is_torch_around_the_op(backend):
    """What the CPU does in one call, and what other devices do."""
    shapes = [(16, 4, 3, 3), (33, 29), (5, 70), (64, 9), (0, 4), (1, 1)]
    rows = [tensors(seed=s, shapes=shapes) for s in range(3)]
    other = [[t.clone() for t in row] for row in rows]
    settings = [(0.9, k % 2 == 0, 0.99, -0.1 * (k + 1)) for k in range(len(shapes))]
    if backend != "reference" and newton_schulz_op.why_not(backend) is not None:
        pytest.skip(newton_schulz_op.why_not(backend))
    multi_tensor_muon(*rows, settings)
    multi_tensor_muon(*other, settings, backend=backend)
    for row, expected in zip(rows, other):
        for a, b in zip(row, expected):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=2e-5)


def test_muon_moves_any_memory_format():
    plain = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    theirs, ours = nn.Parameter(plain.clone()), nn.Parameter(plain.to(memory_format=torch.channels_last))
    for p in (theirs, ours):
        pull([p], Muon([p], lr=0.1), 3)
    same([ours], [theirs], 2e-5)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_what_does_not_fit_is_refused():
    p = nn.Parameter(torch.ones(3, 3))
    for wrong in ({"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": -1.0}):
        with pytest.raises(ValueError, match="betas in"):
            MultiTensorAdam([p], **wrong)
    for wrong in ({"momentum": 1.0}, {"ns_steps": 0}, {"adjust_lr_fn": "rms"}):
        with pytest.raises(ValueError, match="momentum in"):
            Muon([p], **wrong)
    with pytest.raises(ValueError, match="two axes or more"):
        Muon([p, nn.Parameter(torch.ones(3))])
    theirs = torch.optim.Adam([p], amsgrad=True)
    with pytest.raises(ValueError, match="amsgrad or maximize"):
        MultiTensorAdam([p]).load_state_dict(theirs.state_dict())
    with pytest.raises(ValueError, match="two axes or more"):
        multi_tensor_muon(*[[torch.ones(4)]] * 3, [(0.9, True, 1.0, -0.1)])
    m = [torch.ones(4, 4)]
    with pytest.raises(ValueError, match="overlaps"):
        multi_tensor_muon(m, m, m, [(0.9, True, 1.0, -0.1)])
    t = [torch.ones(4)]
    with pytest.raises(ValueError, match="lists of one length"):
        multi_tensor_adam(t, t, t, [], [])
    with pytest.raises(ValueError, match="of one shape"):
        multi_tensor_adam(t, [torch.ones(3)], t, t, [(0.1, 0.9, 0.9, 1e-8, 0.0, False, 1)])
    with pytest.raises(ValueError, match="overlaps"):
        multi_tensor_adam(t, t, t, t, [(0.1, 0.9, 0.9, 1e-8, 0.0, False, 1)])
