"""What people run instead of newton_schulz: a loop over the matrices, in bfloat16 as Muon does, or in float32."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch

from vidkernels._case import ROUNDING


def _matrices(packed, rows, cols):
    bounds = pairwise(accumulate((m * n for m, n in zip(rows, cols)), initial=0))
    return [packed[i:j].view(m, n) for (i, j), m, n in zip(bounds, rows, cols)]


def _iterate(x, steps, coefficients, eps):
    a, b, c = coefficients
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    product = torch.addmm if x.dim() == 2 else torch.baddbmm
    for _ in range(steps):
        gram = x @ x.mT
        x = product(x, product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _loop(dtype):
    def make(packed, rows, cols, steps, coefficients, eps):
        matrices = _matrices(packed, rows, cols)

        def run():
            done = [_iterate(x.to(dtype), steps, coefficients, eps) for x in matrices]
            return torch.cat([x.reshape(-1) for x in done]).to(packed.dtype)

        return run

    return make


def _batched(dtype):
    def make(packed, rows, cols, steps, coefficients, eps):
        if len(set(zip(rows, cols))) != 1:
            return None  # a layer of its own shape is a batch of its own
        batch = packed.view(-1, rows[0], cols[0])
        return lambda: _iterate(batch.to(dtype), steps, coefficients, eps).reshape(-1).to(packed.dtype)

    return make


def same(outputs, expected, args) -> str | None:
    """bfloat16 is off by a few per cent of the length; float32 and ours are compared by the tolerance of their type."""
    got, want = (v[0].double() if isinstance(v, tuple | list) else v.double() for v in (outputs, expected))
    error = float((got - want).norm() / want.norm())
    return None if error < 5 * ROUNDING[torch.bfloat16] else f"relative error {error:.1e}"


PEERS = {
    "newton_schulz": {
        "usual": _loop(torch.bfloat16),
        "careful": _loop(torch.float32),
        "one batch, bfloat16": _batched(torch.bfloat16),
        "one batch": _batched(torch.float32),
    }
}
SAME = {"newton_schulz": same}
