"""What a call costs before any work is done: a tiny op through every road, against plain torch."""

from __future__ import annotations

import torch

from benchmarks.timing import interleave
from vidkernels import functional
from vidkernels.ops.gather_tokens.op import gather_tokens


@torch.library.custom_op("vidkernels_benchmark::gather", mutates_args=())
def _custom_gather(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return torch.gather(tokens, 1, index)


@_custom_gather.register_fake
def _(tokens, index):
    return torch.empty_like(index, dtype=tokens.dtype)


def _save(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])
    ctx.shape = inputs[0].shape


def _scatter(ctx, grad):
    (index,) = ctx.saved_tensors
    return grad.new_zeros(ctx.shape).scatter_add_(1, index, grad), None


_custom_gather.register_autograd(_scatter, setup_context=_save)


def measure(seconds: float = 3.0) -> list[dict]:
    """Microseconds per call on a [1, 4, 4] tensor: without grad, with grad recorded, and forward + backward."""
    tokens, index = torch.randn(1, 4, 4), torch.tensor([[2, 0]], dtype=torch.int32)
    wide = index.long()[..., None].expand(-1, -1, 4).contiguous()
    calls = {
        "vidkernels op `gather_tokens`": lambda x: gather_tokens(x, index),
        "`vk.functional.gather_tokens`": lambda x: functional.gather_tokens(x, index),
        "`torch.add`": lambda x: torch.add(x, x),
        "`torch.gather`": lambda x: torch.gather(x, 1, wide),
        "`torch.library.custom_op`": lambda x: _custom_gather(x, wide),
    }
    leaf = tokens.clone().requires_grad_()
    cotangents = {label: torch.ones_like(call(tokens)) for label, call in calls.items()}
    modes = {
        "no_grad_us": {k: lambda f=f: f(tokens) for k, f in calls.items()},
        "grad_us": {k: lambda f=f: f(leaf) for k, f in calls.items()},
        "forward_backward_us": {
            k: lambda f=f, c=cotangents[k]: torch.autograd.grad(f(leaf), leaf, c) for k, f in calls.items()
        },
    }
    rows = [{"label": label} for label in calls]
    for mode, functions in modes.items():
        timed = interleave(functions, seconds=seconds / len(modes))
        for row in rows:
            row[mode] = 1e3 * timed[row["label"]]["median_ms"]
    return rows
