"""Named inputs of splat_sum and its backward."""

from __future__ import annotations

import math

import torch

from vidkernels._case import Case
from vidkernels.ops._scenes import conic_of, scene, unsettled

_ALL = ("means", "shapes", "colors", "opacities", "background")
_TYPES = (torch.float32, torch.float64)
# The gates of the op: 1e-5 of the largest value forward, 1e-4 for gradients.
_IMAGE = {torch.float64: 1e-12, torch.float32: 1e-5}
_GRADIENT = {torch.float64: 1e-12, torch.float32: 1e-4}


def settle(means, shapes, opacities, height, width, form):
    """The shapes, a little larger where a weight would sit on 1/255: in float32 it could fall on either side."""
    for _ in range(20):
        conics = shapes.double() if form == "conic" else conic_of(shapes.double())
        weights = torch.ones(len(means)).double() if opacities is None else opacities.double()
        bad = unsettled(means.double(), conics, weights, height, width, 0.5, 1 / 255)
        if not bool(bad.any()):
            return shapes
        shapes = torch.where(bad[:, None], shapes * (1 - 1e-3 if form == "conic" else 1 + 1e-3), shapes)
    raise RuntimeError("settle: some pixels stay on the threshold")


def _args(count, height, width, channels, *, form="cholesky", opacity=True, background=True, offsets=None, cover=0.7):
    def args(g, dtype):
        means, shapes, colors = scene(g, count, height, width, channels, cover)
        shapes = conic_of(shapes) if form == "conic" else shapes
        means, shapes, colors = means.to(dtype), shapes.to(dtype), 0.2 * colors
        opacities = (torch.rand(count, generator=g).double() * 0.9 + 0.1).to(dtype) if opacity else None
        shapes = settle(means, shapes, opacities, height, width, form)
        back = torch.rand(1 if offsets is None else len(offsets) - 1, channels, generator=g).to(dtype)
        return (means, shapes, colors.to(dtype), opacities, back if background else None,
                None if offsets is None else torch.tensor(offsets), height, width, 0.5, form)  # fmt: skip

    return args


def _strided(g, dtype):
    means, shapes, colors, *rest = _args(9, 13, 11, 3)(g, dtype)
    wide = torch.cat([means, shapes], 1)
    return wide[:, :2], wide[:, 2:], colors.t().contiguous().t(), *rest


def _extreme(g, dtype):
    """Huge, far, thin, tiny, degenerate and non-finite ones, and opacities below any support."""
    inf, nan = math.inf, math.nan
    means = torch.tensor([[8.3, 8.1], [-40, 3], [1e7, 1e7], [5.2, 5.4], [9.1, 2.2], [nan, 1], [inf, 2], [3, 3], [4, 4],
                          [6.7, 7.1], [7.6, 3.3], [2.2, 9.4]])  # fmt: skip
    shapes = torch.tensor([[300.0, 10, 200], [30, 0, 30], [1, 0, 1], [0.05, 0, 0.05], [6, 4.5, 0.9], [1, 0, 1],
                           [1, 0, 1], [0, 0, 0], [nan, 0, 1], [2, 1, 2], [-2, 1, 2], [0.8, 3, 0.9]])  # fmt: skip
    opacities = torch.tensor([0.9, 0.5, 1, 1, 0.7, 1, 1, 1, 1, 0.001, 0.6, 0.8])
    colors = torch.rand(12, 3, generator=g)
    return (means.to(dtype), shapes.to(dtype), colors.to(dtype), opacities.to(dtype), None, None, 19, 23, 0.5,
            "cholesky")  # fmt: skip


def _with_grad(make):
    def args(g, dtype):
        inputs = make(g, dtype)
        images = 1 if inputs[5] is None else inputs[5].shape[0] - 1
        size = (images, inputs[6], inputs[7], inputs[2].shape[1])
        return torch.randn(size, generator=g, dtype=torch.float64).to(dtype), *inputs

    return args


def _bytes(means, shapes, colors, opacities, background, offsets, height, width, *rest):
    read = sum(t.numel() * t.element_size() for t in (means, shapes, colors, opacities, background) if t is not None)
    images = 1 if offsets is None else offsets.shape[0] - 1
    return read, images * height * width * colors.shape[1] * means.element_size()


def _bytes_backward(grad_image, *inputs):
    parameters, image = _bytes(*inputs)
    return parameters + image, parameters


_MAKE = {
    "tiny": (_args(4, 7, 6, 2), _ALL),
    "tiny_conic": (_args(3, 6, 5, 3, form="conic", opacity=False, background=False), _ALL[:3]),
    "odd": (_args(63, 61, 67, 3), _ALL),
    "odd_one_channel": (_args(37, 33, 70, 1, opacity=False), ("means", "shapes", "colors")),
    "odd_four": (_args(31, 66, 29, 4, form="conic"), _ALL),
    "odd_many": (_args(17, 13, 19, 13), _ALL),
    "odd_ragged": (_args(41, 23, 31, 3, offsets=[0, 11, 11, 41]), _ALL),
    "odd_dense_tile": (_args(700, 20, 20, 3, cover=3.0), _ALL),
    "empty": (_args(0, 5, 4, 3), _ALL),
    "empty_pixel": (_args(5, 1, 1, 3), _ALL),
    "strided": (_strided, _ALL),
    "extreme": (_extreme, ("means", "shapes", "colors", "opacities")),
    "real_10k": (_args(10_000, 720, 1280, 3, opacity=False, background=False), _ALL[:3]),
    "real_50k": (_args(50_000, 720, 1280, 3, opacity=False, background=False), _ALL[:3]),
    "real_100k": (_args(100_000, 720, 1280, 3, opacity=False, background=False), _ALL[:3]),
}

_LARGE = ("real_50k", "real_100k")

CASES = {
    "splat_sum": [
        Case(
            name,
            make,
            grad=grad,
            dtypes=_TYPES,
            rtol=_IMAGE,
            grad_rtol=_GRADIENT,
            bytes=_bytes,
            oracle=name not in _LARGE,
        )
        for name, (make, grad) in _MAKE.items()
    ],
    "splat_sum_backward": [
        Case(name, _with_grad(make), dtypes=_TYPES, rtol=_GRADIENT, bytes=_bytes_backward, oracle=name not in _LARGE)
        for name, (make, grad) in _MAKE.items()
    ],
}
