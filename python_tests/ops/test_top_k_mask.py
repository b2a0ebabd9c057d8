"""top_k_mask: exact counts, ties, NaN, and training through the choice."""

import math

import pytest
import torch

from vidkernels.functional.nerv.subnet import masked_weight, top_k_mask
from vidkernels.ops.top_k_mask.op import top_k_mask as op


@pytest.fixture(params=["reference", "cpu", "simt"])
def backend(request):
    reason = op.why_not(request.param)
    if reason is not None:
        pytest.skip(reason)
    return request.param


def test_by_hand(backend):
    scores = torch.tensor([[0.5, -2.0, 0.1], [0.5, 0.0, -0.5]])
    assert top_k_mask(scores, 0.5, backend=backend).tolist() == [[True, True, False], [True, False, False]]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_count_is_exact_and_the_least_kept_no_smaller_than_the_largest_left(backend, share, dtype, generator):
    scores = torch.randn(10007, generator=generator).to(dtype)
    mask = top_k_mask(scores, share, backend=backend)
    assert int(mask.sum()) == round(share * 10007)
    if 0 < share < 1:
        assert scores[mask].abs().min() >= scores[~mask].abs().max()


def test_first_of_equal_ones(backend):
    mask = top_k_mask(torch.full((40001,), -0.25), 12345 / 40001, backend=backend)
    assert bool(mask[:12345].all())
    assert not bool(mask[12345:].any())


def test_every_count_of_a_short_list_with_ties(backend, generator):
    scores = torch.randint(-3, 4, (61,), generator=generator).float()
    order = sorted(range(61), key=lambda i: (-abs(float(scores[i])), i))
    for count in range(62):
        assert op(scores, count, backend=backend).nonzero()[:, 0].tolist() == sorted(order[:count])


def test_nan_is_the_largest_and_infinity_next(backend):
    scores = torch.tensor([1.0, math.inf, -math.nan, -math.inf, math.nan, 3e38])
    for count, kept in ((1, [2]), (2, [2, 4]), (3, [1, 2, 4]), (4, [1, 2, 3, 4]), (5, [1, 2, 3, 4, 5])):
        assert op(scores, count, backend=backend).nonzero()[:, 0].tolist() == kept


def test_gradients_go_to_kept_weights_and_to_all_scores(generator):
    weight, scores = (torch.randn(4, 5, generator=generator).requires_grad_() for _ in range(2))
    up = torch.randn(4, 5, generator=generator)
    mask = top_k_mask(scores, 0.4)
    out = masked_weight(weight, scores, mask)
    assert torch.equal(out, torch.where(mask, weight, 0.0))
    out.backward(up)
    assert torch.equal(weight.grad, torch.where(mask, up, 0.0))
    assert torch.equal(scores.grad, up * weight.detach() * scores.detach().sign())


def test_scores_learn_which_weights_matter(generator):
    """Weights stay; of sixty, the six that a linear target is made of are found by their scores alone."""
    weight = torch.ones(60)
    target = torch.zeros(60)
    target[::10] = 1
    scores = (0.1 * torch.randn(60, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam([scores], 0.01)
    for _ in range(300):
        x = torch.randn(64, 60, generator=generator)
        loss = (x @ (masked_weight(weight, scores, top_k_mask(scores, 0.1)) - target)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert top_k_mask(scores, 0.1).nonzero()[:, 0].tolist() == [0, 10, 20, 30, 40, 50]


def test_compiles_and_keeps_its_graph():
    scores = torch.randn(100)
    compiled = torch.compile(lambda s: top_k_mask(s, 0.25), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(scores), top_k_mask(scores, 0.25))


def test_what_does_not_fit_is_refused(backend):
    scores = torch.randn(6)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="from 0 to 1"):
            top_k_mask(scores, share)
    with pytest.raises(ValueError, match="floating tensor"):
        top_k_mask(scores.long(), 0.5)
    with pytest.raises(ValueError, match="of the shape of `weight`"):
        masked_weight(scores, scores[:5], scores > 0)
    if backend != "reference":
        with pytest.raises(ValueError, match="from 0 to N"):
            op(scores, 7, backend=backend)
