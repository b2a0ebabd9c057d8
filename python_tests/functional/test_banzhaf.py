"""Banzhaf interaction against the definition, one coalition at a time."""

import itertools

import pytest
import torch

from vidkernels.functional.tokens.banzhaf import (
    banzhaf_interaction,
    late_interaction_banzhaf,
    late_interaction_value,
)
from vidkernels.nn.tokens.banzhaf import BanzhafInteraction


def by_definition(value, players, i, j):
    """Mean second difference over all coalitions of the others; `value` takes a set."""
    others = [p for p in range(players) if p not in (i, j)]
    total = 0
    for size in range(len(others) + 1):
        for chosen in itertools.combinations(others, size):
            c = set(chosen)
            total += value(c | {i, j}) - value(c | {i}) - value(c | {j}) + value(c)
    return total / 2 ** len(others)


def table_game(players, generator, trailing=()):
    """A game with a value of its own for each coalition, and the same as a function of a set."""
    table = torch.randn(2**players, *trailing, generator=generator, dtype=torch.float64)
    weight = 2 ** torch.arange(players)
    return lambda c: table[(c * weight).sum(1)], lambda s: table[sum(2**p for p in s)]


def pooled_value(s, rows, columns, coalition):
    """The late interaction of one sample as loops over a set of players."""
    t_in = [t for t in range(s.shape[0]) if t in coalition]
    v_in = [v for v in range(s.shape[1]) if v + s.shape[0] in coalition]
    if not t_in or not v_in:
        return 0.0
    by_row = sum(float(rows[t]) * max(float(s[t, v]) for v in v_in) for t in t_in)
    return 0.5 * (by_row + sum(float(columns[v]) * max(float(s[t, v]) for t in t_in) for v in v_in))


def softmax_game(generator, batch, rows, columns):
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(batch, rows, columns), draw(batch, rows).softmax(1), draw(batch, columns).softmax(1)


@pytest.mark.parametrize("players", [2, 3, 6])
def test_enumeration_is_the_definition(players, generator):
    game, value = table_game(players, generator, (2,))
    out = banzhaf_interaction(game, players)
    assert out.shape == (players, players, 2)
    for i, j in itertools.combinations(range(players), 2):
        torch.testing.assert_close(out[i, j], by_definition(value, players, i, j))
        assert torch.equal(out[i, j], out[j, i])
    assert not out.diagonal().any()


def test_sixteen_players_in_blocks(generator):
    """Five planted pairs among 16 players: v = sum over pairs of a_ij [i in C][j in C] has I(i, j) = a_ij."""
    a = torch.randn(16, 16, generator=generator, dtype=torch.float64).triu(1)
    out = banzhaf_interaction(lambda c: torch.einsum("mi,ij,mj->m", c.double(), a, c.double()), 16)
    torch.testing.assert_close(out, a + a.T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("samples", [None, 500])
def test_additive_games_have_none(samples, generator):
    worth = torch.randn(7, generator=generator, dtype=torch.float64)
    out = banzhaf_interaction(lambda c: c.double() @ worth, 7, samples=samples, generator=generator)
    assert out.abs().max() < 1e-12


def test_four_by_four_players_sampled_within_two_hundredths():
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        s = torch.rand(1, 4, 4, generator=generator) * 2 - 1  # cosines
        rows, columns = (torch.randn(1, 4, generator=generator).softmax(1) for _ in range(2))
        game = lambda c: late_interaction_value(s, rows, columns, c)  # noqa: B023, E731
        exact = banzhaf_interaction(game, 8)
        sampled = banzhaf_interaction(game, 8, samples=2000, generator=generator)
        assert (exact - sampled).abs().max() < 0.02


def test_sampling_converges_and_repeats(generator):
    game, _ = table_game(6, generator)
    exact = banzhaf_interaction(game, 6)
    errors = []
    for samples in (100, 10_000):
        runs = [
            banzhaf_interaction(game, 6, samples=samples, generator=torch.Generator().manual_seed(seed))
            for seed in range(8)
        ]
        errors.append(torch.stack([(run - exact).square().mean() for run in runs]).mean().sqrt())
    assert errors[1] < errors[0] / 5  # ten times fewer if the error falls with the square root
    again = banzhaf_interaction(game, 6, samples=100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, banzhaf_interaction(game, 6, samples=100, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(again, banzhaf_interaction(game, 6, samples=100, generator=torch.Generator().manual_seed(1)))


def test_pairs_alone_equal_the_square(generator):
    game, _ = table_game(6, generator)
    pairs = torch.tensor([[5, 1], [0, 3]])
    square = banzhaf_interaction(game, 6)
    torch.testing.assert_close(banzhaf_interaction(game, 6, pairs=pairs), square[pairs[:, 0], pairs[:, 1]])
    sampled = [banzhaf_interaction(game, 6, pairs=p, samples=64, generator=torch.Generator().manual_seed(4))
               for p in (pairs, None)]  # fmt: skip
    torch.testing.assert_close(sampled[0], sampled[1][pairs[:, 0], pairs[:, 1]])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 4), (5, 2)])
