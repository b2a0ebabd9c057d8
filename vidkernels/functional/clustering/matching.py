"""Exact one-to-one matching."""

from __future__ import annotations

import torch

from vidkernels import _check

__all__ = ["linear_assignment"]


def linear_assignment(cost: torch.Tensor, maximize: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Match rows with columns one to one at the least total cost (the Hungarian problem), problem by problem.

    minimise sum_k cost[b, row[b, k], column[b, k]]
    Convention: min(n, m) pairs, rows ascending.
    Args:
        cost: [n, m] or [B, n, m], any real dtype; +inf (-inf if maximising) forbids a pair.
        maximize: look for the largest total instead.
    Returns:
        row: [min(n, m)] or [B, min(n, m)] int64, on the device of `cost`. Not differentiable.
        column: the same shape.
    Raises:
        ValueError: NaN in `cost` (the row is named), no matching without forbidden pairs.
        ImportError: scipy is not installed.
    Backends: scipy on the CPU; tensors elsewhere are copied there and back. Deterministic: yes.
    Source: Crouse 2016, "On implementing 2D rectangular assignment algorithms" (scipy.optimize.linear_sum_assignment).
    Example:
        >>> linear_assignment(torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0]]))
        (tensor([0, 1]), tensor([1, 0]))
    """
    name = "linear_assignment"
    if not isinstance(cost, torch.Tensor) or cost.dim() not in (2, 3):
        if isinstance(cost, torch.Tensor):
            _check.fail(name, "expected `cost` of shape [n, m] or [B, n, m].", cost=cost)
        _check.is_tensor(name, "cost", cost, "[B, n, m]")
    if cost.is_complex():
        _check.fail(name, "expected `cost` to be real.", cost=cost)
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("linear_assignment needs scipy: pip install scipy") from error
    batched = cost.detach() if cost.dim() == 3 else cost.detach()[None]
    nan = batched.isnan().any(2).nonzero()
    if len(nan):
        _check.fail(name, f"`cost`{nan[0, 3 - cost.dim() :].tolist()} holds NaN.", cost=cost)
    problems = batched.cpu().double().numpy()
    pairs = torch.empty(2, batched.shape[0], min(batched.shape[1:]), dtype=torch.long)
    for b, problem in enumerate(problems):
        try:
            row, column = linear_sum_assignment(problem, maximize=maximize)
        except ValueError as error:
            _check.fail(name, f"problem {b} has no matching: {error}.", "forbid fewer pairs", cost=cost)
        pairs[0, b], pairs[1, b] = torch.from_numpy(row), torch.from_numpy(column)
    row, column = pairs.to(cost.device)
    return (row, column) if cost.dim() == 3 else (row[0], column[0])
