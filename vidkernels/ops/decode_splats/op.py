"""decode_splats: Gaussians to uint8 pixels by the exact specification; no gradient."""

from __future__ import annotations

import torch

from vidkernels._op import OpSpec, define
from vidkernels._pool import empty
from vidkernels.ops.decode_splats import reference

_RECORD_FLOATS = 16  # kDecodeRecordBytes of decode_splats.h


def _fake(means, cholesky, colors, background, height, width, pixel_center):
    return means.new_empty((height, width, colors.shape[1]), dtype=torch.uint8)


def _native(kernel, means, cholesky, colors, background, height, width, pixel_center):
    out = empty((height, width, colors.shape[1]), torch.uint8, means.device)
    records = None
    if kernel.__name__.endswith("_cuda"):
        records = empty((means.shape[0], _RECORD_FLOATS), torch.float32, means.device)
    kernel(means.contiguous(), cholesky.contiguous(), colors.contiguous(), background.contiguous(), out, records,
           pixel_center)  # fmt: skip
    return out


def _supports(backend, means, cholesky, colors, background, *rest):
    if backend != "reference" and any(x.dtype is not torch.float32 for x in (means, cholesky, colors, background)):
        return "the kernels take float32, in which the specification is written"
    return None


decode_splats = define(
    OpSpec(
        name="decode_splats",
        schema="(Tensor means, Tensor cholesky, Tensor colors, Tensor background, SymInt height, SymInt width, "
        "float pixel_center) -> Tensor",
        reference=reference.decode_splats,
        fake=_fake,
        native=_native,
        supports=_supports,
    )
)
