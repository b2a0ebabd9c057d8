"""fake_quantize_rate for GPUs that the compiled module does not serve.

One program per (piece of a row, row): its numbers as a block, its sums into a table that torch adds up in double.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from vidkernels._pool import empty
from vidkernels.ops._triton.ahead import Variant

BLOCK = 1024


@triton.jit
def _exponential(t):
    """e^t and e^t - 1 of t <= 0; the series where the difference would lose digits."""
    value = tl.exp(t)
    p = t * (1.0 / 5040) + 1.0 / 720
    p = p * t + 1.0 / 120
    p = p * t + 1.0 / 24
    p = p * t + 1.0 / 6
    p = p * t + 0.5
    return value, tl.where(t > -0.35, p * t * t + t, value - 1.0)


@triton.jit
def _log_near_one(u, lost):
    """log(u - lost), where u is rounded and in [1/2, 1]: 2 atanh((u - 1) / (u + 1)), and the rest to first order."""
    s = (u - 1.0) / (u + 1.0)
    z = s * s
    p = z * (2.0 / 13) + 2.0 / 11
    p = p * z + 2.0 / 9
    p = p * z + 2.0 / 7
    p = p * z + 2.0 / 5
    p = p * z + 2.0 / 3
    return (p * z + 2.0) * s - lost / u


@triton.jit
def _quantized(x, step, noise, place, inside, ROUND: tl.constexpr):
    """x in steps before and after the grid, and what lies between."""
    z = tl.div_rn(tl.load(x + place, mask=inside, other=0).to(tl.float32), tl.zeros_like(place).to(tl.float32) + step)
    if ROUND:
        magic: tl.constexpr = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, ties to even
        small = tl.abs(z) < 4194304.0
        near = (tl.where(small, z, 0.0) + magic) - magic
        # Between 2^22 and 2^23 floats have halves left.
        down = tl.floor(z)
        rest = z - down
        odd = down - 2.0 * tl.floor(down * 0.5)
        up = (rest > 0.5) | ((rest == 0.5) & (odd == 1.0))
        q = tl.where(small, near, tl.where(up, down + 1.0, down))
        return z, q, q - z
    else:
        u = tl.load(noise + place, mask=inside, other=0)
        return z, z + u, u


@triton.jit
def fake_quantize_rate_forward_kernel(
    x, step, spread, noise, value, sums, count, ROUND: tl.constexpr, BLOCK: tl.constexpr
):
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = piece * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    place = row * count + i
    width = tl.load(step + row)
    a = 1.0 / tl.load(spread + row)
    _, q, _ = _quantized(x, width, noise, place, inside, ROUND)
    tl.store(value + place, (q * width).to(value.dtype.element_ty), mask=inside)
    m = tl.abs(q)
    _, less_one = _exponential(-a)
    near, near_less_one = _exponential((tl.minimum(m, 0.5) - 0.5) * a)
    far, far_less_one = _exponential((-0.5 - m) * a)
    miss = 0.5 * (near + far)
    almost = 1.0 - miss
    rounded = tl.maximum(almost, 0.5)
    middle = tl.where(
        miss < 0.5,
        -_log_near_one(rounded, (almost - 1.0) + miss),
        -tl.log(tl.maximum(-0.5 * (near_less_one + far_less_one), 1e-37)),
    )
    nats = tl.where(m < 0.5, middle, (m - 0.5) * a - tl.log(-0.5 * less_one))
    tl.store(sums + row * tl.num_programs(1) + piece, tl.sum(tl.where(inside, nats, 0.0), 0))


@triton.jit
def fake_quantize_rate_backward_kernel(
    grad_value, grad_bits, x, step, spread, noise, grad_x, step_sums, rate_sums, count,
    ROUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = piece * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    place = row * count + i
    width = tl.load(step + row)
    a = 1.0 / tl.load(spread + row)
    z, q, moved = _quantized(x, width, noise, place, inside, ROUND)
    m = tl.abs(q)
    tail, tail_less_one = _exponential(-a)
    near, near_less_one = _exponential((tl.minimum(m, 0.5) - 0.5) * a)
    far, far_less_one = _exponential((-0.5 - m) * a)
    halved = -1.0 / tl.minimum(near_less_one + far_less_one, -1e-37)
    in_middle = m < 0.5
    slope = tl.where(in_middle, (near_less_one - far_less_one) * halved, 1.0) * a
    beyond = near * (0.5 - m) + far * (0.5 + m)
    of_rate = tl.where(in_middle, -beyond * halved, m - 0.5 + tail / tail_less_one)
    slope = tl.where(q < 0, -slope, slope) * (tl.load(grad_bits + row) * 1.44269504 / width)
    g = tl.load(grad_value + place, mask=inside, other=0).to(tl.float32)
    tl.store(grad_x + place, (g + slope).to(grad_x.dtype.element_ty), mask=inside)
    at = row * tl.num_programs(1) + piece
    tl.store(step_sums + at, tl.sum(tl.where(inside, g * moved - slope * z, 0.0), 0))
    tl.store(rate_sums + at, tl.sum(tl.where(inside, of_rate, 0.0), 0))


def fake_quantize_rate(x, step, spread, mode, noise):
    value = empty(x.shape, x.dtype, x.device)
    sums = _sums(x)
    if x.numel():
        fake_quantize_rate_forward_kernel[sums.shape](
            x.contiguous(), step.contiguous(), spread.contiguous(), _dense(noise), value, sums, x.shape[1],
            ROUND=mode == "round", BLOCK=BLOCK, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return value, (sums.double().sum(1) / math.log(2)).to(spread.dtype)


def fake_quantize_rate_backward(grad_value, grad_bits, x, step, spread, mode, noise):
    grad_x = empty(x.shape, x.dtype, x.device)
    step_sums, rate_sums = _sums(x), _sums(x)
    if x.numel():
        fake_quantize_rate_backward_kernel[step_sums.shape](
            grad_value.contiguous(), grad_bits.contiguous(), x.contiguous(), step.contiguous(), spread.contiguous(),
            _dense(noise), grad_x, step_sums, rate_sums, x.shape[1],
            ROUND=mode == "round", BLOCK=BLOCK, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    by_rate = rate_sums.double().sum(1) * grad_bits.double() / (-math.log(2) * spread.double().square())
    return grad_x, step_sums.double().sum(1).to(spread.dtype), by_rate.to(spread.dtype)


def _sums(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape[0], triton.cdiv(x.shape[1], BLOCK), dtype=torch.float32, device=x.device)


def _dense(noise: torch.Tensor | None) -> torch.Tensor | None:
    return None if noise is None else noise.contiguous()


def _variant(element: str, mode: str, backward: bool) -> Variant:
    x, row = f"*{element}", "*fp32"
    inputs = {"x": x, "step": row, "spread": row, "noise": row}
    if backward:
        types = {"grad_value": x, "grad_bits": row, **inputs, "grad_x": x, "step_sums": row, "rate_sums": row}
    else:
        types = {**inputs, "value": x, "sums": row}
    kernel = fake_quantize_rate_backward_kernel if backward else fake_quantize_rate_forward_kernel
    name = f"{element}_{mode}_{'backward' if backward else 'forward'}"
    return Variant(name, kernel, {**types, "count": "i64"}, {"ROUND": mode == "round", "BLOCK": BLOCK})


AHEAD = [
    _variant("fp32", "noise", False),
    _variant("fp32", "round", False),
    _variant("fp32", "noise", True),
    _variant("bf16", "round", True),
]
