"""Balanced assignment of samples to prototypes, and entropic transport in general."""

from __future__ import annotations

import torch
import torch.distributed as dist

from vidkernels import _check
from vidkernels.functional.clustering._balance import column_potential
from vidkernels.functional.clustering._transport import ImplicitPlan, unbalanced_plan
from vidkernels.ops.sinkhorn.op import sinkhorn as _sinkhorn
from vidkernels.ops.sinkhorn.op import sinkhorn_scales as _scales
from vidkernels.ops.sinkhorn.op import sinkhorn_step as _step

__all__ = ["sinkhorn", "sinkhorn_assign"]

Marginals = tuple[torch.Tensor | None, torch.Tensor | None]


def _checked(name: str, scores: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """[B, N, K] scores."""
    if not isinstance(scores, torch.Tensor) or scores.dim() not in (2, 3):
        if isinstance(scores, torch.Tensor):
            _check.fail(name, "expected `scores` of shape [N, K] or [B, N, K].", scores=scores)
        _check.is_tensor(name, "scores", scores, "[B, N, K]")
    if not scores.is_floating_point():
        _check.fail(name, "expected `scores` of a floating type.", scores=scores)
    if not epsilon > 0:
        _check.fail(name, "expected a positive `epsilon`.", scores=scores, epsilon=epsilon)
    if iterations < 1:
        _check.fail(name, "expected at least one iteration.", scores=scores, iterations=iterations)
    batched = scores if scores.dim() == 3 else scores[None]
    if scores.dtype is torch.float64 and scores.is_cpu and not torch.compiler.is_compiling():
        bad = (batched.detach().isnan() | (batched.detach() == torch.inf)).any(2)
        if bad.any():
            _check.fail(name, f"`scores`{bad.nonzero()[0].tolist()} holds NaN or +inf.", scores=scores)
    return batched


def _masses(name: str, scores: torch.Tensor, marginals: Marginals | None) -> Marginals:
    """Masses [B, N] and [B, K], each row adding up to one; None stands for uniform."""
    if marginals is None:
        return None, None
    wide = torch.float64 if scores.dtype is torch.float64 else torch.float32
    out = []
    for label, mass, count in zip(("rows", "columns"), marginals, scores.shape[1:], strict=True):
        if mass is None:
            out.append(None)
            continue
        if mass.shape not in ((count,), (scores.shape[0], count)):
            _check.fail(name, f"expected the {label}' marginal of shape [{count}] or [B, {count}].",
                        scores=scores, marginal=mass)  # fmt: skip
        if mass.is_cpu and not torch.compiler.is_compiling() and bool(((mass < 0) | ~mass.isfinite()).any()):
            _check.fail(name, f"the {label}' marginal holds negative numbers or NaN.", marginal=mass)
        mass = mass.to(wide).expand(scores.shape[0], count)
        out.append(mass / mass.sum(1, keepdim=True))
    return out[0], out[1]


def _refuse_with_group(name: str, marginals, scores) -> None:
    if marginals is not None or scores.dim() != 2:
        _check.fail(name, "with a `group`, expected `scores` of shape [N, K] and uniform marginals.", scores=scores)


def _group_potential(scores, epsilon, iterations, group, backend):
    like = scores.new_empty(0, dtype=torch.float64 if scores.dtype is torch.float64 else torch.float32)
    size = scores.shape
    return column_potential(lambda: (scores,), size[0], like, size[1], epsilon, iterations, group, backend)


def sinkhorn(
    scores: torch.Tensor,
    epsilon: float = 0.05,
    iterations: int = 3,
    *,
    marginals: Marginals | None = None,
    group: dist.ProcessGroup | None = None,
    scale: str = "rows",
    unbalanced: float | tuple[float, float] | None = None,
    log: bool = False,
    gradient: str | None = "unroll",
    backend: str | None = None,
) -> torch.Tensor:
    """Spread samples evenly over prototypes: Sinkhorn-Knopp on exp(scores / epsilon).

    plan = u exp(scores / epsilon) v;  per iteration v = column mass / column sums, then u = row mass / row sums.
    Convention: rows are samples, columns prototypes (SwAV hands its matrix over like this, then transposes); for
        transport pass scores = -cost. Every iteration ends with the rows, so that row sums are exact and column sums
        as good as the iterations make them. Iterations start from u = row mass: a row of mass 0 has no say.
    Args:
        scores: [N, K] or [B, N, K], float16/bfloat16/float32/float64; any finite size, -inf forbids a pair.
        epsilon: the temperature (POT calls it reg).
        iterations: column and row updates; 3 in SwAV and DINOv2, until nothing moves for transport.
        marginals: (rows, columns), each [N] ([B, N]) or None for uniform; they are divided by their sums.
        group: share one problem among the processes of a torch.distributed group, whose batches may differ in size:
            one sum of K + 1 numbers per iteration (and one maximum). The result is constant, uniform marginals only.
        scale: "rows": every row adds up to 1, as SwAV's codes do; "plan": everything adds up to 1, as in POT.
        unbalanced: how strongly the marginals are kept (POT's reg_m), or one number for rows and one for columns;
            None keeps them exactly. Plain torch in the log domain, scale="plan" only.
        log: return the logarithm of the result, which no small epsilon can turn into zeros.
        gradient: "unroll" differentiates the iterations that were made (memory of N + K numbers per iteration);
            "implicit" the fixed point, whatever the iterations (for converged plans; solves a system of min(N, K)
            unknowns in float64); None gives a constant.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        plan: the shape of `scores`, float32 (float64 for float64). Differentiable in `scores` and `marginals`.
    Raises:
        ValueError: NaN or +inf in `scores` (the row is named; on a GPU and in compiled code they give NaN), shapes that
            do not fit, negative marginals.
    Backends: reference, cpu, cuda (sm80+); float64 runs on the reference. Deterministic: forward yes, backward yes.
    Source: Cuturi 2013, arXiv 1306.0895; Caron et al. 2020, arXiv 2006.09882, appendix A; differs: sums in float32
        whatever the input, and for scores beyond its range in float64 logarithms.
    Example:
        >>> codes = sinkhorn(torch.tensor([[0.9, 0.1], [0.8, 0.7]]), iterations=50)
        >>> codes.argmax(1)
        tensor([0, 1])
    """
    name = "sinkhorn"
    batched = _checked(name, scores, epsilon, iterations)
    if scale not in ("rows", "plan"):
        _check.fail(name, f'expected `scale` "rows" or "plan", got {scale!r}.', scores=scores)
    if gradient not in ("unroll", "implicit", None):
        _check.fail(name, f'expected `gradient` "unroll", "implicit" or None, got {gradient!r}.', scores=scores)
    if group is not None:
        _refuse_with_group(name, marginals, scores)
        if unbalanced is not None:
            _check.fail(name, "`unbalanced` does not go with a `group`.", scores=scores)
        return _shared_plan(scores.detach(), epsilon, iterations, group, scale, log, backend)
    if gradient is None:
        batched = batched.detach()
        marginals = marginals and tuple(m if m is None else m.detach() for m in marginals)
    row_mass, col_mass = _masses(name, batched, marginals)
    if unbalanced is not None:
        if scale != "plan" or gradient == "implicit":
            _check.fail(name, '`unbalanced` needs scale="plan" and gradient="unroll" or None.', scores=scores)
        plan = unbalanced_plan(batched, epsilon, iterations, row_mass, col_mass, unbalanced)
        plan = plan if log else plan.exp()
    elif gradient == "implicit":
        plan = ImplicitPlan.apply(batched, epsilon, iterations, row_mass, col_mass, backend)
        if scale == "rows":
            plan = plan * batched.shape[1] if row_mass is None else plan / row_mass[:, :, None]
        plan = plan.log() if log else plan
    else:
        plan, rows, cols = _sinkhorn(batched, epsilon, iterations, row_mass, col_mass, scale == "rows", backend=backend)
        if log:
            plan = batched.to(rows.dtype) / epsilon + cols[:, -1, None, :]
            plan = torch.log_softmax(plan, 2) if scale == "rows" else plan + rows[:, -1, :, None]
    return plan if scores.dim() == 3 else plan[0]


def _shared_plan(scores, epsilon, iterations, group, scale, log, backend):
    log_v = _group_potential(scores, epsilon, iterations, group, backend)
    plan = torch.log_softmax(scores.to(log_v.dtype) / epsilon + log_v, 1)
    if scale == "plan":
        rows = torch.tensor([scores.shape[0]], dtype=log_v.dtype, device=scores.device)
        dist.all_reduce(rows, dist.ReduceOp.SUM, group)
        plan = plan - rows.log()
    return plan if log else plan.exp()


def sinkhorn_assign(
    scores: torch.Tensor,
    epsilon: float = 0.05,
    iterations: int = 3,
    *,
    marginals: Marginals | None = None,
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """The prototype that each sample gets most of in `sinkhorn`, without the assignment matrix.

    label[i] = argmax_j (scores[i, j] / epsilon + log v[j]): a row's own scale cannot change its largest entry.
    Args: as for `sinkhorn`. Memory beside the scores: N + K numbers.
    Returns:
        label: [N] or [B, N] int64; the lowest prototype of equal ones. Not differentiable.
    Raises:
        ValueError: as `sinkhorn`.
    Backends: reference, cpu, cuda (sm80+). Deterministic: yes.
    Source: Salehi et al. 2024 (SIGMA), arXiv 2407.15447: its targets are the largest entries of Sinkhorn's plan.
    Example:
        >>> sinkhorn_assign(torch.tensor([[0.9, 0.1], [0.8, 0.7]]), iterations=50)
        tensor([0, 1])
    """
    batched = _checked("sinkhorn_assign", scores, epsilon, iterations).detach()
    if group is not None:
        _refuse_with_group("sinkhorn_assign", marginals, scores)
        log_v = _group_potential(scores.detach(), epsilon, iterations, group, backend)
        return _step(batched, epsilon, None, log_v[None], backend=backend)[2][0]
    row_mass, col_mass = _masses("sinkhorn_assign", batched, marginals)
    row_mass, col_mass = (m if m is None else m.detach() for m in (row_mass, col_mass))
    label = _scales(batched, epsilon, iterations, row_mass, col_mass, backend=backend)[2]
    return label if scores.dim() == 3 else label[0]
