"""Named inputs of splat_alpha and its backward.

Two computations in different precision may disagree about a pixel whose alpha sits on 1/255 (a step of 0.4% of the
colour) or on 0.99 (a step of the gradient), so `settle` moves opacities until no pixel comes closer to either than a
relative 5e-6; an exponent of up to 8 in float32 is good to about 1e-6.
"""

from __future__ import annotations

import math

import torch

from vidkernels._case import Case
from vidkernels.ops._scenes import conic_of, scene, unsettled
from vidkernels.ops.splat_alpha import reference

_ALL = ("means", "shapes", "colors", "opacities", "background")
_TYPES = (torch.float32, torch.float64)
# The gates of the op: 1e-5 of the largest value forward, 1e-4 for gradients.
_IMAGE = {torch.float64: 1e-12, torch.float32: 1e-5}
_GRADIENT = {torch.float64: 1e-12, torch.float32: 1e-4}


def settle(means, shapes, opacities, height, width, form, pixel_center):
    """The opacities, moved a little where a pixel's alpha would sit on a threshold."""
    conics = shapes.double() if form == "conic" else conic_of(shapes.double())
    for _ in range(20):
        wide = opacities.double()
        bad = [unsettled(means.double(), conics, wide, height, width, pixel_center, level) for level in (1 / 255, 0.99)]
        bad = bad[0] | bad[1]
        if not bool(bad.any()):
            return opacities
        opacities = torch.where(bad, opacities * (1 - max(1e-3, 2 * torch.finfo(opacities.dtype).eps)), opacities)
    raise RuntimeError("settle: some pixels stay on a threshold")


def _args(count, height, width, channels, *, form="cholesky", background=2, offsets=None, cover=0.7, most=1.15,
          pixel_center=0.5, depths=None):  # fmt: skip
    """background: axes of it, 0 for none. depths: number of different ones, None for all."""

    def args(g, dtype):
        means, shapes, colors = scene(g, count, height, width, channels, cover)
        shapes = conic_of(shapes) if form == "conic" else shapes
        means, shapes = means.to(dtype), shapes.to(dtype)
        opacities = (torch.rand(count, generator=g).double() * (most - 0.02) + 0.02).to(dtype)
        opacities = settle(means, shapes, opacities, height, width, form, pixel_center)
        z = torch.rand(count, generator=g) if depths is None else torch.randint(0, depths, (count,), generator=g)
        images = 1 if offsets is None else len(offsets) - 1
        back = torch.rand((images, channels)[2 - background :] if background else 0, generator=g).to(dtype)
        back = back if background else None
        edges = None if offsets is None else torch.tensor(offsets)
        colors = colors.to(dtype)
        z = z.to(dtype) - 0.5
        return means, shapes, colors, opacities, z, back, edges, height, width, pixel_center, form, None

    return args


def _strided(g, dtype):
    means, shapes, colors, *rest = _args(9, 13, 11, 3)(g, dtype)
    wide = torch.cat([means, shapes], 1)
    return wide[:, :2], wide[:, 2:], colors.t().contiguous().t(), *rest


def _extreme(g, dtype):
    """Huge, far, thin, tiny, degenerate and non-finite ones, opacities beyond both ends, and a NaN depth."""
    inf, nan = math.inf, math.nan
    means = torch.tensor([[8.3, 8.1], [-40, 3], [1e7, 1e7], [5.2, 5.4], [9.1, 2.2], [nan, 1], [inf, 2], [3, 3], [4, 4],
                          [6.7, 7.1], [7.6, 3.3], [2.2, 9.4], [4.4, 6.6], [9.5, 9.5], [8, 8], [3, 9],
                          [6, 6]])  # fmt: skip
    shapes = torch.tensor([[300.0, 10, 200], [30, 0, 30], [1, 0, 1], [0.05, 0, 0.05], [9, 8.7, 0.4], [1, 0, 1],
                           [1, 0, 1], [0, 0, 0], [nan, 0, 1], [2, 1, 2], [-2, 1, 2], [0.8, 3, 0.9], [4, 1, 3],
                           [0.02, 0, 0.02], [3, 0, 3], [2, 0, 2], [5, 5, 5]])  # fmt: skip
    opacities = torch.tensor([0.3, 0.5, 1, 1, 0.7, 1, 1, 1, 1, 0.001, 0.6, 0.8, 7, 0.9, nan, inf, -0.5])
    colors = torch.rand(17, 3, generator=g)
    colors[1, 1] = nan
    depths = torch.linspace(5, -5, 17)
    depths[[2, 11, 12]] = torch.tensor([-inf, nan, inf])
    return (means.to(dtype), shapes.to(dtype), colors.to(dtype), opacities.to(dtype), depths.to(dtype), None, None, 19,
            23, 0.5, "cholesky", None)  # fmt: skip


