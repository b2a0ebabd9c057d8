"""Steps of optimisers over many parameters at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from vidkernels import _check
from vidkernels.ops.adam_step.many import adam_step_many
from vidkernels.ops.newton_schulz.muon import muon_step
from vidkernels.ops.newton_schulz.op import newton_schulz as _newton_schulz

__all__ = ["multi_tensor_adam", "newton_schulz"]

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Jordan's coefficients: steep at 0, and no longer to exactly 1."""

AdamSettings = tuple[float, float, float, float, float, bool, int]
"""lr, beta1, beta2, eps, weight decay, whether it is decoupled (AdamW), number of the step from 1."""

MuonSettings = tuple[float, bool, float, float]
"""mu, whether nesterov, and what the parameter and its direction are multiplied by."""


def multi_tensor_adam(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    settings: Sequence[AdamSettings],
    *,
    backend: str | None = None,
) -> None:
    """One step of Adam or AdamW for many tensors, each with settings of its own, in one native call.

    The formula is that of `functional.adam_step`.
    Convention: the four tensors of a row have one shape; any dense memory order will do (channels_last does not cost a
        copy where all four have it).
    Args:
        params: float32 (other floating types go to the reference, one by one); changed in place.
        grads: their gradients.
        exp_avgs: first moments, changed in place.
        exp_avg_sqs: second moments, changed in place.
        settings: (lr, beta1, beta2, eps, weight_decay, decoupled, step) of each; steps count from 1.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        None. Not differentiable: it moves leaves, outside autograd.
    Raises:
        ValueError: lists of different lengths, shapes that do not fit, tensors that overlap in memory.
    Backends: reference, cpu, cuda (sm80+). Deterministic: yes, the bits of a step of `functional.adam_step`.
    Source: Kingma, Ba 2014, arXiv 1412.6980, algorithm 1; Loshchilov, Hutter 2017, arXiv 1711.05101, algorithm 2.
    Example:
        >>> params, grads = [torch.zeros(2), torch.zeros(3)], [torch.ones(2), -torch.ones(3)]
        >>> moments = [[torch.zeros(2), torch.zeros(3)] for _ in range(2)]
        >>> multi_tensor_adam(params, grads, *moments, [(0.5, 0.9, 0.99, 1e-8, 0.0, False, 1)] * 2)
        >>> params
        [tensor([-0.5000, -0.5000]), tensor([0.5000, 0.5000, 0.5000])]
    """
    columns = [list(column) for column in (params, grads, exp_avgs, exp_avg_sqs, settings)]
    if len({len(column) for column in columns}) > 1:
        _check.fail(
            "multi_tensor_adam", "expected lists of one length.",
            params=len(columns[0]), grads=len(columns[1]), exp_avgs=len(columns[2]), exp_avg_sqs=len(columns[3]),
            settings=len(columns[4]),
        )  # fmt: skip
    for param, grad, mean, square in zip(*columns[:4]):
        if not param.shape == grad.shape == mean.shape == square.shape:
            _check.fail(
                "multi_tensor_adam", "expected a parameter, its gradient and its moments of one shape.",
                param=param, grad=grad, exp_avg=mean, exp_avg_sq=square,
            )  # fmt: skip
    adam_step_many(*columns, backend=backend)


