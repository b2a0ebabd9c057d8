"""Named inputs of splat_topk and its backward.

A pixel whose weight sits on 1/255, or whose K-th and next weights are nearly equal, may be decided differently in
different precision. `settle` looks for such pixels in float64 and moves the opacities (the shapes where there are
none) of the Gaussians concerned until none comes closer than a relative 5e-6;
an exponent of up to 8 in float32 is good to about 1e-6.
"""

from __future__ import annotations

import itertools
import math

import torch

from vidkernels._case import Case
from vidkernels.ops._scenes import scene
from vidkernels.ops.splat_topk import reference

_TYPES = (torch.float32, torch.float64)
# The gates of the op: 1e-5 of the largest value forward, 1e-4 for gradients.
_IMAGE = {torch.float64: 1e-12, torch.float32: 1e-5}
_GRADIENT = {torch.float64: 1e-12, torch.float32: 1e-4}
_MARGIN = 5e-6


def conic_of(cholesky):
    l1, l2, l3 = cholesky.unbind(1)
    return torch.stack([l2 * l2 + l3 * l3, -l1 * l2, l1 * l1], 1) / ((l1 * l3) ** 2)[:, None]


def _unsettled(means, conics, opacities, lo, hi, height, width, top, pixel_center):
    """Rows of the Gaussians of one image that a pixel cannot place for certain."""
    y, x = (torch.arange(n, dtype=torch.float64) + pixel_center for n in (height, width))
    dx, dy = x[None, :, None] - means[lo:hi, 0], y[:, None, None] - means[lo:hi, 1]
    a, b, c = conics[lo:hi].unbind(1)
    w = opacities[lo:hi] * torch.exp(-(0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy))
    bad = ((w * 255 - 1).abs() < _MARGIN).any(0).any(0)
    if hi - lo > top:
        sorted_ = w.sort(-1, descending=True)
        last, following = sorted_.values[..., top - 1], sorted_.values[..., top]
        close = (last >= 0.99 / 255) & ((last - following) < _MARGIN * last)
        bad[sorted_.indices[..., top][close]] = True
    return bad


def settle(means, shapes, opacities, offsets, height, width, top, form, pixel_center):
    """(shapes, opacities), moved a little where a pixel's choice would hang on rounding."""
    for _ in range(20):
        conics = shapes.double() if form == "conic" else conic_of(shapes.double())
        weights = torch.ones(len(means)).double() if opacities is None else opacities.double()
        bad = torch.zeros(len(means), dtype=torch.bool)
        edges = [0, len(means)] if offsets is None else offsets
        for lo, hi in itertools.pairwise(edges):
            bad[lo:hi] |= _unsettled(means.double(), conics, weights, lo, hi, height, width, top, pixel_center)
        if not bool(bad.any()):
            return shapes, opacities
        if opacities is None:
            shapes = torch.where(bad[:, None], shapes * (1 - 1e-3), shapes)
        else:
            opacities = torch.where(bad, opacities * (1 - 1e-3), opacities)
    raise RuntimeError("settle: some pixels stay undecided")


def _args(count, height, width, channels, top, *, form="cholesky", opacity=False, offsets=None, cover=1.0,
          pixel_center=0.5, settled=True):  # fmt: skip
    def args(g, dtype):
        means, shapes, colors = scene(g, count, height, width, channels, cover)
        shapes = conic_of(shapes) if form == "conic" else shapes
        means, shapes = means.to(dtype), shapes.to(dtype)
        opacities = (torch.rand(count, generator=g).double() * 0.9 + 0.1).to(dtype) if opacity else None
        if settled:
            shapes, opacities = settle(means, shapes, opacities, offsets, height, width, top, form, pixel_center)
        return (means, shapes, colors.to(dtype), opacities, None if offsets is None else torch.tensor(offsets), height,
                width, top, pixel_center, form)  # fmt: skip

    return args


def _strided(g, dtype):
    means, shapes, colors, *rest = _args(9, 13, 11, 3, 4)(g, dtype)
    wide = torch.cat([means, shapes], 1)
    return wide[:, :2], wide[:, 2:], colors.t().contiguous().t(), *rest


def _equal(g, dtype):
    """Every Gaussian four times: the lower index wins."""
    means, shapes, colors, *rest = _args(6, 13, 11, 3, 4)(g, dtype)
    return means.repeat(4, 1), shapes.repeat(4, 1), colors.repeat(4, 1) * torch.rand(24, 1, generator=g), *rest


