"""What people run instead of sinkhorn: SwAV's loop, the log domain, and the packages for optimal transport."""

from __future__ import annotations

import torch


def _uniform(row_mass, col_mass, rows_to_one=True):
    return row_mass is None and col_mass is None and rows_to_one


def usual(scores, epsilon, iterations, row_mass, col_mass, rows_to_one=True):
    """SwAV's way (DINOv2 writes the same): exponentiate, transpose, divide rows and columns in turn."""
    if not _uniform(row_mass, col_mass, rows_to_one) or scores.shape[0] != 1:
        return None

    def run():
        q = torch.exp(scores[0].float() / epsilon).t()
        prototypes, samples = q.shape
        q /= torch.sum(q)
        for _ in range(iterations):
            q /= torch.sum(q, dim=1, keepdim=True)
            q /= prototypes
            q /= torch.sum(q, dim=0, keepdim=True)
            q /= samples
        q *= samples
        return q.t()[None], None, None

    return run


def log_domain(scores, epsilon, iterations, row_mass, col_mass, rows_to_one=True):
    """The stable way: log-sum-exp over rows and columns."""
    if not _uniform(row_mass, col_mass, rows_to_one):
        return None

    def run():
        z = scores.float() / epsilon
        u = z.new_zeros(*z.shape[:2], 1)
        for _ in range(iterations):
            v = -torch.logsumexp(z + u, 1, keepdim=True)
            u = -torch.logsumexp(z + v, 2, keepdim=True)
        return (z + u + v).exp(), None, None

    return run


def pot(scores, epsilon, iterations, row_mass, col_mass, rows_to_one=True):
    """ot.sinkhorn on torch tensors; its plan adds up to one, so it is multiplied by the number of rows."""
    if not _uniform(row_mass, col_mass, rows_to_one) or scores.shape[0] != 1:
        return None
    try:
        import ot
    except ImportError:
        return None
    a, b = (torch.full((n,), 1 / n, device=scores.device) for n in scores.shape[1:])
    cost = -scores[0].float()
    settings = {"numItermax": iterations, "stopThr": 0, "warn": False}
    return lambda: ((ot.sinkhorn(a, b, cost, epsilon, **settings) * scores.shape[1])[None], None, None)


def geomloss_plan(scores, epsilon, iterations):
    """geomloss.ot.solve, rows adding up to one. It updates both sides at once and lowers epsilon on the way, so its
    plan after a few iterations is another one: not a peer of the op (its numbers are compared), but of clustering.py.
    """
    try:
        from geomloss import ot
    except ImportError:
        return None
    rows, cols = scores.shape
    a, b = scores.new_full((rows,), 1 / rows), scores.new_full((cols,), 1 / cols)
    return lambda: ot.solve(-scores, reg=epsilon, a=a, b=b, max_iter=iterations).plan * rows


def scales_usual(*args):
    run = usual(*args)
    return None if run is None else lambda: (None, None, run()[0].argmax(2))


PEERS = {
    "sinkhorn": {"usual": usual, "log domain": log_domain, "POT": pot},
    "sinkhorn_scales": {"usual": scales_usual},
}