def _no_opacity(g, dtype):
    means, shapes, colors, opacities, *rest = _args(12, 9, 10, 3)(g, dtype)
    return means, shapes, colors, torch.zeros_like(opacities), *rest


def _with_grad(make, render, through_alpha=True, absgrad=True):
    """The backward op's arguments; `render` makes the image that it is given."""

    def args(g, dtype):
        inputs = make(g, dtype)
        means, shapes, colors, opacities, _, background, offsets, _, _, center, form, _ = inputs
        wide = [t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in inputs]
        image, alpha, order = render(*(wide if render is reference.splat_alpha else inputs))
        g_image = torch.randn(image.shape, generator=g, dtype=torch.float64).to(dtype)
        g_alpha = torch.randn(alpha.shape, generator=g, dtype=torch.float64).to(dtype) if through_alpha else None
        return (g_image, g_alpha, image.to(dtype), alpha.to(dtype), order, means, shapes, colors, opacities,
                background, offsets, center, form, absgrad)  # fmt: skip

    return args


def _rendered(*inputs):
    """For the real sizes: the op itself, because the reference takes half a minute there."""
    from vidkernels.ops.splat_alpha.op import splat_alpha

    return splat_alpha(*inputs)


def _size(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _bytes(means, shapes, colors, opacities, depths, background, offsets, height, width, *rest):
    images = 1 if offsets is None else offsets.shape[0] - 1
    written = images * height * width * (colors.shape[1] + 1) * means.element_size() + 4 * means.shape[0]
    return _size(means, shapes, colors, opacities, depths, background), written


def _bytes_backward(grad_image, grad_alpha, image, alpha, order, means, shapes, colors, opacities, background, *rest):
    parameters = _size(means, shapes, colors, opacities, background)
    return parameters + _size(grad_image, grad_alpha, image, alpha, order), parameters


_MAKE = {
    "tiny": (_args(5, 7, 6, 2), _ALL),
    "tiny_conic": (_args(4, 6, 5, 3, form="conic", background=0), _ALL[:4]),
    "odd": (_args(63, 61, 67, 3, background=1), _ALL),
    "odd_one_channel": (_args(37, 33, 70, 1), _ALL),
    "odd_four": (_args(31, 66, 29, 4, form="conic", pixel_center=0.0), _ALL),
    "odd_many": (_args(17, 13, 19, 13), _ALL),
    "odd_ragged": (_args(41, 23, 31, 3, offsets=[0, 11, 11, 41]), _ALL),
    "odd_dense_tile": (_args(700, 20, 20, 3, cover=1.5, most=0.06), _ALL),
    "odd_opaque": (_args(300, 40, 90, 3, cover=4.0), _ALL),
    "odd_equal_depths": (_args(90, 30, 33, 3, cover=2.0, depths=4), _ALL),
    "odd_wide": (_args(40, 150, 330, 3, cover=3.0), _ALL),
    "empty": (_args(0, 5, 4, 3), _ALL),
    "empty_images": (_args(0, 5, 4, 3, offsets=[0], background=1), _ALL),
    "odd_pixel": (_args(5, 1, 1, 3), _ALL),
    "odd_no_opacity": (_no_opacity, _ALL),
    "strided": (_strided, _ALL),
    "extreme": (_extreme, ()),
    "real_10k": (_args(10_000, 720, 1280, 3, background=0, most=0.97), _ALL[:4]),
    "real_50k": (_args(50_000, 720, 1280, 3, background=0, most=0.97), _ALL[:4]),
    "real_100k": (_args(100_000, 720, 1280, 3, background=0, most=0.97), _ALL[:4]),
}

_LARGE = ("real_50k", "real_100k")

CASES = {
    "splat_alpha": [
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
    "splat_alpha_backward": [
        Case(
            name,
            _with_grad(
                make,
                _rendered if name.startswith("real") else reference.splat_alpha,
                through_alpha=name != "odd_one_channel",
                absgrad=name != "odd_four" and not name.startswith("real"),
            ),
            dtypes=_TYPES,
            rtol=_GRADIENT,
            bytes=_bytes_backward,
            oracle=name not in _LARGE,
        )
        for name, (make, grad) in _MAKE.items()
    ],
}
