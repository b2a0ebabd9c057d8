"""Named inputs of project_gaussians and its backward."""

from __future__ import annotations

import torch

from vidkernels._case import Case
from vidkernels.ops.project_gaussians.reference import project_gaussians

_TYPES = (torch.float32, torch.float64)
_RTOL = {torch.float32: 1e-5, torch.float64: 1e-11}  # the gate of the splatting family
_FORWARD = ("means", "shapes", "scales", "viewmats", "Ks")


def _cameras(g, batch, views, width, height, dtype):
    """Slightly turned cameras at the origin that look along +z."""
    small = 0.1 * torch.randn(batch, views, 3, generator=g)
    x, y, z = small.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).unflatten(-1, (3, 3))
    viewmats = torch.zeros(batch, views, 4, 4)
    viewmats[..., :3, :3] = torch.linalg.matrix_exp(skew)
    viewmats[..., :3, 3] = 0.1 * torch.randn(batch, views, 3, generator=g)
    viewmats[..., 3, 3] = 1
    Ks = torch.zeros(batch, views, 3, 3)
    Ks[..., 0, 0], Ks[..., 1, 1] = 0.8 * width, 0.9 * width
    Ks[..., 0, 2], Ks[..., 1, 2], Ks[..., 2, 2] = 0.52 * width, 0.47 * height, 1
    return viewmats.to(dtype), Ks.to(dtype)


def _gaussians(g, batch, count, dtype, covars, size=0.2):
    """A cloud in front of the cameras; every fifth Gaussian is behind them, every seventh beside the image."""
    means = torch.rand(batch, count, 3, generator=g) - 0.5
    means[..., 2] = 3 + 4 * means[..., 2]
    means[:, 4::5, 2] *= -1
    means[:, 3::7, 0] += 2.4
    quats = torch.randn(batch, count, 4, generator=g)
    scales = size * (0.3 + torch.rand(batch, count, 3, generator=g))
    if not covars:
        return means.to(dtype), quats.to(dtype), scales.to(dtype)
    root = torch.randn(batch, count, 3, 3, generator=g) * scales[..., None]
    six = (root @ root.mT + 0.01 * torch.eye(3)).flatten(-2)[..., (0, 1, 2, 4, 5, 8)]
    return means.to(dtype), six.to(dtype), None


def _forward(batch, count, views, width=64, height=48, covars=False, model="pinhole", eps2d=0.3, size=0.2):
    def args(g, dtype):
        means, shapes, scales = _gaussians(g, batch, count, dtype, covars, size)
        viewmats, Ks = _cameras(g, batch, views, width, height, dtype)
        if model == "ortho":
            Ks[..., :2, :2] *= 0.4
        return means, shapes, scales, viewmats, Ks, width, height, eps2d, 0.05, 100.0, 0.0, model

    return args


def _backward(*sizes, cameras=True, **options):
    forward = _forward(*sizes, **options)

    def args(g, dtype):
        inputs = forward(g, torch.float64)
        outputs = project_gaussians(*inputs)
        grads = [torch.randn(o.shape, generator=g).to(dtype) for o in outputs]
        tensors = [None if a is None else a.to(dtype) for a in inputs[:5]]
        return *grads, *tensors, outputs[3].to(dtype), *inputs[5:8], inputs[11], cameras

    return args


def _extreme(g, dtype):
    """Not finite, no rotation, flat, huge, tiny, on the near plane: all of them beside ordinary ones."""
    means, quats, scales = _gaussians(g, 1, 12, dtype, False)
    means[0, 0, 0] = float("nan")
    means[0, 1, 2] = float("inf")
    quats[0, 2] = 0
    scales[0, 5] = 0
    scales[0, 6] = torch.tensor([1e-6, 0.2, 0.2])
    scales[0, 7] = 3.0
    scales[0, 8, 1] = float("inf")
    means[0, 10] = torch.tensor([0.0, 0.0, 0.0])
    viewmats = torch.eye(4, dtype=dtype)[None, None].clone()
    _, Ks = _cameras(g, 1, 1, 64, 48, dtype)
    return means, quats, scales, viewmats, Ks, 64, 48, 0.3, 0.05, 100.0, 0.0, "pinhole"


def _strided(g, dtype):
    return tuple(a.mT.contiguous().mT if isinstance(a, torch.Tensor) else a for a in _forward(1, 37, 2)(g, dtype))


def _bytes(means, shapes, scales, viewmats, *rest):
    pairs = means.shape[0] * means.shape[1] * viewmats.shape[1]
    read = means.numel() + shapes.numel() + (0 if scales is None else scales.numel())
    return read * means.element_size(), pairs * 9 * means.element_size()


def _bytes_backward(gm, gc, gd, ge, gk, means, shapes, scales, *rest):
    per = means.numel() + shapes.numel() + (0 if scales is None else scales.numel())
    return (gd.numel() * 11 + per) * means.element_size(), per * means.element_size()


def _case(name, args, **options):
    return Case(name, args, dtypes=_TYPES, rtol=_RTOL, **options)


CASES = {
    "project_gaussians": [
        _case("tiny", _forward(2, 7, 2), grad=_FORWARD, bytes=_bytes),
        _case("tiny_covars", _forward(1, 7, 2, covars=True), grad=_FORWARD),
        _case("tiny_ortho", _forward(1, 7, 1, model="ortho"), grad=_FORWARD),
        _case("odd", _forward(2, 331, 3), grad=_FORWARD, bytes=_bytes),
        _case("odd_covars_ortho", _forward(1, 67, 2, 97, 61, covars=True, model="ortho"), grad=_FORWARD),
        _case("odd_sharp", _forward(1, 63, 1, eps2d=0.0), grad=_FORWARD),
        _case("empty", _forward(2, 0, 2), grad=_FORWARD),
        _case("empty_views", _forward(1, 5, 0), grad=("means", "shapes", "scales")),
        _case("strided", _strided, grad=_FORWARD),
        _case("extreme", _extreme),
        _case("real_scene", _forward(1, 100_000, 1, 1280, 720, size=0.01), grad=_FORWARD, bytes=_bytes),
    ],
    "project_gaussians_backward": [
        _case("tiny", _backward(2, 7, 2), bytes=_bytes_backward),
        _case("odd", _backward(2, 331, 3), bytes=_bytes_backward),
        _case("odd_covars", _backward(1, 67, 2, covars=True)),
        _case("odd_fixed_cameras", _backward(1, 67, 2, cameras=False)),
        _case("empty", _backward(2, 0, 2)),
        _case("real_scene", _backward(1, 100_000, 1, 1280, 720, size=0.01), bytes=_bytes_backward),
    ],
}
