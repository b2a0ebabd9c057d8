"""conv_int8: a convolution of bytes, requantised, looked up and pixel-shuffled, the same bits on every machine."""

from __future__ import annotations

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.conv_int8 import reference


def _shape(x, weight, scale):
    batch, height, width, _ = x.shape
    return batch, height * scale, width * scale, weight.shape[0] // (scale * scale)


def _fake(x, weight, bias, multiplier, shift, table, zero_point, scale):
    return x.new_empty(_shape(x, weight, scale))


def _native(kernel, x, weight, bias, multiplier, shift, table, zero_point, scale):
    out = empty(_shape(x, weight, scale), x.dtype, x.device)
    kernel(
        x.contiguous(), weight.contiguous(), bias.contiguous(), multiplier.contiguous(), shift.contiguous(),
        table.contiguous(), out, zero_point, scale,
    )  # fmt: skip
    return out


conv_int8 = define(
    OpSpec(
        name="conv_int8",
        schema="(Tensor x, Tensor weight, Tensor bias, Tensor multiplier, Tensor shift, Tensor table, "
        "int zero_point, int scale) -> Tensor",
        reference=reference.conv_int8,
        fake=_fake,
        native=_native,
        batched=("x",),
    )
)