def test_late_interaction_is_the_loop(rows, columns, generator):
    s, w, u = softmax_game(generator, 2, rows, columns)
    inside = torch.rand(40, rows + columns, generator=generator) < 0.5
    inside[0], inside[1] = False, True
    out = late_interaction_value(s, w, u, inside)
    for m in range(40):
        for b in range(2):
            expected = pooled_value(s[b], w[b], u[b], set(inside[m].nonzero()[:, 0].tolist()))
            assert float(out[m, b]) == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(late_interaction_value(s, w, u), out[1])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 4), (2, 7)])
@pytest.mark.parametrize("ties", [False, True])
def test_closed_form_equals_enumeration(rows, columns, ties, generator):
    s, w, u = softmax_game(generator, 3, rows, columns)
    s = s.round() if ties else s
    exact = banzhaf_interaction(lambda c: late_interaction_value(s, w, u, c), rows + columns)
    closed = late_interaction_banzhaf(s, w, u)
    torch.testing.assert_close(closed, exact[:rows, rows:].permute(2, 0, 1), rtol=0, atol=1e-12)


def test_masked_players_might_as_well_not_exist(generator):
    s, w, u = softmax_game(generator, 2, 4, 5)
    row_mask, column_mask = torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    row_mask[1, 2], column_mask[1, 0] = False, False
    masks = {"row_mask": row_mask, "column_mask": column_mask}
    out = late_interaction_banzhaf(s, w, u, **masks)
    rows, columns = torch.tensor([0, 1, 3]), torch.tensor([1, 2, 3, 4])
    few = (s[1:][:, rows][:, :, columns], w[1:, rows], u[1:, columns])
    torch.testing.assert_close(out[1][rows][:, columns], late_interaction_banzhaf(*few)[0])
    assert not out[1, 2].any()
    assert not out[1, :, 0].any()
    torch.testing.assert_close(late_interaction_value(s, w, u, **masks)[1], late_interaction_value(*few)[0])
    nobody = {"row_mask": row_mask, "column_mask": torch.zeros_like(column_mask)}
    assert not late_interaction_banzhaf(s, w, u, **nobody).any()
    assert not late_interaction_value(s, w, u, **nobody).any()


def test_planted_pair_has_the_largest_interaction(generator):
    s = torch.rand(1, 12, 24, generator=generator) * 0.5
    s[0, 3, 17] = 0.95
    even = (torch.full((1, 12), 1 / 12), torch.full((1, 24), 1 / 24))
    assert late_interaction_banzhaf(s, *even).flatten().argmax() == 3 * 24 + 17


def test_long_clips_do_not_overflow():
    s = torch.linspace(-1, 1, 3000).view(1, 1, 3000).repeat(1, 2, 1)
    out = late_interaction_banzhaf(s, torch.ones(1, 2), torch.ones(1, 3000))
    assert out.isfinite().all()


