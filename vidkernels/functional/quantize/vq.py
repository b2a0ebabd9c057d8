"""Vector quantisation: codes for vectors, the loss that binds them, and the moving average that trains a codebook."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vidkernels import _check
from vidkernels.functional.clustering._collective import ordered_sum
from vidkernels.functional.clustering.nearest import nearest_code
from vidkernels.ops.cluster_sums.op import cluster_sums

__all__ = ["VectorQuantized", "code_sums", "ema_codebook", "perplexity", "straight_through", "vector_quantize"]


class VectorQuantized(NamedTuple):
    """Vectors after quantisation.

    Args:
        quantized: [..., D], the codes in the place of the vectors; its gradient goes to the vectors unchanged.
        index: [...] int64, the number of each code.
        loss: scalar, what to add to the loss of the task.
    Returns: a tuple of the three.
    Example:
        >>> from vidkernels.functional.quantize.vq import vector_quantize
        >>> vector_quantize(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0]])).index
        tensor([1])
    """

    quantized: Tensor
    index: Tensor
    loss: Tensor


def vector_quantize(
    x: Tensor,
    codebook: Tensor,
    *,
    commitment: float = 0.25,
    codebook_loss: float = 0.0,
    backend: str | None = None,
) -> VectorQuantized:
    """Replace every vector by its nearest code, with the straight-through gradient.

    index = argmin_k |x - codebook[k]|^2;  quantized = x + stop(codebook[index] - x)
    loss = commitment * mean((x - stop(codebook[index]))^2) + codebook_loss * mean((stop(x) - codebook[index])^2)
    Convention: of equally near codes the first. For cosine similarity pass vectors and codes of unit length.
    Args:
        x: [..., D], float16/bfloat16/float32/float64. Half precision is compared in float32.
        codebook: [K, D]. Float32 beside half-precision vectors stays float32.
        commitment: weight of the pull of vectors towards their codes.
        codebook_loss: weight of the pull of codes towards their vectors; 0 for codebooks that a moving average trains.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        VectorQuantized(quantized, index, loss): quantized in the dtype of `x`, loss in float32 (float64). `quantized`
        is differentiable in `x` alone, as if it were `x`; loss in both, in the codebook only once.
    Raises:
        ValueError: sizes that do not fit, an empty codebook, NaN in `x` (rows are named on the CPU; on a GPU and in
            compiled code such a row has index -1, the first code and a NaN loss).
    Backends: reference, cpu, cuda (sm80+). Deterministic: yes, forward and backward. Memory O(N D), never N x K.
    Source: van den Oord et al. 2017, arXiv 1711.00937, equations 1 to 3.
    Example:
        >>> x = torch.tensor([[0.9, 0.0]], requires_grad=True)
        >>> quantized, index, loss = vector_quantize(x, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        >>> quantized.sum().backward()
        >>> quantized.tolist(), x.grad.tolist()
        ([[1.0, 0.0]], [[1.0, 1.0]])
    """
    name = "vector_quantize"
    if not isinstance(x, Tensor) or x.dim() == 0 or not x.is_floating_point():
        _check.fail(name, "expected floating-point `x` of shape [..., D].", x=x)
    _check.is_tensor(name, "codebook", codebook, "[K, D]")
    if codebook.shape[1] != x.shape[-1] or codebook.shape[0] == 0:
        _check.fail(name, "expected `codebook` of shape [K, D], K at least 1, D the last axis of `x`.",
                    x=x, codebook=codebook)  # fmt: skip
    dtype = torch.float64 if torch.float64 in (x.dtype, codebook.dtype) else torch.float32
    flat = x.reshape(-1, x.shape[-1]).to(dtype)
    codes = codebook.to(dtype)
    index, distance = nearest_code(flat.detach(), codes.detach(), backend=backend)
    quantized, loss = _Quantize.apply(flat, codes, index, distance, commitment, codebook_loss, backend)
    return VectorQuantized(quantized.to(x.dtype).view(x.shape), index.view(x.shape[:-1]), loss)


class _Quantize(torch.autograd.Function):
    """Codes and loss; one subtraction serves both gradients, and codes are summed in a fixed order."""

    @staticmethod
    def forward(ctx, x, codes, index, distance, commitment, codebook_loss, backend):
        quantized = codes.index_select(0, index.clamp(min=0))
        mean = ordered_sum(distance) / max(x.numel(), 1)
        ctx.save_for_backward(x, quantized, index)
        ctx.pulls = 2 * commitment / max(x.numel(), 1), 2 * codebook_loss / max(x.numel(), 1)
        ctx.size, ctx.backend = codes.shape[0], backend
        return quantized, ((commitment + codebook_loss) * mean).to(x.dtype)

    @staticmethod
    def backward(ctx, grad_quantized, grad_loss):
        x, quantized, index = ctx.saved_tensors
        to_x, to_codes = ctx.pulls
        grad_x = grad_codes = None
        apart = x - quantized.detach()  # saved outputs have a history, codes count as constants
        if ctx.needs_input_grad[1]:
            if torch.is_grad_enabled():
                raise RuntimeError("vector_quantize: no second derivatives with a codebook that needs a gradient.")
            grad_codes = cluster_sums(apart, index, ctx.size, backend=ctx.backend)[0] * (-to_codes * grad_loss)
        if ctx.needs_input_grad[0]:
            grad_x = apart.mul_(to_x * grad_loss).add_(grad_quantized)
        return grad_x, grad_codes, None, None, None, None, None


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """The value itself, with the gradient of `x`: what rounding needs to be trained through.

    Args:
        x: any shape.
        value: the same shape and dtype.
    Returns:
        out: `value`, bit for bit. Its gradient goes to `x` unchanged, and none to `value`.
    Raises:
        ValueError: different shapes.
    Backends: torch alone. Deterministic: yes.
    Source: Bengio et al. 2013, arXiv 1308.3432; differs: x + stop(value - x) rounds, this does not.
    Example:
        >>> x = torch.tensor([0.4], requires_grad=True)
        >>> straight_through(x, x.round()).backward()
        >>> x.grad
        tensor([1.])
    """
    if x.shape != value.shape:
        _check.fail("straight_through", "expected `value` of the shape of `x`.", x=x, value=value)
    return _StraightThrough.apply(x, value)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, value):
        return value.detach().clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def code_sums(x: Tensor, index: Tensor, codes: int, *, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Sum the vectors of each code, and count them: what a codebook learns from.

    Args:
        x: [N, D], float16/bfloat16/float32/float64.
        index: [N] int64, the code of each vector; -1 leaves one out.
        codes: K.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        (sums [K, D], counts [K]), float32 (float64). Sums are differentiable in `x`.
    Raises:
        ValueError: sizes that do not fit.
    Backends: reference, cpu, cuda (sm80+). Deterministic: yes, for any number of threads.
    Source: van den Oord et al. 2017, arXiv 1711.00937, appendix A.1.
    Example:
        >>> code_sums(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1, 1, 0]), 3)
        (tensor([[4.],
                [3.],
                [0.]]), tensor([1., 2., 0.]))
    """
    _check.is_tensor("code_sums", "x", x, "[N, D]")
    if index.shape != x.shape[:1]:
        _check.fail("code_sums", "expected `index` of shape [N], as `x`.", x=x, index=index)
    return cluster_sums(x, index, codes, backend=backend)


def ema_codebook(
    ema_counts: Tensor, ema_sums: Tensor, counts: Tensor, sums: Tensor, *, decay: float = 0.99, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Move a codebook towards the means of the vectors that chose each code.

    ema = decay * ema + (1 - decay) * new, for counts and sums;  total = sum of ema_counts
    codebook[k] = ema_sums[k] / ((ema_counts[k] + eps) / (total + K eps) * total)
    Args:
        ema_counts: [K], moving average of the vectors per code.
        ema_sums: [K, D], moving average of their sums.
        counts: [K], vectors of this batch per code.
        sums: [K, D], their sums.
        decay: 0.8 to 0.99.
        eps: Laplace smoothing, so that a code without vectors does not divide by zero.
    Returns:
        (codebook [K, D], ema_counts [K], ema_sums [K, D]), new tensors. Differentiable as plain torch is.
    Raises:
        ValueError: a decay outside [0, 1].
    Backends: torch alone. Deterministic: yes.
    Source: van den Oord et al. 2017, arXiv 1711.00937, appendix A.1; Razavi et al. 2019, arXiv 1906.00446 (smoothing).
    Example:
        >>> one = torch.ones(1)
        >>> ema_codebook(one, one[None], 3 * one, 6 * one[None], decay=0.5, eps=0.0)[0]
        tensor([[1.7500]])
    """
    if not 0 <= decay <= 1:
        _check.fail("ema_codebook", "expected `decay` in [0, 1].", decay=decay)
    ema_counts = decay * ema_counts + (1 - decay) * counts
    ema_sums = decay * ema_sums + (1 - decay) * sums
    total = ema_counts.sum()
    smooth = (ema_counts + eps) / (total + len(ema_counts) * eps) * total
    return ema_sums / smooth[:, None], ema_counts, ema_sums


def perplexity(index: Tensor, codes: int) -> Tensor:
    """How many codes are in use: exp of the entropy of the code frequencies, 1 to K.

    Args:
        index: any shape, int64 in [0, K); -1 is left out.
        codes: K.
    Returns:
        perplexity: scalar float32; 1 for an empty index. Not differentiable.
    Raises:
        ValueError: an index that is not int64.
    Backends: torch alone. Deterministic: yes.
    Source: van den Oord et al. 2017, arXiv 1711.00937.
    Example:
        >>> perplexity(torch.tensor([0, 3, 0, 3]), 8)
        tensor(2.)
    """
    if index.dtype is not torch.int64:
        _check.fail("perplexity", "expected int64 `index`.", index=index)
    place = index.flatten() + 1
    counts = torch.zeros(codes + 1, dtype=torch.int64, device=index.device)
    counts = counts.scatter_add(0, place, torch.ones_like(place))[1:]
    share = counts / counts.sum().clamp(min=1)
    return torch.special.entr(share).sum().exp()
