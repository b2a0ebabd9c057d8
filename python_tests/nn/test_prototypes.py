"""Modules of prototypes: cosines, standing still, state, and the losses that they call."""

import torch
from torch.nn import functional as F

from vidkernels.functional.clustering.prototypes import sigma_loss, swapped_prediction_loss
from vidkernels.functional.clustering.sinkhorn import sinkhorn, sinkhorn_assign
from vidkernels.nn.clustering.prototypes import PrototypeHead, SigmaLoss, SinkhornAssigner, SwappedPredictionLoss


def test_head_gives_cosines():
    head = PrototypeHead(6, 4)
    x = torch.randn(3, 5, 6)
    expected = F.cosine_similarity(x[..., None, :], head.weight, dim=-1)
    torch.testing.assert_close(head(x), expected)
    with torch.no_grad():
        head.weight.mul_(7)
    torch.testing.assert_close(head(x), expected)


def test_prototypes_stand_still_at_first_and_after_loading():
    head = PrototypeHead(6, 4, freeze_steps=2)
    x = torch.randn(3, 6, requires_grad=True)
    for _ in range(2):
        head.zero_grad()
        head(x).sum().backward()
        assert head.weight.grad is None
        head.advance()
    assert not head.frozen
    head(x).square().sum().backward()
    assert head.weight.grad.abs().sum() > 0
    again = PrototypeHead(6, 4, freeze_steps=2)
    assert again.frozen
    again.load_state_dict(head.state_dict())
    assert not again.frozen
    assert torch.equal(again.weight, head.weight)


def test_modules_call_the_functions():
    scores = torch.randn(2, 9, 4) * 0.3
    assert torch.equal(SinkhornAssigner(0.1, 5)(scores[0]), sinkhorn(scores[0], 0.1, 5))
    assert torch.equal(SinkhornAssigner(0.1, 5, labels=True)(scores[0]), sinkhorn_assign(scores[0], 0.1, 5))
    assert torch.equal(SwappedPredictionLoss(temperature=0.2)(scores), swapped_prediction_loss(scores, temperature=0.2))
    loss = SigmaLoss(4, 3, iterations=4)
    x, y = torch.randn(5, 4), torch.randn(5, 4)
    torch.testing.assert_close(loss(x, y), sigma_loss(x, y, loss.head.weight, iterations=4))
    loss(x, y).backward()
    assert loss.head.weight.grad.abs().sum() > 0
