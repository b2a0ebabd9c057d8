"""Top-k frames: order in time, ties, masks, and gradients against closed forms and finite differences."""

import math

import pytest
import torch

from vidkernels.functional.tokens.frames import top_k_frames, top_k_selection


def test_highest_scores_in_time_order(generator):
    score = torch.randn(4, 3, 20, generator=generator)
    index = top_k_frames(score, 6)
    assert (index.diff(dim=-1) > 0).all()
    for row, chosen in zip(score.view(12, 20), index.view(12, 6)):
        rest = torch.ones(20, dtype=torch.bool)
        rest[chosen] = False
        assert row[chosen].min() > row[rest].max()


def test_equal_scores_take_the_earliest():
    assert top_k_frames(torch.zeros(2, 40), 3).tolist() == [[0, 1, 2]] * 2
    assert top_k_frames(torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]), 3).tolist() == [0, 1, 3]


def test_mask_leaves_too_few():
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    score = torch.tensor([[0.0, 9.0, 5.0, 9.0]] * 2)
    assert top_k_frames(score, 3, mask=mask).tolist() == [[0, 2, -1], [-1, -1, -1]]
    for method in ("straight_through", "perturbed"):
        scores = score.clone().requires_grad_()
        selection = top_k_selection(scores, 3, mask=mask, method=method, sigma=1e-3)
        assert selection.argmax(2)[0, :2].tolist() == [0, 2]
        torch.testing.assert_close(selection.sum(2), torch.tensor([[1.0, 1, 0], [0, 0, 0]]))
        selection.square().sum().backward()
        assert scores.grad.isfinite().all()
        assert not scores.grad[~mask].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_straight_through_is_the_hard_choice(dtype, generator):
    score = (3000 * torch.randn(5, 12, generator=generator)).to(dtype)
    x = torch.randn(5, 12, 4, generator=generator).to(dtype)
    selection = top_k_selection(score, 4)
    assert selection.dtype is dtype
    index = top_k_frames(score, 4)
    assert torch.equal(selection @ x, x.gather(1, index[..., None].expand(-1, -1, 4)))


def test_straight_through_gradient_is_the_softmax_over_the_rest(generator):
    score = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    (top_k_selection(score, 2, temperature=0.5) * target).sum().backward()
    chosen, value = top_k_frames(score, 2).tolist(), score.tolist()
    expected = torch.zeros(6, dtype=torch.float64)
    for row, mine in enumerate(chosen):
        among = [t for t in range(6) if t == mine or t not in chosen]
        total = sum(math.exp(value[t] / 0.5) for t in among)
        p = {t: math.exp(value[t] / 0.5) / total for t in among}
        mean = sum(p[t] * float(target[row, t]) for t in among)
        for t in among:
            expected[t] += p[t] * (float(target[row, t]) - mean) / 0.5
    torch.testing.assert_close(score.grad, expected)


def normal_cdf(x):
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def test_perturbed_choice_of_one_of_two_is_the_normal_distribution(generator):
    """P(first wins) = Phi(d / (sigma sqrt 2)) and its derivative is the density."""
    sigma = 0.5
    for gap in (-0.4, 0.0, 0.3, 1.0):
        score = torch.tensor([gap, 0.0], dtype=torch.float64, requires_grad=True)
        selection = top_k_selection(score, 1, method="perturbed", sigma=sigma, samples=200_000, generator=generator)
        spread = sigma * math.sqrt(2)
        assert float(selection[0, 0].detach()) == pytest.approx(normal_cdf(gap / spread), abs=0.005)
        selection[0, 0].backward()
        density = math.exp(-0.5 * (gap / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
        assert score.grad.tolist() == pytest.approx([density, -density], abs=0.02)


def test_perturbed_gradient_is_the_estimate_of_the_paper():
    """E[choice(score + sigma Z) Z] / sigma over the same draws, as a loop."""
    score = torch.tensor([0.2, 0.5, -0.1, 0.4], dtype=torch.float64, requires_grad=True)
    target = torch.arange(8, dtype=torch.float64).view(2, 4)
    selection = top_k_selection(
        score, 2, method="perturbed", sigma=0.3, samples=50, generator=torch.Generator().manual_seed(7)
    )
    noise = torch.randn(25, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    mean, gradient = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for z in (*noise, *-noise):
        hot = torch.zeros(2, 4, dtype=torch.float64)
        for row, t in enumerate(sorted((score.detach() + 0.3 * z).topk(2).indices.tolist())):
            hot[row, t] = 1
        mean += hot / 50
        gradient += (hot * target).sum() * z / 0.3 / 50
    torch.testing.assert_close(selection.detach(), mean)
    (selection * target).sum().backward()
    torch.testing.assert_close(score.grad, gradient)


@pytest.mark.parametrize("method", ["straight_through", "perturbed"])
def test_gradient_finds_the_frames_that_matter(method, generator):
    """Scores start equal but for noise; only frames 3 and 11 carry the answer."""
    score = (0.01 * torch.randn(16, generator=generator)).requires_grad_()
    worth = torch.zeros(16)
    worth[[3, 11]] = 1
    optimizer = torch.optim.Adam([score], lr=0.05)
    for _ in range(150):
        selection = top_k_selection(score, 2, method=method, sigma=0.2, samples=64, generator=generator)
        loss = -(selection @ worth).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert top_k_frames(score, 2).tolist() == [3, 11]


def test_generator_repeats_and_rows_sum_to_one(generator):
    score = torch.randn(3, 9, generator=generator)
    draws = [
        top_k_selection(score, 4, method="perturbed", generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.testing.assert_close(draws[0].sum(-1), torch.ones(3, 4))


@pytest.mark.parametrize("method", ["straight_through", "perturbed"])
def test_compiles_in_one_piece(method):
    score = torch.randn(3, 9, requires_grad=True)

    def both(score):
        return top_k_selection(score, 4, method=method, sigma=1e-6), top_k_frames(score, 4)

    selection, index = torch.compile(both, fullgraph=True, backend="aot_eager")(score)
    assert torch.equal(index, top_k_frames(score, 4))
    torch.testing.assert_close(selection, both(score)[0])


def test_none_and_all_and_empty():
    score = torch.randn(2, 5)
    assert top_k_frames(score, 0).shape == (2, 0)
    assert top_k_frames(score, 5).tolist() == [[0, 1, 2, 3, 4]] * 2
    assert top_k_frames(torch.zeros(0, 5), 2).shape == (0, 2)
    assert top_k_selection(torch.zeros(2, 0), 0).shape == (2, 0, 0)
    assert top_k_selection(torch.zeros(2, 0), 0, method="perturbed").shape == (2, 0, 0)


def test_bad_input_is_named():
    score = torch.zeros(2, 5)
    with pytest.raises(ValueError, match="`k` between 0"):
        top_k_frames(score, 6)
    with pytest.raises(ValueError, match=r"NaN in rows \[1\]"):
        top_k_frames(torch.tensor([[0.0, 1.0], [0.0, float("nan")]]), 1)
    with pytest.raises(ValueError, match="floating point"):
        top_k_frames(torch.zeros(5, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="`mask` bool"):
        top_k_frames(score, 1, mask=torch.ones(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="`method`"):
        top_k_selection(score, 1, method="gumbel")
    with pytest.raises(ValueError, match="above 0"):
        top_k_selection(score, 1, method="perturbed", sigma=0)