def newton_schulz(
    matrices: Tensor | Sequence[Tensor],
    *,
    steps: int = 5,
    coefficients: tuple[float, float, float] = QUINTIC,
    eps: float = 1e-7,
    backend: str | None = None,
) -> Tensor | list[Tensor]:
    """Matrices with their singular values brought to about 1 and their singular vectors kept, all in one call.

    X = X / max(|X|, eps);  steps times:  A = X X^T,  X = a X + (b A + c A^2) X          (|X|: Frobenius)
    Convention: the last two axes are a matrix. Its shape decides nothing but the order of the products.
    Args:
        matrices: [..., M, N], or a list of matrices [M, N] of any shapes, one dtype and device;
            float16/bfloat16/float32/float64. Half precision is computed in float32.
        steps: 5 for Muon.
        coefficients: a, b, c; Muon's bring singular values from 0.002 or so of the length to within 0.3 of 1.
        eps: least length to divide by.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        X: like `matrices`. Not differentiable.
    Raises:
        ValueError: tensors that are no matrices, different dtypes or devices, steps below 1.
    Backends: reference, cpu, cuda (sm80+). float64 runs on the reference. Deterministic: yes. The kernels iterate on
        the Gram matrix of the shorter side in float32: relative errors about 1e-6 for wide matrices, 1e-5 for square
        ones, 1e-3 along singular values below 1e-3 of the length (the usual bfloat16: 0.03 to 0.9).
    Source: Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein 2024, "Muon: an optimizer for hidden layers in neural
        networks"; Bernstein, Newhouse 2024, arXiv 2409.20325; differs: float32, and the Gram matrix.
    Example:
        >>> x = newton_schulz(torch.diag(torch.tensor([3.0, 1.0])))
        >>> bool((torch.linalg.svdvals(x) - 1).abs().max() < 0.35)
        True
    """
    name = "newton_schulz"
    one = isinstance(matrices, Tensor)
    listed = list(matrices.flatten(0, -3)) if one and matrices.dim() > 2 else [matrices] if one else list(matrices)
    if not listed:
        return matrices.clone() if one else []
    first = listed[0]
    for x in listed:
        if x.dim() != 2 or not x.is_floating_point() or x.dtype is not first.dtype or x.device != first.device:
            _check.fail(name, "expected matrices [M, N] of one floating dtype on one device.", first=first, matrix=x)
    if steps < 1 or eps <= 0:
        _check.fail(name, "expected `steps` of 1 or more and a positive `eps`.", steps=steps, eps=eps)
    packed = listed[0].reshape(-1) if len(listed) == 1 else torch.cat([x.reshape(-1) for x in listed])
    rows, cols = [x.shape[0] for x in listed], [x.shape[1] for x in listed]
    coefficients = [float(v) for v in coefficients]
    out = _newton_schulz(packed.detach(), rows, cols, int(steps), coefficients, float(eps), backend=backend)
    if one:
        return out.view(matrices.shape)
    bounds = pairwise(accumulate((x.numel() for x in listed), initial=0))
    return [out[i:j].view(x.shape) for (i, j), x in zip(bounds, listed)]


def multi_tensor_muon(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    settings: Sequence[MuonSettings],
    *,
    steps: int = 5,
    coefficients: tuple[float, float, float] = QUINTIC,
    eps: float = 1e-7,
    backend: str | None = None,
) -> None:
    """One step of Muon for many tensors, each a matrix [M, rest], in one native call on the CPU.

    momentum += (1 - mu) (grad - momentum);  update = grad + mu (momentum - grad) (nesterov) or momentum
    param = keep param + rate newton_schulz(update)
    Convention: the first axis has the rows.
    Args:
        params: two axes or more, floating point; changed in place.
        grads: their gradients.
        momenta: changed in place.
        settings: (mu, nesterov, keep, rate) of each; keep = 1 - lr weight_decay, rate = -lr times what suits the shape.
        steps: of the iteration, as in `newton_schulz`; so are coefficients and eps.
        coefficients: a, b, c.
        eps: least length of an update.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        None. Not differentiable: it moves leaves, outside autograd.
    Raises:
        ValueError: lists of different lengths, shapes that do not fit, tensors that overlap in memory.
    Backends: cpu in one call for contiguous float32; else torch around `newton_schulz`. Deterministic: yes.
    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    Example:
        >>> params, grads, momenta = [torch.eye(2)], [torch.eye(2)], [torch.zeros(2, 2)]
        >>> multi_tensor_muon(params, grads, momenta, [(0.95, True, 1.0, -0.5)])
        >>> bool((params[0].diagonal() - 0.5).abs().max() < 0.2)
        True
    """
    name = "multi_tensor_muon"
    columns = [list(column) for column in (params, grads, momenta, settings)]
    if len({len(column) for column in columns}) > 1:
        _check.fail(
            name, "expected lists of one length.", params=len(columns[0]), grads=len(columns[1]),
            momenta=len(columns[2]), settings=len(columns[3]),
        )  # fmt: skip
    for param, grad, momentum in zip(*columns[:3]):
        if param.dim() < 2 or not param.shape == grad.shape == momentum.shape:
            _check.fail(
                name, "expected a parameter of two axes or more, its gradient and its momentum of one shape.",
                param=param, grad=grad, momentum=momentum,
            )  # fmt: skip
    if steps < 1 or eps <= 0:
        _check.fail(name, "expected `steps` of 1 or more and a positive `eps`.", steps=steps, eps=eps)
    muon_step(*columns, int(steps), [float(v) for v in coefficients], float(eps), backend)
