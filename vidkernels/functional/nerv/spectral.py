"""Convolution over whole pictures: a multiplication of their low frequencies."""

from __future__ import annotations

import torch
from torch import Tensor

from vidkernels import _check
from vidkernels.ops.spectral_multiply.op import spectral_multiply as _spectral_multiply

__all__ = ["fourier_layer", "spectral_multiply"]


def spectral_multiply(
    spectrum: Tensor,
    weight: Tensor,
    size: tuple[int, int] | None = None,
    *,
    mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The low frequencies of a spectrum, each times a matrix of its own; zeros at all others.

    out[b, o, row, column] = sum over i of spectrum[b, i, row, column] * weight[row, column, i, o]
    Convention: spectra are those of torch.fft.rfft2: columns from frequency 0 up, rows from 0 up with the negative
        frequencies at the end. Of R x C weights the first (R + 1) // 2 rows belong to the lowest frequencies from 0 up,
        the last R // 2 to the lowest negative ones, in the order of the spectrum. True = kept in `mask`.
    Args:
        spectrum: [B, I, H, F], complex64/complex128.
        weight: [R, C, I, O, 2], real and imaginary part, float32/float64. A weight [I, O, R, C] of complex numbers, as
            Fourier neural operators have it, is torch.view_as_real(it.permute(2, 3, 0, 1)).
        size: (H', F') of the result; None: (H, F).
        mask: bool, the shape of `weight`: real and imaginary parts that count; the others are taken for 0.
        backend: force one of vidkernels' backends; None chooses.
    Returns:
        out: [B, O, H', F'], the dtype of `spectrum`. Differentiable, once, in `spectrum` and `weight`.
    Raises:
        ValueError: more rows or columns of weights than either spectrum has, or shapes and dtypes that do not fit.
    Backends: reference, cpu, cuda (sm80+). complex128 runs on the reference. Deterministic: forward yes, backward yes
        (sums over channels and batch in a fixed order, in float32).
    Source: Li et al. 2020, arXiv 2010.08895, section 4 (Fourier layer); Kang et al. 2023, arXiv 2306.11305, section 3
        (its weights masked).
    Example:
        >>> spectrum = torch.fft.rfft2(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]))
        >>> spectral_multiply(spectrum, torch.tensor([2.0, 1.0]).view(1, 1, 1, 1, 2))[0, 0]
        tensor([[24.+12.j,  0.+0.j],
                [ 0.+0.j,  0.+0.j]])
    """
    name = "spectral_multiply"
    _check.is_tensor(name, "spectrum", spectrum, "[B, I, H, F]")
    _check.is_tensor(name, "weight", weight, "[R, C, I, O, 2]")
    if not spectrum.is_complex():
        _check.fail(name, "expected a complex `spectrum`.", "torch.fft.rfft2(pictures)", spectrum=spectrum)
    if weight.shape[2] != spectrum.shape[1] or weight.shape[4] != 2:
        _check.fail(name, "expected `weight` [R, C, I, O, 2] with the channels of `spectrum`.",
                    spectrum=spectrum, weight=weight)  # fmt: skip
    if weight.dtype != spectrum.dtype.to_real():
        _check.fail(name, f"expected `weight` of dtype {spectrum.dtype.to_real()}.", spectrum=spectrum, weight=weight)
    height, width = spectrum.shape[2:] if size is None else size
    rows, columns = weight.shape[:2]
    if rows > min(spectrum.shape[2], height) or columns > min(spectrum.shape[3], width):
        _check.fail(name, "expected `weight` of no more rows and columns than both spectra have.",
                    "fewer frequencies, or larger pictures",
                    spectrum=spectrum, weight=weight, size=(height, width))  # fmt: skip
    if mask is not None and (mask.dtype is not torch.bool or mask.shape != weight.shape):
        _check.fail(name, "expected a bool `mask` of the shape of `weight`.", weight=weight, mask=mask)
    x = torch.view_as_real(spectrum.resolve_conj())
    return torch.view_as_complex(_spectral_multiply(x, weight, mask, height, width, backend=backend))


def fourier_layer(
    x: Tensor, weight: Tensor, scale: int = 1, *, mask: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """Pictures convolved as a whole, by a multiplication of their low frequencies, and enlarged on the way.

    out = irfft2(spectral_multiply(rfft2(x), weight)), `scale` times as high and wide
    Convention: both transforms have norm="forward", so that a frequency's amplitude does not change with the size: with
        the unit matrix everywhere, a picture of the kept frequencies is enlarged by interpolation through its pixels.
    Args:
        x: [B, I, H, W], float16/bfloat16/float32/float64; halves are transformed in float32.
        weight: [R, C, I, O, 2], R <= H, C <= W // 2 + 1; see `spectral_multiply`.
        scale: the factor by which height and width grow.
        mask: bool, the shape of `weight`: which numbers count.
        backend: of `spectral_multiply`.
    Returns:
        out: [B, O, H * scale, W * scale], the dtype of `x`. Differentiable, once, in `x` and `weight`.
    Raises:
        ValueError: more frequencies than the picture has, a scale below 1, shapes and dtypes that do not fit.
    Backends: as `spectral_multiply`; the transforms are torch's. Deterministic: yes.
    Source: Li et al. 2020, arXiv 2010.08895, section 4; Kang et al. 2023, arXiv 2306.11305, section 3.
    Example:
        >>> wave = torch.tensor([1.0, 0.0, -1.0, 0.0]).view(1, 1, 1, 4)
        >>> unit = torch.tensor([1.0, 0.0]).expand(1, 2, 1, 1, 2).contiguous()
        >>> fourier_layer(wave, unit, 2)[0, 0, 0].round(decimals=3).abs()
        tensor([1.0000, 0.7070, 0.0000, 0.7070, 1.0000, 0.7070, 0.0000, 0.7070])
    """
    name = "fourier_layer"
    _check.is_tensor(name, "x", x, "[B, I, H, W]")
    if not x.is_floating_point():
        _check.fail(name, "expected a floating `x`.", x=x)
    if scale < 1:
        _check.fail(name, "expected `scale` of 1 or more.", x=x, scale=scale)
    wide = x if x.dtype is torch.float64 else x.float()
    height, width = (side * scale for side in x.shape[2:])
    with torch.autocast(x.device.type, enabled=False):
        spectrum = torch.fft.rfft2(wide, norm="forward")
        out = spectral_multiply(spectrum, weight, (height, width // 2 + 1), mask=mask, backend=backend)
        return torch.fft.irfft2(out, s=(height, width), norm="forward").to(x.dtype)
