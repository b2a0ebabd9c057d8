"""Density peaks: clusters of tokens without a given shape."""

from __future__ import annotations

import torch
from torch import Tensor

from vidkernels import _check
from vidkernels.functional.tokens.plan import MergePlan
from vidkernels.ops.gather_tokens.op import gather_tokens as _gather
from vidkernels.ops.nearest.op import nearest as _nearest

__all__ = ["dpc_knn_cluster"]

_MOST_NEIGHBOURS = 32  # of one call of the kernel


def dpc_knn_cluster(
    x: Tensor, clusters: int, *, k: int = 5, mask: Tensor | None = None, backend: str | None = None
) -> tuple[MergePlan, Tensor]:
    """Density peaks clustering with k nearest neighbours: tokens in dense places, far from denser ones, are centres.

    density_i = exp(-mean over the k nearest others j of |x_i - x_j|^2 / C)
    peak_i    = density_i * distance to the nearest denser token / sqrt(C)
    The densest token and the `clusters - 1` highest peaks are the centres; every token joins the nearest one.
    Convention: clusters count in token order of their centres. Of equally dense tokens the first is the denser one;
        equal peaks go to the denser token; a token between two centres joins the first. Nothing is random, and no
        sample sees the rest of its batch.
    Args:
        x: [B, N, C], float16/bfloat16/float32/float64.
        clusters: K, at most N.
        k: neighbours, 1 .. 32; where a token has fewer, those it has.
        mask: [B, N] bool, True = a token, False = padding; None: all are tokens.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        plan: MergePlan of N tokens into K, for `merge_tokens`, whose `size` weighs them. Padding is sent to place 0 and
            needs size 0: `merge_tokens(x, plan, mask)`. Not differentiable (merging is).
        centers: [B, K] int64, ascending; -1, at the end, where a sample has fewer than K tokens.
    Raises:
        ValueError: K or k out of range, shapes that do not fit; NaN or infinity in a token (found on the CPU in eager
            mode; elsewhere such tokens count as padding).
    Backends: those of `nearest`: reference, cpu, cuda (sm80+); never N x N. Deterministic: yes.
    Source: Rodriguez and Laio 2014; Du et al. 2016 (k nearest neighbours); for tokens: Zeng et al. 2022, arXiv
        2204.08680; differs: a token is not its own neighbour; ties are broken by order instead of noise; peaks are
        compared as logarithms, so distant tokens do not all have density 0.
    Example:
        >>> x = torch.tensor([[[0.0], [0.1], [5.0], [5.1], [0.05]]])
        >>> plan, centers = dpc_knn_cluster(x, 2, k=1)
        >>> plan.source.tolist(), centers.tolist()
        ([[0, 0, 1, 1, 0]], [[0, 2]])
    """
    name = "dpc_knn_cluster"
    x, there, whole = finite_tokens(name, x, mask)
    batch, length, dim = x.shape
    if not 0 <= clusters <= length or (clusters == 0 and length > 0):
        _check.fail(name, "expected `clusters` between 1 and the number of tokens.", x=x, clusters=clusters)
    if not 1 <= k <= _MOST_NEIGHBOURS:
        _check.fail(name, f"expected `k` between 1 and {_MOST_NEIGHBOURS}.", k=k)
    if length == 0:
        centers = torch.zeros(batch, 0, dtype=torch.int64, device=x.device)
        return MergePlan(centers.int(), 0), centers
    k = max(1, min(k, length - 1))
    _, squared = _nearest(x, x, k, "l2", "others", True, backend=backend)
    found = squared.isfinite()
    spread = torch.where(found, squared, 0).sum(2) / found.sum(2).clamp(min=1) / max(dim, 1)
    log_density = torch.where(there, -spread, -torch.inf)

    # In order of density the nearest denser token is the nearest one before; the densest has none: distance infinity.
    log_density, order = log_density.sort(dim=1, descending=True, stable=True)
    ranked = rows(x, order, backend)
    _, above = _nearest(ranked, ranked, 1, "l2", "before", True, backend=backend)
    log_peak = 0.5 * above[:, :, 0].clamp(min=0).log() + log_density
    # Tokens equal to a denser one have a peak of 0, the logarithm of which is that of padding; they go before it.
    alive = there.gather(1, order)
    log_peak = torch.where(alive, log_peak, -torch.inf)
    rank = log_peak.masked_fill(alive & (log_peak == -torch.inf), torch.finfo(log_peak.dtype).min)
    chosen = rank.sort(dim=1, descending=True, stable=True).indices[:, :clusters]
    centers = torch.where(alive.gather(1, chosen), order.gather(1, chosen), length).sort(dim=1).values

    real = centers < length
    at = centers.clamp(max=length - 1)
    codes = rows(x, at, backend)
    if not whole:
        codes = codes.masked_fill(~real[:, :, None], torch.nan)
    source = _nearest(x, codes, 1, "l2", "all", True, backend=backend)[0][:, :, 0].clamp(min=0)
    # A centre stays its own cluster, also where another centre is the same vector. Missing centres write to a place
    # beyond the tokens.
    own = torch.arange(clusters, device=x.device).expand(batch, clusters)
    source = torch.cat([source, source.new_zeros(batch, 1)], 1).scatter(1, centers, own)[:, :length]
    return MergePlan(source.int(), clusters), torch.where(real, centers, -1)


def finite_tokens(name: str, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, bool]:
    """Tokens with NaN, which `nearest` never chooses, in the place of padding; which are tokens; whether all are."""
    _check.is_tensor(name, "x", x, "[B, N, C]")
    if mask is not None and (mask.shape != x.shape[:2] or mask.dtype is not torch.bool):
        _check.fail(name, "expected `mask` [B, N] bool.", x=x, mask=mask)
    x = x.detach()
    looks = not torch.compiler.is_compiling() and x.device.type == "cpu"
    # One cheap pass; a finite sum has no other terms.
    if looks and mask is None and bool(x.sum().isfinite()):
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device), True
    finite = x.isfinite().all(2)
    there = finite if mask is None else finite & mask
    if looks:
        bad = ~finite if mask is None else mask & ~finite
        if bool(bad.any()):
            which = bad.nonzero()[:5].tolist()
            _check.fail(name, f"expected finite tokens, got NaN or infinity at [batch, token] {which}.", x=x)
    return x.masked_fill(~there[:, :, None], torch.nan), there, False


def rows(x: Tensor, index: Tensor, backend: str | None) -> Tensor:
    """Tokens in another order."""
    return _gather(x, index.int(), backend=backend)
