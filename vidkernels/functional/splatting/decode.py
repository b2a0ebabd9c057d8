"""Rendering Gaussians to bytes, the same ones everywhere."""

from __future__ import annotations

import torch

from vidkernels import _check
from vidkernels.ops.decode_splats.op import decode_splats as _decode

__all__ = ["decode_splats"]

_SIDE_LIMIT = 65536


def decode_splats(
    means: torch.Tensor,
    cholesky: torch.Tensor,
    colors: torch.Tensor,
    *,
    size: tuple[int, int],
    background: torch.Tensor | None = None,
    pixel_center: float = 0.5,
    backend: str | None = None,
) -> torch.Tensor:
    """Render 2D Gaussians to uint8 pixels, with the same bytes on every processor and for any number of threads.

    out = round(255 clamp(background + sum_i colors[i] exp(-sigma_i), 0, 1)), where exp(-sigma_i) >= 1/255;
    sigma_i = |L_i^-1 (p - means[i])|^2 / 2. Each operation's order and rounding is fixed: docs/exact_decode.md.
    Convention: positions in pixels (x, y); pixel (column i, row j) is sampled at (i, j) + pixel_center.
    Args:
        means: [N, 2], (x, y) in pixels. All inputs are rounded to float32 first.
        cholesky: [N, 3], (l11, l21, l22) of L, the covariance being L L^T. A Gaussian with a non-finite number or a
            zero on the diagonal contributes nothing.
        colors: [N, C], C from 1 to 4; weights included, any sign.
        size: (height, width) in pixels, at most 65536 each.
        background: [C], what the sum starts from; None is zero.
        pixel_center: where in its square a pixel is sampled.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        image: [H, W, C], uint8. Not differentiable: bytes have no slope.
    Raises:
        ValueError: shapes that do not fit, more than 4 channels, a side beyond 65536, a pixel_center not finite.
    Backends: reference, cpu, cuda (sm80+): equal bytes. Deterministic: yes, that is its purpose.
    Source: Zhang et al. 2024, arXiv 2403.08551, equation 6 (accumulated summation); differs: a specified exponential
        and a support that ends at 1/255.
    Example:
        >>> means, cholesky = torch.tensor([[1.5, 0.5]]), torch.tensor([[1.0, 0.0, 1.0]])
        >>> decode_splats(means, cholesky, torch.ones(1, 1), size=(1, 3)).flatten().tolist()
        [155, 255, 155]
    """
    name = "decode_splats"
    _check.is_tensor(name, "means", means, "[N, 2]")
    _check.is_tensor(name, "cholesky", cholesky, "[N, 3]")
    _check.is_tensor(name, "colors", colors, "[N, C]")
    count, channels = colors.shape
    if means.shape != (count, 2) or cholesky.shape != (count, 3):
        _check.fail(name, "expected `means` [N, 2], `cholesky` [N, 3] and `colors` [N, C] of one N.",
                    means=means, cholesky=cholesky, colors=colors)  # fmt: skip
    if not 1 <= channels <= 4:
        _check.fail(name, "expected `colors` of 1 to 4 channels.", colors=colors)
    height, width = size
    if not (0 <= height <= _SIDE_LIMIT and 0 <= width <= _SIDE_LIMIT):
        _check.fail(name, f"expected sides from 0 to {_SIDE_LIMIT}.", size=size)
    if not abs(pixel_center) <= 1e6:
        _check.fail(name, "expected a finite `pixel_center` (0.5 is the middle).", pixel_center=pixel_center)
    if background is None:
        background = torch.zeros(channels, device=means.device)
    elif not isinstance(background, torch.Tensor) or background.shape != (channels,):
        _check.fail(name, "expected `background` of shape [C].", colors=colors, background=background)
    inputs = (x.detach().float() for x in (means, cholesky, colors, background))
    return _decode(*inputs, height, width, float(pixel_center), backend=backend)
