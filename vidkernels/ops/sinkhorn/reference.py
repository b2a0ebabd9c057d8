"""Plain torch in the log domain, the oracle; and the gradient of the iteration, from its potentials."""

from __future__ import annotations

import torch


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype is torch.float64 else x.float()


def _log_mass(mass: torch.Tensor | None, like: torch.Tensor, count: int) -> torch.Tensor:
    if mass is None:
        return like.new_full((like.shape[0], count), 1.0 / max(count, 1)).log()
    return mass.to(like.dtype).log()


def _scale(log_mass: torch.Tensor, log_sum: torch.Tensor) -> torch.Tensor:
    """log of mass / sum; nothing goes where nothing can be reached."""
    return torch.where(log_sum == -torch.inf, log_sum, log_mass - log_sum)


def potentials(scores, epsilon, iterations, row_mass, col_mass):
    """z, and per iteration log v, log u and the row sums' logarithm without u, each with the iteration second."""
    z = _wide(scores) / epsilon
    log_a, log_b = _log_mass(row_mass, z, z.shape[1]), _log_mass(col_mass, z, z.shape[2])
    u, columns, rows = log_a, [], []
    lse = u
    for _ in range(iterations):
        v = _scale(log_b, torch.logsumexp(z + u[:, :, None], 1))
        lse = torch.logsumexp(z + v[:, None, :], 2)
        u = _scale(log_a, lse)
        columns.append(v)
        rows.append(u)
    return z, torch.stack(rows, 1), torch.stack(columns, 1), lse


def sinkhorn(scores, epsilon, iterations, row_mass, col_mass, rows_to_one):
    z, rows, columns, lse = potentials(scores, epsilon, iterations, row_mass, col_mass)
    shift = _scale(torch.zeros_like(lse), lse) if rows_to_one else rows[:, -1]
    return (z + columns[:, -1, None, :] + shift[:, :, None]).exp(), rows, columns


def sinkhorn_scales(scores, epsilon, iterations, row_mass, col_mass):
    z, rows, columns, _ = potentials(scores, epsilon, iterations, row_mass, col_mass)
    x = z + columns[:, -1, None, :]
    label = x.argmax(2) if x.shape[2] else x.new_zeros(x.shape[:2], dtype=torch.long)
    return rows[:, -1], columns[:, -1], label


def sinkhorn_step(scores, epsilon, row_mass, col_log):
    z = _wide(scores) / epsilon
    log_a = torch.zeros_like(z[:, :, 0]) if row_mass is None else row_mass.to(z.dtype).log()
    if col_log is None:
        return z.amax(2), torch.logsumexp(z + log_a[:, :, None], 1), z.argmax(2)
    x = z + col_log.to(z.dtype)[:, None, :]
    lse = torch.logsumexp(x, 2)
    return lse, torch.logsumexp(x + _scale(log_a, lse)[:, :, None], 1), x.argmax(2)


def sinkhorn_backward(grad_plan, grad_rows, grad_cols, scores, epsilon, row_mass, col_mass, rows_to_one, rows, cols):
    """Gradients of scores, row mass and column mass. The iterations are walked back from their potentials.

    Each of them is a softmax over columns and one over rows, so its two matrices are made again from log u and log v.
    """
    z = _wide(scores) / epsilon
    log_a, log_b = _log_mass(row_mass, z, z.shape[1]), _log_mass(col_mass, z, z.shape[2])
    gone_rows, gone_cols = log_a == -torch.inf, log_b == -torch.inf
    rows, cols = rows.to(z.dtype), cols.to(z.dtype)
    d_rows, d_cols = list(grad_rows.to(z.dtype).unbind(1)), list(grad_cols.to(z.dtype).unbind(1))

    def over_columns(t):  # a row of the plan divided by its mass
        return torch.softmax(z + cols[:, t, None, :], 2).nan_to_num(0.0)

    g = over_columns(-1) * grad_plan.to(z.dtype)
    if not rows_to_one:
        g = g * log_a.exp()[:, :, None]
        d_rows[-1] = d_rows[-1] + g.sum(2)
    own = g.sum(2)  # of -log of the last row sums, which scale the rows where they are to be one
    d_cols[-1] = d_cols[-1] + g.sum(1)
    d_log_a, d_log_b = torch.zeros_like(log_a), torch.zeros_like(log_b)
    last = rows.shape[1] - 1
    for t in range(last, -1, -1):
        d_row = d_rows[t].masked_fill(gone_rows, 0.0)
        d_log_a = d_log_a + d_row
        share = over_columns(t) * (d_row + own if t == last and rows_to_one else d_row)[:, :, None]
        g = g - share
        d_col = (d_cols[t] - share.sum(1)).masked_fill(gone_cols, 0.0)
        d_log_b = d_log_b + d_col
        before = rows[:, t - 1] if t else log_a
        share = torch.softmax(z + before[:, :, None], 1).nan_to_num(0.0) * d_col[:, None, :]
        g = g - share
        if t:
            d_rows[t - 1] = d_rows[t - 1] - share.sum(2)
        else:
            d_log_a = d_log_a - share.sum(2)
    grad_a = None if row_mass is None else (d_log_a / row_mass).masked_fill(gone_rows, 0.0).to(row_mass.dtype)
    grad_b = None if col_mass is None else (d_log_b / col_mass).masked_fill(gone_cols, 0.0).to(col_mass.dtype)
    return (g / epsilon).to(scores.dtype), grad_a, grad_b
