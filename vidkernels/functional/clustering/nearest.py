"""The nearest codes of a set of points: what vector quantisation, k-means and token merging are made of."""

from __future__ import annotations

import torch

from vidkernels import _check
from vidkernels._op import peek_interpreter_stack
from vidkernels.ops.nearest.op import CANDIDATES, METRICS, MOST
from vidkernels.ops.nearest.op import nearest as _nearest

__all__ = ["nearest", "nearest_code"]


def nearest(
    points: torch.Tensor,
    codes: torch.Tensor,
    *,
    k: int = 1,
    metric: str = "l2",
    candidates: str = "all",
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best codes of every point, without a matrix of all similarities.

    value[b, n, :] = the k smallest |points[b, n] - codes[b, j]|^2 over j     ("l2", ascending)
                     the k largest <points[b, n], codes[b, j]>                ("ip", descending)
                     the same of the rows divided by their lengths            ("cosine", descending)
    A coarse look with bfloat16 products, where the processor has them, finds the codes that may be among the k best;
    these are measured in float32. The bound on the coarse error is safe, so the result is that of float32.
    Convention: of equal values the lower index comes first. A zero row has cosine 0 with everything. A row with NaN
        gets index -1 and value NaN, a code with NaN is never chosen; where fewer than k candidates exist, index is -1
        and value is +inf ("l2") or -inf.
    Args:
        points: [N, D] or [B, N, D], float16/bfloat16/float32/float64. Rows may be strided.
        codes: [K, D], [1, K, D] or [B, K, D].
        k: 1 to 32.
        metric: "l2" | "ip" | "cosine".
        candidates: "all"; "others", all j but the point's own n; "before", all j < n (both need K == N).
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        index: [N, k] or [B, N, k] int64. Not differentiable.
        value: the same shape, float32 (float64 for float64 inputs), summed in one order. Differentiable in `points`
            and `codes` for the chosen index.
    Raises:
        ValueError: sizes that do not fit; k or a word out of range; rows with NaN (named; eager CPU calls only,
            because looking would stall a GPU's stream and cannot be compiled).
    Backends: reference, cpu, cuda (sm80+). Deterministic: forward yes, for any number of threads; backward yes on the
        CPU, on CUDA as torch's index_add.
    Source: Johnson, Douze, Jegou 2017, arXiv 1702.08734 (k-selection fused with the product); differs: the screen
        with an error bound, and exact values.
    Example:
        >>> index, value = nearest(torch.tensor([[0.0, 0.0], [4.0, 3.0]]), torch.tensor([[5.0, 3.0], [0.0, 1.0]]))
        >>> index.tolist(), value.tolist()
        ([[1], [0]], [[1.0], [1.0]])
    """
    _tensors("nearest", points, codes)
    arguments = {"points": points, "codes": codes, "k": k, "metric": metric, "candidates": candidates}
    if metric not in METRICS:
        _check.fail("nearest", f"expected `metric` to be one of {', '.join(METRICS)}.", **arguments)
    if candidates not in CANDIDATES:
        _check.fail("nearest", f"expected `candidates` to be one of {', '.join(CANDIDATES)}.", **arguments)
    if not 1 <= k <= MOST:
        _check.fail("nearest", f"expected `k` between 1 and {MOST}.", **arguments)
    x = points if points.dim() == 3 else points[None]
    c = codes if codes.dim() == 3 else codes[None]
    if x.dim() != 3 or c.dim() != 3 or x.shape[2] != c.shape[2] or c.shape[0] not in (1, x.shape[0]):
        _check.fail("nearest", "expected `points` [N, D] or [B, N, D] and `codes` [K, D], [1, K, D] or [B, K, D].",
                    **arguments)  # fmt: skip
    if candidates != "all" and c.shape[1] != x.shape[1]:
        _check.fail("nearest", f"candidates={candidates!r} needs as many codes as points.", **arguments)
    index, value = _nearest(x, c, k, metric, candidates, True, backend=backend)
    if points.dim() == 2:
        index, value = index[0], value[0]
    _refuse_nan("nearest", value.detach()[..., 0], points)
    return index, value


def nearest_code(
    x: torch.Tensor, codebook: torch.Tensor, *, metric: str = "l2", backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest entry of a codebook for every vector: vector quantisation, or the assignment step of k-means.

    index[n] = argmin_j |x[n] - codebook[j]|^2, distance[n] = that minimum   ("l2")
    Convention: of equally near codes the lower index. For "ip" and "cosine" the largest similarity instead.
    Args:
        x: [..., D], float16/bfloat16/float32/float64.
        codebook: [K, D], K >= 1.
        metric: "l2" | "ip" | "cosine".
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        index: [...] int64. Not differentiable.
        distance: [...] float32 (float64 for float64), the squared distance, or the similarity. Differentiable.
    Raises:
        ValueError: sizes that do not fit, an empty codebook, rows with NaN (see `nearest`).
    Backends: reference, cpu, cuda (sm80+). Deterministic: as `nearest`.
    Source: van den Oord et al. 2017, arXiv 1711.00937, equation 1.
    Example:
        >>> nearest_code(torch.tensor([[0.2], [0.9], [2.0]]), torch.tensor([[0.0], [1.0]]))[0]
        tensor([0, 1, 1])
    """
    if not isinstance(codebook, torch.Tensor) or codebook.dim() != 2:
        _check.is_tensor("nearest_code", "codebook", codebook, "[K, D]")
    if not isinstance(x, torch.Tensor) or x.dim() == 0 or x.shape[-1] != codebook.shape[1]:
        _check.fail("nearest_code", "expected `x` of shape [..., D] with the D of the codebook.", x=x,
                    codebook=codebook)  # fmt: skip
    if codebook.shape[0] == 0:
        _check.fail("nearest_code", "the codebook is empty.", x=x, codebook=codebook)
    if metric not in METRICS:
        _check.fail("nearest_code", f"expected `metric` to be one of {', '.join(METRICS)}.", metric=metric)
    rows = x.reshape(1, -1, x.shape[-1])
    index, value = _nearest(rows, codebook[None], 1, metric, "all", True, backend=backend)
    index, value = index.view(x.shape[:-1]), value.view(x.shape[:-1])
    _refuse_nan("nearest_code", value.detach(), x)
    return index, value


def _tensors(name: str, points: object, codes: object) -> None:
    for label, tensor in (("points", points), ("codes", codes)):
        if not isinstance(tensor, torch.Tensor):
            _check.is_tensor(name, label, tensor, "[N, D]")


def _refuse_nan(name: str, first: torch.Tensor, points: torch.Tensor) -> None:
    """Name the rows with NaN, where looking is free: not on a GPU, not in compiled or transformed code."""
    if torch.compiler.is_compiling() or type(first) is not torch.Tensor or not first.is_cpu:
        return
    if peek_interpreter_stack() is not None or not bool(first.isnan().any()):
        return
    rows = [tuple(r) if len(r) > 1 else r[0] for r in first.isnan().nonzero().tolist()]
    shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    _check.fail(name, f"rows with NaN: {shown}.", points=points)
