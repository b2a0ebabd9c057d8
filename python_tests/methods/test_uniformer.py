"""UniFormer: local blocks see exactly their neighbourhood, global ones everything; the hybrid costs less than half."""

import pytest
import torch

from vidkernels.methods.tokens.uniformer import UniFormer, _GlobalRelation, _LocalRelation

Config = UniFormer.Config


def reach(relation, size=9):
    """Where the output changes when the middle token does."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, size, size, size, generator=g)
    other = x.clone()
    other[..., size // 2, size // 2, size // 2] += 1
    with torch.no_grad():
        return ((relation(x) - relation(other)).abs().amax((0, 1)) > 0).float()


def test_local_relation_reaches_its_neighbourhood_and_global_everything():
    torch.manual_seed(0)
    expected = torch.zeros(9, 9, 9)
    expected[2:7, 2:7, 2:7] = 1
    assert torch.equal(reach(_LocalRelation(8, 5)), expected)
    assert reach(_GlobalRelation(8, 4)).all()


def test_local_relation_is_attention_whose_weights_ignore_the_content(generator):
    torch.manual_seed(0)
    relation = _LocalRelation(4, 5).double()
    x = torch.randn(1, 4, 3, 6, 5, generator=generator, dtype=torch.float64)
    value = relation.into(x)
    mixed = torch.zeros_like(value)
    for t in range(3):
        for i in range(6):
            for j in range(5):
                for dt, di, dj in torch.cartesian_prod(*[torch.arange(-2, 3)] * 3).tolist():
                    s = (t + dt, i + di, j + dj)
                    if all(0 <= a < n for a, n in zip(s, (3, 6, 5), strict=True)):
                        weight = relation.affinity.weight[:, 0, dt + 2, di + 2, dj + 2]
                        mixed[:, :, t, i, j] += weight * value[(..., *s)]
    mixed = mixed + relation.affinity.bias.view(1, -1, 1, 1, 1)
    assert torch.allclose(relation(x), relation.out(mixed), rtol=1e-10, atol=1e-12)


def test_hybrid_costs_less_than_half_of_all_global():
    config = Config()
    hybrid, full = (UniFormer(c) for c in (Config.tiny(), Config.tiny().all_global()))
    assert hybrid.config.kinds[0] == "local"
    assert full.config.kinds == ("global",) * 3
    costs = []
    for c in (config, config.all_global()):
        with torch.device("meta"):
            costs.append(UniFormer(c).multiply_adds(16, 224, 224))
    assert costs[0] < 0.5 * costs[1]


def test_multiply_adds_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    model = UniFormer(Config.tiny()).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8))
    attention = 2 * 32 * 8**2  # 8 tokens of 32 channels; the counter does not know the fused kernel
    counted = counter.get_total_flops() // 2 - model.head.weight.numel() + attention
    assert counted == model.multiply_adds(4, 32, 32)


def moving(batch, generator, frames=8, side=32):
    """A bright square that moves left, right, up or down."""
    label = torch.randint(4, (batch,), generator=generator)
    step = torch.tensor([[0, -2], [0, 2], [-2, 0], [2, 0]])[label]
    start = torch.randint(8, 16, (batch, 2), generator=generator)
    clip = 40 + 10 * torch.randn(batch, frames, side, side, 3, generator=generator)
    for b in range(batch):
        for t in range(frames):
            y, x = (start[b] + (t - frames // 2) * step[b]).tolist()
            clip[b, t, max(y, 0) : max(y, 0) + 7, max(x, 0) : max(x, 0) + 7] += 150
    return clip.clamp(0, 255).to(torch.uint8), label


def accuracy(config):
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    model = UniFormer(config)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        clip, label = moving(16, g)
        loss = model.training_step(clip, labels=label)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    clip, label = moving(128, g)
    with torch.no_grad():
        return (model(clip).argmax(1) == label).float().mean().item()


@pytest.mark.slow
def test_hybrid_knows_where_things_move_at_least_as_well():
    hybrid, full = accuracy(Config.tiny()), accuracy(Config.tiny().all_global())
    assert hybrid > 0.8
    assert hybrid >= full - 0.01


def test_clips_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="HINT: crop"):
        UniFormer(Config.tiny())(torch.zeros(1, 4, 30, 32, 3, dtype=torch.uint8))
