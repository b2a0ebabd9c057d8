"""Losses that predict one view's prototype assignment from another view."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.nn import functional as F

from vidkernels import _check
from vidkernels.functional.clustering._balance import column_potential
from vidkernels.ops.sinkhorn.op import sinkhorn_scales as _scales
from vidkernels.ops.sinkhorn.op import sinkhorn_step as _step

__all__ = ["sigma_loss", "swapped_prediction_loss"]

_ROWS = 1024  # scores of so many rows exist at a time


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype is torch.float64 else x.float()


class _SwappedPrediction(torch.autograd.Function):
    """Cross-entropy of every crop with the codes of the others, rows in blocks; the gradient is made on the way.

    Codes of a row are softmax(scores / epsilon + log v): no code outlives its block.
    """

    @staticmethod
    def forward(ctx, epsilon, temperature, assign, log_v, *scores):
        rows, crops = scores[0].shape[0], len(scores)
        weight = 1 / (len(assign) * (crops - 1) * max(rows, 1))
        needs = any(ctx.needs_input_grad[4:])
        grads = [torch.empty_like(s) for s in scores] if needs else []
        loss = torch.zeros((), dtype=torch.float64, device=scores[0].device)
        for begin in range(0, rows, _ROWS):
            part = [_wide(s[begin : begin + _ROWS]) for s in scores]
            codes = [torch.softmax(part[i] / epsilon + log_v[k], 1) for k, i in enumerate(assign)]
            every = torch.stack(codes).sum(0) if codes else None
            for v in range(crops):
                own = assign.index(v) if v in assign else None
                target = every if own is None else every - codes[own]
                mass = len(assign) - (own is not None)
                if mass == 0:
                    if needs:
                        grads[v][begin : begin + _ROWS] = 0
                    continue
                log_p = torch.log_softmax(part[v] / temperature, 1)
                loss -= (target * log_p).sum(dtype=torch.float64)
                if needs:
                    grads[v][begin : begin + _ROWS] = (log_p.exp() * mass - target) * (weight / temperature)
        ctx.save_for_backward(*grads)
        return (loss * weight).to(_wide(scores[0]).dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return None, None, None, None, *(g * grad.to(g.dtype) for g in ctx.saved_tensors)


def swapped_prediction_loss(
    scores: Sequence[torch.Tensor],
    *,
    assign: Sequence[int] = (0, 1),
    epsilon: float = 0.05,
    iterations: int = 3,
    temperature: float = 0.1,
    queue: Sequence[torch.Tensor] | None = None,
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """SwAV: predict the balanced assignment of one crop from every other crop.

    mean over i in assign, v != i, n of  -sum_k q_i[n, k] log softmax(scores_v[n] / temperature)[k]
    with q_i = sinkhorn(scores_i), constant.
    Convention: scores are inner products of normalised projections and normalised prototypes.
    Args:
        scores: one [N, K] per crop (or a stacked [V, N, K]), at least two; float16/bfloat16/float32/float64.
        assign: the crops whose codes are predicted: the large ones.
        epsilon, iterations: of Sinkhorn.
        temperature: of the prediction.
        queue: one [M, K] per entry of `assign`: scores of stored samples that share its balance but not the loss.
        group: balance the codes over a torch.distributed group; the loss stays this process's.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        loss: a scalar, float32 (float64 for float64). Differentiable in `scores`; memory beside them and their
            gradients: K numbers per crop and blocks of 1024 rows.
    Raises:
        ValueError: fewer than two crops, unequal shapes, a crop to assign that does not exist, NaN scores.
    Backends: reference, cpu, cuda (sm80+) for Sinkhorn, torch for the rest. Deterministic: yes.
    Source: Caron et al. 2020, arXiv 2006.09882, equations 2 to 4.
    Example:
        >>> crops = torch.eye(4).repeat(2, 1, 1).requires_grad_()
        >>> loss = swapped_prediction_loss(crops)
        >>> loss.backward(); round(loss.item(), 4)
        0.0001
    """
    name = "swapped_prediction_loss"
    scores = tuple(scores.unbind(0) if isinstance(scores, torch.Tensor) else scores)
    if len(scores) < 2 or any(s.dim() != 2 or s.shape != scores[0].shape for s in scores):
        _check.fail(
            name, "expected two or more crops of scores [N, K].", **{f"crop {i}": s for i, s in enumerate(scores)}
        )
    if not assign or not all(0 <= i < len(scores) for i in assign) or len(set(assign)) < len(assign):
        _check.fail(name, f"expected `assign` to name some of the {len(scores)} crops.", assign=tuple(assign))
    if queue is not None and len(queue) != len(assign):
        _check.fail(name, "expected one queue per crop of `assign`.", assign=tuple(assign), queues=len(queue))
    log_v = []
    for k, i in enumerate(assign):
        part = scores[i].detach()
        parts = (part,) if queue is None else (part, queue[k].detach().to(part.dtype))
        log_v.append(_potential(lambda parts=parts: parts, parts, epsilon, iterations, group, backend))
    return _SwappedPrediction.apply(epsilon, temperature, tuple(assign), log_v, *scores)


def _potential(blocks, parts, epsilon, iterations, group, backend) -> torch.Tensor:
    """[K] log v of rows that come in parts; one part in one process takes the op that does all iterations."""
    if len(parts) == 1 and group is None:
        return _scales(parts[0][None], epsilon, iterations, None, None, backend=backend)[1][0]
    like = _wide(parts[0].new_empty(0))
    rows = sum(p.shape[0] for p in parts)
    return column_potential(blocks, rows, like, parts[0].shape[1], epsilon, iterations, group, backend)


class _Sigma(torch.autograd.Function):
    """Both predictions of sigma_loss, rows in blocks; gradients of the normalised inputs are made on the way."""

    @staticmethod
    def forward(ctx, video, target, prototypes, prototypes_t, log_v, epsilon, temperature, hard, keep, backend):
        rows = video.shape[0]
        weight = 0.5 / max(rows, 1)
        needs = any(ctx.needs_input_grad[:3])
        grads = [torch.zeros_like(x) for x in (video, target, prototypes)] if needs else []
        loss = torch.zeros((), dtype=torch.float64, device=video.device)
        # Blocks reuse their memory: fresh pages cost more than the arithmetic.
        size, count = min(rows, _ROWS), prototypes.shape[0]
        given = [] if keep else [video.new_empty(size, count) for _ in (0, 1)]
        wide, logs = (_wide(video.new_empty(0)).new_empty(size, count) for _ in (0, 1))
        for begin in range(0, rows, _ROWS):
            some, n = slice(begin, begin + _ROWS), min(_ROWS, rows - begin)
            if keep:
                scores = [k[some] for k in keep]
            else:
                scores = [torch.mm(x[some], prototypes_t, out=g[:n]) for x, g in zip((video, target), given)]
            found = [
                _step(s[None], epsilon, None, v[None], backend=backend)[2][0] if hard
                else torch.softmax(_wide(s) / epsilon + v, 1)
                for s, v in zip(scores, log_v)
            ]  # fmt: skip
            for side in (0, 1):
                code = found[1 - side]
                log_p = torch.log_softmax(wide[:n].copy_(scores[side]).div_(temperature), 1, out=logs[:n])
                if hard:
                    loss -= log_p.gather(1, code[:, None]).sum(dtype=torch.float64)
                else:
                    loss -= (code * log_p).sum(dtype=torch.float64)
                if not needs:
                    continue
                d = log_p.exp_()
                if hard:
                    d.scatter_add_(1, code[:, None], d.new_full((len(d), 1), -1.0))
                else:
                    d -= code
                d = d.mul_(weight / temperature).to(video.dtype)
                torch.mm(d, prototypes, out=grads[side][some])
                if side == 1:  # the video side leaves the prototypes alone
                    grads[2].addmm_(d.mT, target[some])
        ctx.save_for_backward(*grads)
        return (loss * weight).to(_wide(video).dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return *(g * grad.to(g.dtype) for g in ctx.saved_tensors), *(None,) * 7


def sigma_loss(
    video: torch.Tensor,
    target: torch.Tensor,
    prototypes: torch.Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 10,
    temperature: float = 0.1,
    codes: str = "hard",
    store_scores: bool = False,
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """SIGMA: the video model and the projection network predict each other's balanced prototypes.

    s = normalise(x) normalise(prototypes)^T for both x;  q = sinkhorn(s), constant
    loss = (CE(s_video / temperature, q_target) + CE(s_target / temperature, q_video)) / 2, means over rows
    Convention: rows are the masked tubes of the whole batch. The video prediction does not move the prototypes.
    Args:
        video: [M, D] or [B, N, D], what the video model predicts.
        target: the same shape, the projected targets.
        prototypes: [K, D].
        epsilon, iterations: of Sinkhorn.
        temperature: of the cross-entropy.
        codes: "hard": the largest entry of a row of the plan; "soft": the row itself.
        store_scores: keep both [M, K] score matrices in the inputs' dtype instead of multiplying again in every
            iteration: faster where a matrix product costs more than reading its result.
        group: balance over a torch.distributed group; the loss stays this process's.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        loss: a scalar, float32 (float64 for float64). Differentiable in `video`, `target` and `prototypes`. Memory
            without `store_scores`: M + K numbers, gradients of the inputs, and blocks of 1024 rows.
    Raises:
        ValueError: shapes that do not fit, NaN in the scores.
    Backends: reference, cpu, cuda (sm80+) for Sinkhorn, torch for the rest. Deterministic: yes.
    Source: Salehi et al. 2024, arXiv 2407.15447, section 3.2.
    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> x, p = torch.randn(8, 4, generator=g), torch.randn(3, 4, generator=g, requires_grad=True)
        >>> sigma_loss(x, x, p).backward()
        >>> p.grad.shape
        torch.Size([3, 4])
    """
    name = "sigma_loss"
    if video.shape != target.shape or video.dim() not in (2, 3) or prototypes.dim() != 2:
        _check.fail(name, "expected `video` and `target` of one shape [M, D] or [B, N, D], `prototypes` [K, D].",
                    video=video, target=target, prototypes=prototypes)  # fmt: skip
    if video.shape[-1] != prototypes.shape[1]:
        _check.fail(name, "expected `prototypes` as wide as `video`.", video=video, prototypes=prototypes)
    if codes not in ("hard", "soft"):
        _check.fail(name, f'expected `codes` "hard" or "soft", got {codes!r}.', video=video)
    x, y = (F.normalize(v.flatten(0, -2), dim=1) for v in (video, target.to(video.dtype)))
    p = F.normalize(prototypes.to(video.dtype), dim=1)
    with torch.no_grad():
        transposed = p.t().contiguous()
        sides = [v.detach() for v in (x, y)]
        keep = [v @ transposed for v in sides] if store_scores else []
        log_v = []
        for k, v in enumerate(sides):
            if store_scores:
                log_v.append(_potential(lambda k=k: (keep[k],), (keep[k],), epsilon, iterations, group, backend))
                continue
            blocks = lambda v=v: (v[i : i + _ROWS] @ transposed for i in range(0, v.shape[0], _ROWS))  # noqa: E731
            like = _wide(v.new_empty(0))
            count = v.shape[0], like, p.shape[0]
            log_v.append(column_potential(blocks, *count, epsilon, iterations, group, backend))
    return _Sigma.apply(x, y, p, transposed, log_v, epsilon, temperature, codes == "hard", keep, backend)
