"""What small transport problems ask for beyond balanced iterations: the gradient of the fixed point, soft marginals."""

from __future__ import annotations

import torch

from vidkernels.ops.sinkhorn.op import sinkhorn as _sinkhorn


class ImplicitPlan(torch.autograd.Function):
    """The plan (adding up to 1), differentiated as the solution that the iterations head for.

    At the solution the plan P has its marginals a and b. With D the gradient of P, that of scores / epsilon is
    P (D - l[i] - m[j]), where the multipliers l and m, which are also the gradients of a and b, make its row and column
    sums vanish:   a l + P m = sum_j P D,   P^T l + b m = sum_i P D.
    One side is eliminated; what is left has the constants as its null space, which a rank-one term fills.
    """

    @staticmethod
    def forward(ctx, scores, epsilon, iterations, row_mass, col_mass, backend):
        plan = _sinkhorn(scores, epsilon, iterations, row_mass, col_mass, False, backend=backend)[0]
        ctx.save_for_backward(plan)
        ctx.epsilon, ctx.dtype = epsilon, scores.dtype
        return plan

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        plan = ctx.saved_tensors[0].double()
        weighted = plan * grad.double()
        wide = plan.shape[1] < plan.shape[2]
        p, d = (plan.mT, weighted.mT) if wide else (plan, weighted)
        tiny = torch.finfo(torch.float64).tiny
        a, b = p.sum(2).clamp(min=tiny), p.sum(1).clamp(min=tiny)
        right_a, right_b = d.sum(2), d.sum(1)
        system = torch.diag_embed(b) - p.mT @ (p / a[:, :, None])
        system = system + b[:, :, None] * b[:, None, :]
        m = torch.linalg.solve(system, right_b - (p.mT @ (right_a / a)[:, :, None])[:, :, 0])
        rest = (right_a - (p @ m[:, :, None])[:, :, 0]) / a
        rows, cols = (m, rest) if wide else (rest, m)
        gradient = (weighted - plan * (rows[:, :, None] + cols[:, None, :])) / ctx.epsilon
        row_grad = rows.to(grad.dtype) if ctx.needs_input_grad[3] else None
        col_grad = cols.to(grad.dtype) if ctx.needs_input_grad[4] else None
        return gradient.to(ctx.dtype), None, None, row_grad, col_grad, None


def unbalanced_plan(scores, epsilon, iterations, row_mass, col_mass, strength):
    """log plan whose marginals are only drawn towards the masses: the updates are raised to rho / (rho + epsilon)."""
    z = (scores if scores.dtype is torch.float64 else scores.float()) / epsilon
    row_rho, col_rho = strength if isinstance(strength, tuple | list) else (strength, strength)
    masses = [
        z.new_full((z.shape[0], count), 1 / max(count, 1)) if mass is None else mass
        for mass, count in ((row_mass, z.shape[1]), (col_mass, z.shape[2]))
    ]
    log_a, log_b = (m.log() for m in masses)
    row_power, col_power = (rho / (rho + epsilon) for rho in (row_rho, col_rho))
    u = torch.zeros_like(log_a)
    for _ in range(iterations):
        v = col_power * (log_b - torch.logsumexp(z + u[:, :, None], 1))
        u = row_power * (log_a - torch.logsumexp(z + v[:, None, :], 2))
    return z + u[:, :, None] + v[:, None, :]
