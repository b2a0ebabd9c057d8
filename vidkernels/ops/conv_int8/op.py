"""conv_int8: a convolution of bytes, requantised, looked up and pixel-shuffled, the same bits on every machine.

decode_tail: two of them, a decoder's last block and its head. On the CPU what lies between is never in memory as a
whole; the CUDA kernels write and read it.
"""

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


def _tail_shape(x, weight, scale, head_weight, head_scale):
    batch, height, width, _ = x.shape
    factor = scale * head_scale
    return batch, height * factor, width * factor, head_weight.shape[0] // (head_scale * head_scale)


def _fake_tail(x, weight, b, m, s, t, zero_point, scale, head_weight, hb, hm, hs, ht, head_zero_point, head_scale):
    return x.new_empty(_tail_shape(x, weight, scale, head_weight, head_scale))


def _native_tail(kernel, x, *args):
    first, (zero_point, scale) = args[:5], args[5:7]
    head, (head_zero_point, head_scale) = args[7:12], args[12:]
    out = empty(_tail_shape(x, first[0], scale, head[0], head_scale), x.dtype, x.device)
    between = None
    if kernel.__name__.endswith("_cuda"):
        between = empty(_shape(x, first[0], scale), x.dtype, x.device)
    kernel(
        x.contiguous(), *(a.contiguous() for a in (*first, *head)), between, out,
        zero_point, scale, head_zero_point, head_scale,
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

decode_tail = define(
    OpSpec(
        name="decode_tail",
        schema="(Tensor x, Tensor weight, Tensor bias, Tensor multiplier, Tensor shift, Tensor table, "
        "int zero_point, int scale, Tensor head_weight, Tensor head_bias, Tensor head_multiplier, Tensor head_shift, "
        "Tensor head_table, int head_zero_point, int head_scale) -> Tensor",
        reference=reference.decode_tail,
        fake=_fake_tail,
        native=_native_tail,
        batched=("x",),
    )
)
