"""The specification (docs/exact_decode.md) in torch: elementwise float32, one IEEE operation per line.

Not for speed. Inputs of other floating types are rounded to float32 first, because the bytes are defined by it.
"""

from __future__ import annotations

import math

import torch

ZETA = float.fromhex("0x1.aa5812p-4")
BETA = float.fromhex("-0x1.710d38p-1")
GAMMA = float.fromhex("0x1.ebf8e4p-2")
TAU = float.fromhex("-0x1.33933cp-1")


def decode_splats(
    means: torch.Tensor,
    cholesky: torch.Tensor,
    colors: torch.Tensor,
    background: torch.Tensor,
    height: int,
    width: int,
    pixel_center: float,
) -> torch.Tensor:
    means, cholesky, colors, background = (x.float() for x in (means, cholesky, colors, background))

    def number(x: float) -> torch.Tensor:  # tensors throughout: no scalar is folded into another operation
        return torch.tensor(x, dtype=torch.float32, device=means.device)

    l11, l21, l22 = cholesky.unbind(1)
    u1 = torch.div(number(ZETA), l11)
    u2 = torch.div(number(ZETA), l22)
    lu = torch.mul(l21, u1)
    k = torch.div(lu, l22)
    drawn = torch.cat((means, cholesky[:, ::2], torch.stack((u1, u2, k), 1), colors), 1).isfinite().all(1)

    px = torch.add(torch.arange(width, dtype=torch.float32, device=means.device), number(pixel_center))
    py = torch.add(torch.arange(height, dtype=torch.float32, device=means.device), number(pixel_center))
    acc = background.expand(height, width, -1).clone()
    for i in drawn.nonzero().flatten().tolist():
        rows, cols = _window(means[i], cholesky[i], py, px, pixel_center)
        dx = torch.sub(px[cols], means[i, 0])
        dy = torch.sub(py[rows], means[i, 1])
        z1 = torch.mul(dx, u1[i])
        z1_squared = torch.mul(z1, z1)
        w = torch.add(z1_squared, number(BETA))
        shear = torch.mul(dx, k[i])
        z2 = torch.sub(torch.mul(dy, u2[i])[:, None], shear)
        t = torch.add(torch.mul(z2, z2), w)
        q = torch.add(torch.mul(t, t), number(GAMMA))
        for _ in range(5):
            q = torch.mul(q, q)
        g = torch.where(t <= number(TAU), q, number(0.0))
        acc[rows, cols] = torch.add(acc[rows, cols], torch.mul(g[..., None], colors[i]))

    zero, one = number(0.0), number(1.0)
    acc = torch.where(acc > zero, acc, zero)  # NaN becomes zero
    acc = torch.where(acc < one, acc, one)
    return torch.round(torch.mul(acc, number(255.0))).to(torch.uint8)


def _window(mean, cholesky, py, px, pixel_center) -> tuple[slice, slice]:
    """Rows and columns beyond which t > TAU for certain: a matter of time only, so the bound is a lavish one."""
    x, y = mean.tolist()
    l11, l21, l22 = cholesky.tolist()
    slices = []
    for centres, middle, deviation in ((py, y, math.hypot(l21, l22)), (px, x, abs(l11))):
        reach = 3.4 * deviation + 2 + 1e-4 * abs(middle)
        first = min(max(math.floor(middle - reach - pixel_center), 0), len(centres))
        last = min(max(math.ceil(middle + reach - pixel_center), -1), len(centres) - 1)
        slices.append(slice(first, max(first, last + 1)))
    return slices[0], slices[1]
