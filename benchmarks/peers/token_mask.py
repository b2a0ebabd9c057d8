"""What people run instead of token_mask and score_mask: NumPy on each sample, or a sort of random numbers."""

from __future__ import annotations

import math

import numpy as np
import torch


def _lists(masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index lists of equal length from a bool mask, as the model needs them."""
    batch = masks.shape[0]
    return tuple(m.nonzero()[:, 1].view(batch, -1).int() for m in (~masks, masks))


def _running_maps(frames: int, height: int, width: int, high: int) -> np.ndarray:
    """The four masks that VideoMAE v2 makes once."""
    queue = np.arange(4) < round(4 * high / (height * width))
    maps = []
    for start in range(4):
        cells = [np.tile(queue[(np.arange(4) + start + t) % 4].reshape(2, 2), (height // 2, width // 2)) for t in
                 range(frames)]  # fmt: skip
        maps.append(np.stack(cells).reshape(-1))
    return np.stack(maps)


def usual(seed, counts, kind, batch, grid, low, high, blocks):
    """A generator per clip, as the datasets of the released code call it, then a batch and its index lists."""
    frames, cells = grid[0], grid[1] * grid[2]
    if kind == "tube":

        def one():
            frame = np.hstack([np.zeros(cells - high), np.ones(high)])
            np.random.shuffle(frame)
            return np.tile(frame, (frames, 1)).flatten()

    elif kind == "random":

        def one():
            mask = np.ones(frames * cells)
            mask[np.random.permutation(frames * cells)[: frames * cells - high]] = 0
            return mask

    elif kind == "running_cell" and grid[1] % 2 == grid[2] % 2 == 0:
        maps = _running_maps(*grid, high)

        def one():
            return np.copy(maps[np.random.randint(4)])

    else:
        raise NotImplementedError(f"no released generator for {kind} on this grid")
    return lambda: _lists(torch.from_numpy(np.stack([one() for _ in range(batch)])).bool())


def careful(seed, counts, kind, batch, grid, low, high, blocks):
    """MAE's batched way: sort random numbers; the two halves of the order are sorted again, because lists ascend.
    Running cells: the index lists of the four masks, made once, and a random choice for each sample."""
    if kind == "running_cell":
        choices = [i.long() for i in _lists(torch.from_numpy(_running_maps(*grid, high)))]

        def pick():
            which = torch.randint(4, (batch,))
            return tuple(c.index_select(0, which).int() for c in choices)

        return pick
    frames = grid[0] if kind == "tube" else 1
    length = math.prod(grid) // frames
    offset = (torch.arange(frames) * length)[:, None]

    def run():
        order = torch.rand(batch, length).argsort(1)
        parts = order[:, high:].sort(1).values, order[:, :high].sort(1).values
        return tuple((p[:, None] + offset).flatten(1).int() for p in parts)

    return run


def usual_scores(scores, counts, groups, low, high, largest):
    """topk, a scatter into a bool mask, and the index lists."""
    batch, tokens = scores.shape
    rows = scores.view(batch * groups, -1)

    def run():
        top = rows.topk(high, dim=1, largest=largest).indices
        mask = torch.zeros(rows.shape, dtype=torch.bool).scatter_(1, top, True)
        return _lists(mask.view(batch, tokens))

    return run


def _a_mask(got, expected, args):
    """Another random stream cannot give the same mask: the same sizes, ascending, every token once."""
    for g, e, name in zip(got, expected, ("visible_index", "masked_index")):
        if g.shape != e.shape:
            return f"{name} has shape {list(g.shape)}, expected {list(e.shape)}"
        if not bool((g[:, 1:] > g[:, :-1]).all()):
            return f"{name} does not ascend"
    tokens = torch.cat(got, 1).sort(1).values
    if not bool((tokens == torch.arange(tokens.shape[1])).all()):
        return "the two lists do not hold every token once"
    return None


PEERS = {
    "token_mask": {"usual": usual, "careful": careful},
    "score_mask": {"usual": usual_scores},
}
SAME = {"token_mask": _a_mask}