def _extreme(g, dtype):
    """Huge, far, thin, tiny, degenerate and non-finite ones, and opacities beyond both ends."""
    inf, nan = math.inf, math.nan
    means = torch.tensor([[8.3, 8.1], [-40, 3], [1e7, 1e7], [5.2, 5.4], [9.1, 2.2], [nan, 1], [inf, 2], [3, 3], [4, 4],
                          [6.7, 7.1], [7.6, 3.3], [2.2, 9.4], [4.4, 6.6], [8, 8], [3, 9], [6, 6]])  # fmt: skip
    shapes = torch.tensor([[300.0, 10, 200], [30, 0, 30], [1, 0, 1], [0.05, 0, 0.05], [9, 8.7, 0.4], [1, 0, 1],
                           [1, 0, 1], [0, 0, 0], [nan, 0, 1], [2, 1, 2], [-2, 1, 2], [0.8, 3, 0.9], [4, 1, 3],
                           [3, 0, 3], [2, 0, 2], [5, 5, 5]])  # fmt: skip
    opacities = torch.tensor([0.9, 0.5, 1, 1, 0.7, 1, 1, 1, 1, 0.001, 0.6, 0.8, 7, nan, inf, -0.5])
    colors = torch.rand(16, 3, generator=g)
    colors[1, 1] = nan
    return (means.to(dtype), shapes.to(dtype), colors.to(dtype), opacities.to(dtype), None, 19, 23, 2, 0.5,
            "cholesky")  # fmt: skip


def _with_grad(make, render):
    """The backward op's arguments; `render` makes the index that it is given."""

    def args(g, dtype):
        inputs = make(g, dtype)
        means, shapes, colors, opacities, offsets, _, _, _, pixel_center, form = inputs
        wide = [t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in inputs]
        image, index = render(*(wide if render is reference.splat_topk else inputs))
        grad = torch.randn(image.shape, generator=g, dtype=torch.float64).to(dtype)
        return grad, index, means, shapes, colors, opacities, offsets, pixel_center, form

    return args


def _rendered(*inputs):
    """For the real sizes: the op itself, because the reference takes minutes there."""
    from vidkernels.ops.splat_topk.op import splat_topk

    return splat_topk(*inputs)


def _size(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _bytes(means, shapes, colors, opacities, offsets, height, width, top, *rest):
    images = 1 if offsets is None else offsets.shape[0] - 1
    written = images * height * width * (colors.shape[1] * means.element_size() + 4 * top)
    return _size(means, shapes, colors, opacities), written


def _bytes_backward(grad_image, index, means, shapes, colors, opacities, *rest):
    parameters = _size(means, shapes, colors, opacities)
    return parameters + _size(grad_image, index), parameters


_THREE = ("means", "shapes", "colors")
_ALL = (*_THREE, "opacities")
_MAKE = {
    "tiny": (_args(6, 7, 6, 2, 3), _THREE),
    "tiny_conic": (_args(5, 6, 5, 3, 2, form="conic", opacity=True), _ALL),
    "odd": (_args(63, 61, 67, 3, 10), _THREE),
    "odd_one": (_args(37, 33, 70, 1, 1, cover=2.0, opacity=True), _ALL),
    "odd_most": (_args(90, 27, 30, 4, 32, cover=5.0, form="conic", pixel_center=0.0), _THREE),
    "odd_many": (_args(17, 13, 19, 13, 5, opacity=True), _ALL),
    "odd_ragged": (_args(41, 23, 31, 3, 10, offsets=[0, 11, 11, 41]), _THREE),
    "odd_dense_tile": (_args(700, 20, 20, 3, 10, cover=3.0), _THREE),
    "odd_equal": (_equal, _THREE),
    "empty": (_args(0, 5, 4, 3, 10), _THREE),
    "odd_pixel": (_args(5, 1, 1, 3, 2), _THREE),
    "strided": (_strided, _THREE),
    "extreme": (_extreme, ()),
    "real_10k": (_args(10_000, 720, 1280, 3, 10, settled=False), _THREE),
    "real_50k": (_args(50_000, 720, 1280, 3, 10, settled=False), _THREE),
}

_LARGE = ("real_10k", "real_50k")  # some pixels of theirs are undecided in float32

CASES = {
    "splat_topk": [
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
    "splat_topk_backward": [
        Case(
            name,
            _with_grad(make, _rendered if name.startswith("real") else reference.splat_topk),
            dtypes=_TYPES,
            rtol=_GRADIENT,
            bytes=_bytes_backward,
            oracle=name not in _LARGE,
        )
        for name, (make, grad) in _MAKE.items()
    ],
}
