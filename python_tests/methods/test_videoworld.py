"""VideoWorld: shapes, causality, and the property it does not have yet (expected to fail, see there)."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vidkernels.methods.tokens.videoworld import VideoWorld

Config = VideoWorld.Config
SIDE, CELL = 5, 4
MOVES = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])


def render(agent, goal):
    """Positions [..., 2] -> frames [..., 20, 20, 3] uint8: a red agent, a green goal; yellow if both."""
    board = torch.zeros(*agent.shape[:-1], SIDE * SIDE, 3)
    for where, channel in ((agent, 0), (goal, 1)):
        board[..., channel] = F.one_hot(where[..., 0] * SIDE + where[..., 1], SIDE * SIDE).float()
    board = board.unflatten(-2, (SIDE, SIDE))
    frame = board.repeat_interleave(CELL, -3).repeat_interleave(CELL, -2)
    return (frame * 200 + 20).to(torch.uint8)


def starts(held_out):
    """All (agent, goal) at least four steps apart [N, 2, 2]; every fifth is held out."""
    cells = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE))
    pairs = torch.stack([cells[:, None].expand(-1, 25, -1), cells[None].expand(25, -1, -1)], 2).flatten(0, 1)
    pairs = pairs[(pairs[:, 0] - pairs[:, 1]).abs().sum(1) >= 4]
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))]
    out = torch.arange(len(pairs)) % 5 == 0
    return pairs[out] if held_out else pairs[~out]


def walks(count, generator, frames=4, held_out=False):
    """Clips of walks to the goal and the moves made [B, T - 1]; every move is one of those that get nearer."""
    pairs = starts(held_out)
    agent, goal = pairs[torch.randint(len(pairs), (count,), generator=generator)].unbind(1)
    path, moves = [agent], []
    for _ in range(frames - 1):
        near = (agent[:, None] + MOVES - goal[:, None]).abs().sum(2) < (agent - goal).abs().sum(1, keepdim=True)
        move = torch.multinomial(near.float(), 1, generator=generator)[:, 0]
        agent = agent + MOVES[move]
        path.append(agent), moves.append(move)
    path = torch.stack(path, 1)
    return render(path, goal[:, None].expand_as(path)), torch.stack(moves, 1)


def entropy(move, code):
    """H(move | code) in bits."""
    table = torch.zeros(int(code.max()) + 1, 4).index_put((code, move), torch.ones(len(code)), accumulate=True)
    table = table / table.sum()
    return float(-(table * (table / table.sum(1, keepdim=True)).log2()).nansum())


def train(model, parts, steps, generator, lr=3e-3):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for _ in range(steps):
        losses = model.training_step(walks(32, generator)[0], parts=parts)
        optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return losses


@torch.no_grad()
def moved(model, generator):
    """Shares of held-out starts whose imagined next frame is a legal move, and a move nearer to the goal."""
    agent, goal = starts(True).unbind(1)
    tokens = model.imagine(render(agent, goal), generator)[1]
    after = agent[:, None] + MOVES
    inside = ((after >= 0) & (after < SIDE)).all(2)
    frames = render(after.clamp(0, SIDE - 1), goal[:, None].expand_as(after))
    same = (model.frame_tokens(frames) == tokens[:, None]).all(2) & inside
    near = (after - goal[:, None]).abs().sum(2) < (agent - goal).abs().sum(1, keepdim=True)
    return float(same.any(1).float().mean()), float((same & near).any(1).float().mean())


def test_sequences_shapes_and_causality():
    torch.manual_seed(0)
    model = VideoWorld(replace(Config.tiny(), actions=4)).eval()
    clip, _ = walks(3, torch.Generator().manual_seed(0))
    assert model.sequence(clip).shape == (3, 2 * 27 + 25)
    words = model.sequence(clip)
    late = words.clone()
    late[:, 40:] = (late[:, 40:] + 1) % 27
    a, b = (model.logits(w, 27) for w in (words, late))
    torch.testing.assert_close(a[:, :40], b[:, :40])
    assert (a[:, 40:] - b[:, 40:]).abs().max() > 1e-3
    codes, tokens = model.imagine(clip[:, 0])
    assert codes.shape == (3, 2)
    assert set(codes.flatten().tolist()) <= set(range(16))
    assert tokens.shape == (3, 25)
    assert int(tokens.max()) < 27
    assert model.action_logits(clip[:, :1], codes).shape == (3, 4)


def test_a_code_sees_its_horizon_and_no_frame_after():
    torch.manual_seed(0)
    model = VideoWorld(Config.tiny())
    clip = torch.rand(2, 5, 4, 4, 48)
    other = clip.clone()
    other[:, 2:] = torch.rand(2, 3, 4, 4, 48)
    z, changed = (model.dynamics.codes(model.dynamics.features(c), 3)[0] for c in (clip, other))
    assert torch.equal(z[:, 0, 0], changed[:, 0, 0])  # frames 0 and 1

    class Unrounded(torch.nn.Module):
        def forward(self, z):
            return z, z

    model.dynamics.fsq = Unrounded()
    z, changed = (model.dynamics.codes(model.dynamics.features(c), 3)[0] for c in (clip, other))
    assert torch.equal(z[:, 0, 0], changed[:, 0, 0])
    assert not torch.equal(z[:, 0, 1], changed[:, 0, 1])  # frames 0, 1 and 2


def test_bad_clips_and_parts_are_named():
    model = VideoWorld(Config.tiny())
    with pytest.raises(ValueError, match="multiples of the patch"):
        model.codes(torch.zeros(1, 4, 18, 16, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="more frames than the horizon"):
        model.codes(torch.zeros(1, 2, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="`parts`"):
        model.training_step(torch.zeros(1, 4, 16, 16, 3, dtype=torch.uint8), parts=("frame",))


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.xfail(raises=AssertionError, reason="H(move | z_1) is 1.75 bits after 200 steps, not below 0.1")
def test_codes_name_the_move_and_planning_helps(one_thread):
    clip, moves = walks(400, torch.Generator().manual_seed(9), held_out=True)
    move, bits = moves[:, 0], {}
    models = {}
    for name in ("codes", "blind"):
        torch.manual_seed(0)
        model = VideoWorld(Config.tiny())
        if name == "blind":  # control: the decoder does not see frame t, so codes must say where things are
            decode = model.dynamics.decode
            model.dynamics.decode = lambda features, z, decode=decode: decode(torch.zeros_like(features), z)
        print(name, train(model, ("frames", "dynamics"), 200, torch.Generator().manual_seed(1), lr=4e-3))
        with torch.no_grad():
            bits[name] = entropy(move, model.codes(clip)[:, 0, 0])
        models[name] = model
    trained = models["codes"]
    with torch.no_grad():
        code = trained.codes(clip)[:, 0, 0]
        bits["shuffled"] = entropy(move[torch.randperm(400, generator=torch.Generator().manual_seed(2))], code)
    print(bits)
    assert bits["codes"] < 0.1
    assert bits["shuffled"] > 1.5
    assert bits["blind"] > 0.5
    with torch.no_grad():
        back, _ = trained.tokens(trained.patches(clip))
        assert torch.equal(back > 0, trained.patches(clip) > 0)  # tokens tell all cells apart
    scores = {}
    for name, plan in (("codes", True), ("frames", False)):
        torch.manual_seed(3)
        model = VideoWorld(replace(Config.tiny(), plan=plan))
        for part in ("tokens", "dynamics"):
            getattr(model, part).load_state_dict(getattr(trained, part).state_dict())
        print(train(model, ("sequence",), 300, torch.Generator().manual_seed(4)))
        model.eval()
        runs = [moved(model, torch.Generator().manual_seed(s)) for s in range(3)]
        scores[name] = [sum(column) / 3 for column in zip(*runs)]
    print(scores)
    assert scores["codes"][0] > scores["frames"][0]
    assert scores["codes"][1] > scores["frames"][1]