def test_gradients(generator):
    s, w, u = (t.requires_grad_() for t in softmax_game(generator, 1, 2, 3))
    assert torch.autograd.gradcheck(late_interaction_banzhaf, (s, w, u))
    assert torch.autograd.gradcheck(
        lambda *a: late_interaction_value(*a, torch.eye(5, dtype=torch.bool) == 0), (s, w, u)
    )
    through = lambda *a: banzhaf_interaction(lambda c: late_interaction_value(*a, c), 5)  # noqa: E731
    assert torch.autograd.gradcheck(through, (s, w, u))


def test_compiles_in_one_piece(generator):
    s, w, u = softmax_game(generator, 2, 3, 4)
    closed = torch.compile(late_interaction_banzhaf, fullgraph=True, backend="aot_eager")(s, w, u)
    torch.testing.assert_close(closed, late_interaction_banzhaf(s, w, u))

    def exact(s, w, u):
        return banzhaf_interaction(lambda c: late_interaction_value(s, w, u, c), 7)

    torch.testing.assert_close(torch.compile(exact, fullgraph=True, backend="aot_eager")(s, w, u), exact(s, w, u))


def test_no_players_on_a_side():
    empty = late_interaction_banzhaf(torch.zeros(2, 0, 3), torch.zeros(2, 0), torch.zeros(2, 3))
    assert empty.shape == (2, 0, 3)
    assert not late_interaction_value(torch.zeros(2, 0, 3), torch.zeros(2, 0), torch.zeros(2, 3)).any()
    assert BanzhafInteraction(8, 2)(torch.zeros(2, 0, 3)).shape == (2, 0, 3)


def test_bad_input_is_named(generator):
    game, _ = table_game(4, generator)
    with pytest.raises(ValueError, match="2 to 20 `players`"):
        banzhaf_interaction(game, 21)
    with pytest.raises(ValueError, match="2 to 20 `players`"):
        banzhaf_interaction(game, 1, samples=10)
    with pytest.raises(ValueError, match="at least one sample"):
        banzhaf_interaction(game, 4, samples=0)
    with pytest.raises(ValueError, match="two different players"):
        banzhaf_interaction(game, 4, pairs=torch.tensor([[1, 1]]))
    with pytest.raises(ValueError, match="the game's values"):
        banzhaf_interaction(lambda c: c.sum(), 4)
    with pytest.raises(ValueError, match="`row_weight` "):
        late_interaction_banzhaf(torch.zeros(2, 3, 4), torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"`column_mask` \[B, 4\] bool"):
        late_interaction_value(torch.zeros(2, 3, 4), torch.zeros(2, 3), torch.zeros(2, 4), column_mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"`inside` \[M, 7\] bool"):
        late_interaction_value(torch.zeros(2, 3, 4), torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="divisible by `heads`"):
        BanzhafInteraction(10, 4)


def test_predictor_learns_the_interaction_and_ignores_padding(generator):
    """A held-out interaction is told far better than by its mean; what is masked changes nothing."""
    torch.manual_seed(0)
    net = BanzhafInteraction(32, 4)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    even = lambda s: (torch.full(s.shape[:2], 1 / 4), torch.full((len(s), 5), 1 / 5))  # noqa: E731
    for _ in range(150):
        s = torch.rand(64, 4, 5, generator=generator)
        loss = (net(s) - 10 * late_interaction_banzhaf(s, *even(s))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    s = torch.rand(256, 4, 5, generator=generator)
    target = 10 * late_interaction_banzhaf(s, *even(s))
    with torch.no_grad():
        assert (net(s) - target).square().mean() < 0.2 * target.var()
        mask = torch.tensor([[True, True, True, False]]).expand(256, 4)
        other = s.clone()
        other[:, 3] = 7
        out = net(s, mask)
        assert torch.equal(out, net(other, mask))
        assert not out[:, 3].any()
        assert net(s, torch.zeros_like(mask)).isfinite().all()
