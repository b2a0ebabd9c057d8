"""Named inputs of frame_loss and its backward."""

from __future__ import annotations

import torch

from vidkernels._case import ROUNDING, Case

_DTYPES = (torch.float32, torch.float64)


def _near(frames, g, noise, dtype):
    """An image as a fit has it: the frame, off by some noise, beyond [0, 1] as well."""
    shape = frames.shape
    return (frames.double() / 255 + noise * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)


def _args(batch, height, width, channels, l1=0.0, l2=0.0, ssim=0.0, weighted=False, noise=0.2):
    def args(g, dtype):
        frames = torch.randint(0, 256, (batch, height, width, channels), generator=g, dtype=torch.uint8)
        image = _near(frames, g, noise, dtype)
        weight = torch.rand(batch, height, width, generator=g).to(dtype) if weighted else None
        if weighted and width > 4:
            weight[:, :, 2:4] = 0
        return image, frames, weight, l1, l2, ssim

    return args


def _strided(g, dtype):
    image, frames, weight, *rest = _args(2, 13, 17, 3, 0.5, 0.25, 0.25, True)(g, dtype)
    return (
        image.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        frames.flip(1),
        weight.transpose(1, 2).contiguous().transpose(1, 2),
        *rest,
    )


def _smooth(g, dtype):
    """Flat and slowly changing regions, black and white ones: variances far below the squares they come from."""
    rows, columns = torch.meshgrid(torch.arange(37), torch.arange(41), indexing="ij")
    frames = torch.stack([rows * 6, columns * 6, rows // 19 * 255], 2).to(torch.uint8)[None]
    return _near(frames, g, 0.02, dtype), frames, None, 0.2, 0.3, 0.5


def _wild(g, dtype):
    """Values far outside [0, 1]."""
    image, frames, *rest = _args(1, 15, 23, 3, 0.3, 0.3, 0.4)(g, dtype)
    return (image * 50).to(dtype), frames, *rest


def _equal(g, dtype):
    """Black and white without a difference in the left half, where the gradient of the absolute value is 0."""
    image, frames, *rest = _args(1, 14, 40, 1, 0.7, 0.1, 0.2)(g, dtype)
    frames[:, :, :20] = 255 * (frames[:, :, :20] > 127)
    image[:, :, :20] = frames[:, :, :20].to(dtype) / 255
    return image, frames, *rest


def _upstream(make):
    def args(g, dtype):
        return torch.tensor(1.5, dtype=dtype), *make(g, dtype)

    return args


def _bytes(image, target, weight, *rest):
    read = image.numel() * (image.element_size() + 1)
    return read + (0 if weight is None else weight.numel() * weight.element_size()), image.element_size()


def _bytes_backward(grad_loss, image, target, weight, *rest):
    return _bytes(image, target, weight)[0] + image.element_size(), image.numel() * image.element_size()


def _flops(image, target, weight, l1, l2, ssim):
    """Four maps, two passes of 11 taps; the rest is small."""
    return image.numel() * (4 * 2 * 22 if ssim else 4.0)


def _flops_backward(grad_loss, image, target, weight, l1, l2, ssim):
    return image.numel() * (7 * 2 * 22 if ssim else 4.0)


_MIX = (0.6, 0.2, 0.2)
_INPUTS = {
    "tiny": _args(2, 11, 13, 2, *_MIX),
    "tiny_l1": _args(2, 3, 5, 3, l1=1.0),
    "tiny_l2_weighted": _args(2, 3, 5, 3, l2=1.0, weighted=True),
    "tiny_ssim_weighted": _args(1, 13, 12, 1, ssim=1.0, weighted=True),
    "odd": _args(2, 37, 53, 3, *_MIX),
    "odd_weighted": _args(1, 131, 29, 3, *_MIX, weighted=True),  # rows of two tasks
    "odd_wide": _args(1, 17, 701, 3, *_MIX),  # columns of three
    "odd_grey": _args(3, 11, 11, 1, ssim=1.0),
    "odd_channels": _args(1, 23, 19, 7, *_MIX),
    "empty": _args(0, 16, 16, 3, *_MIX),
    "empty_rows": _args(2, 0, 16, 3, l1=1.0),
    "strided": _strided,
    "extreme_smooth": _smooth,
    "extreme_wild": _wild,
    "extreme_equal": _equal,
    "real_720p": _args(1, 720, 1280, 3, *_MIX),
    "real_720p_l1": _args(1, 720, 1280, 3, l1=1.0),
    "real_batch": _args(8, 256, 256, 3, *_MIX, weighted=True),
}
# Black and white are far from 1/2: squares of 0.25 are rounded to 1.5e-8 where the variance is next to c2 = 9e-4.
_SMOOTH_GRADIENT = {torch.float64: 1e-12, torch.float32: 1e-5}


def _cases(wrap, grad, moved, flops, smooth=ROUNDING):
    return [
        Case(
            name,
            wrap(args),
            () if name.startswith("empty") else grad,
            _DTYPES,
            smooth if name == "extreme_smooth" else ROUNDING,
            bytes=moved,
            flops=flops,
        )
        for name, args in _INPUTS.items()
    ]


CASES = {
    "frame_loss": _cases(lambda args: args, ("image",), _bytes, _flops),
    "frame_loss_backward": _cases(_upstream, (), _bytes_backward, _flops_backward, _SMOOTH_GRADIENT),
}
