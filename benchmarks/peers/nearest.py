"""What people run instead of nearest: a matrix of all similarities and a reduction of it, or an index package.

Peers give values only to the comparison: of equally near codes each takes another.
"""

from __future__ import annotations

import importlib.util

import torch

_MATRIX = 1 << 33  # bytes; beyond, the matrix of all similarities does not fit


def _leave_out(scores, candidates, worst, low=0):
    """Rows low, low + 1, ... of a square matrix, less what is no candidate."""
    if candidates != "all":
        row = torch.arange(low, low + scores.shape[1], device=scores.device)[:, None]
        column = torch.arange(scores.shape[2], device=scores.device)
        scores.masked_fill_(column == row if candidates == "others" else column >= row, worst)
    return scores


def usual(points, codes, k, metric, candidates, screen):
    """torch.cdist or a product of the matrices, then topk."""
    if points.shape[0] * points.shape[1] * codes.shape[1] * 4 > _MATRIX:
        return None

    def run():
        if metric == "l2":
            distance = torch.cdist(points.float(), codes.float())
            best = _leave_out(distance, candidates, torch.inf).topk(k, dim=-1, largest=False)
            return best.values.square(), None
        x, c = points, codes
        if metric == "cosine":
            x, c = x / x.norm(dim=-1, keepdim=True), c / c.norm(dim=-1, keepdim=True)
        return _leave_out(x @ c.transpose(1, 2), candidates, -torch.inf).topk(k, dim=-1).values, None

    return run


def careful(points, codes, k, metric, candidates, screen):
    """One product with |c|^2 as its offset, some thousand rows at a time; max, min or topk of each piece."""
    batch, count, _ = points.shape
    step = max(1, (1 << 22) // max(1, batch * codes.shape[1]))

    def run():
        x, c = points, codes.expand(batch, -1, -1)
        if metric == "cosine":
            x, c = torch.nn.functional.normalize(x, dim=-1), torch.nn.functional.normalize(c, dim=-1)
        far, worst = metric == "l2", torch.inf if metric == "l2" else -torch.inf
        offset = c.square().sum(-1)[:, None] if far else None
        out = []
        for low in range(0, count, step):
            rows, to = x[:, low : low + step], c.transpose(1, 2)
            scores = torch.baddbmm(offset, rows, to, alpha=-2) if far else torch.bmm(rows, to)
            scores = _leave_out(scores, candidates, worst, low)
            if k > 1:
                best = scores.topk(k, dim=-1, largest=not far).values
            else:
                best = (scores.min if far else scores.max)(dim=-1, keepdim=True).values
            out.append(best + rows.square().sum(-1, keepdim=True) if far else best)
        return torch.cat(out, 1), None

    return run


def faiss_flat(points, codes, k, metric, candidates, screen):
    """faiss-cpu's exact index, built outside the timing; it knows float32, one set of codes, all candidates."""
    if importlib.util.find_spec("faiss") is None or points.dtype is not torch.float32 or not points.is_cpu:
        return None
    if codes.shape[0] != 1 or candidates != "all" or metric == "cosine":
        return None
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = (faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP)(codes.shape[2])
    index.add(codes[0].contiguous().numpy())
    rows = points.reshape(-1, points.shape[2]).contiguous().numpy()
    return lambda: (torch.from_numpy(index.search(rows, k)[0]).view(*points.shape[:2], k), None)


def sklearn_argmin(points, codes, k, metric, candidates, screen):
    """scikit-learn's fused reduction, for the nearest one of one set of codes."""
    if importlib.util.find_spec("sklearn") is None or points.dtype is not torch.float32 or not points.is_cpu:
        return None
    if codes.shape[0] != 1 or candidates != "all" or metric != "l2" or k != 1:
        return None
    from sklearn.metrics import pairwise_distances_argmin_min

    rows, table = points.reshape(-1, points.shape[2]).contiguous().numpy(), codes[0].contiguous().numpy()
    shape = (*points.shape[:2], 1)
    best = lambda: pairwise_distances_argmin_min(rows, table, metric="sqeuclidean")[1]  # noqa: E731
    return lambda: (torch.from_numpy(best()).view(shape), None)


PEERS = {
    "nearest": {"usual": usual, "careful": careful, "faiss-cpu": faiss_flat, "scikit-learn": sklearn_argmin},
}
