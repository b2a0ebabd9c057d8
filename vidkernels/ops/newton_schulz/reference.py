"""Plain torch, the oracle."""

from __future__ import annotations

from collections.abc import Sequence

import torch


@torch.no_grad()
def newton_schulz(
    packed: torch.Tensor,
    rows: Sequence[int],
    cols: Sequence[int],
    steps: int,
    coefficients: Sequence[float],
    eps: float,
) -> torch.Tensor:
    a, b, c = coefficients
    wide = packed if packed.dtype is torch.float64 else packed.float()
    out, start = [packed.new_empty(0)], 0
    for m, n in zip(rows, cols, strict=True):
        x = wide[start : start + m * n].view(m, n)
        start += m * n
        x = x / x.double().norm().clamp(min=eps).to(x.dtype)
        for _ in range(steps):
            gram = x @ x.T if m <= n else x.T @ x
            gram = b * gram + c * gram @ gram
            x = a * x + (gram @ x if m <= n else x @ gram)
        out.append(x.flatten().to(packed.dtype))
    return torch.cat(out)
