"""ToMe written as loops over single tokens, and blocks around it: what the patches are compared with."""

import torch
from torch.nn import functional as F


def match(metric, r, protect):
    """For one clip [N, C]: (kept sources, [(source, destination)]), by the paper's alternate split."""
    unit = F.normalize(metric, dim=1)
    free = list(range(protect, len(metric)))
    sources = [n for n in free if n % 2 == 0]
    destinations = [n for n in free if n % 2 == 1]
    best = []
    for a in sources:
        scores = [float((unit[a] @ unit[b]).detach()) for b in destinations]
        best.append((max(scores), a, destinations[scores.index(max(scores))]) if scores else None)
    r = min(r, len(free) // 2)
    best = sorted((pair for pair in best if pair), key=lambda pair: (-pair[0], pair[1]))
    merged = {a: b for _, a, b in best[:r]}
    return [n for n in sources if n not in merged], destinations, merged


def merge(x, members, metric, r, protect):
    """x [N, D]; members[n]: original tokens that n stands for. Returns the merged x and members."""
    kept, destinations, merged = match(metric, r, protect)
    rows, groups = [], []
    for n in [*range(protect), *kept, *destinations]:
        group = [n, *(a for a, b in merged.items() if b == n)]
        weights = [len(members[g]) for g in group]
        rows.append(sum(w * x[g] for w, g in zip(weights, group)) / sum(weights))
        groups.append(sorted(n for g in group for n in members[g]))
    return torch.stack(rows), groups


def attention(query, key, value, members, proportional=True):
    """One clip, [H, N, d] each: every token counts as often as it has members."""
    scores = query @ key.transpose(1, 2) * query.shape[2] ** -0.5
    weight = scores.exp()
    if proportional:
        weight = weight * torch.tensor([float(len(m)) for m in members], dtype=scores.dtype)
    return (weight / weight.sum(2, keepdim=True)) @ value


def transformer(x, blocks, pairs, protect, attend, feed, proportional=True):
    """x [B, N, D] through `attend(block, x, heads_attention) -> (x, key)`, merge, `feed(block, x)`; clip by clip.

    Returns the merged tokens [B, n, D], the members of each, and the tokens given back [B, N, D].
    """
    merged, groups, full = [], [], []
    for clip in x:
        members = [[n] for n in range(len(clip))]
        for block, r in zip(blocks, pairs):
            clip, key = attend(block, clip, lambda *qkv, m=members: attention(*qkv, m, proportional))
            if r:
                clip, members = merge(clip, members, key.mean(0), r, protect)
            clip = feed(block, clip)
        back = [None] * x.shape[1]
        for row, group in zip(clip, members):
            for n in group:
                back[n] = row
        merged.append(clip)
        groups.append(members)
        full.append(torch.stack(back))
    return torch.stack(merged), groups, torch.stack(full)


def assert_tells_the_groups(source, size, groups):
    """Source maps and sizes of a patch against the members found by hand."""
    for b, members in enumerate(groups):
        assert size[b].tolist() == [len(m) for m in members]
        for place, group in enumerate(members):
            assert (source[b] == place).nonzero().flatten().tolist() == group
