"""How results are compared: values by their largest error, gradients as vectors."""

from __future__ import annotations

import torch

from vidkernels._case import ROUNDING


def assert_close(actual: torch.Tensor, expected: torch.Tensor, rtol: float | None, what: str = "result") -> None:
    """max |actual - expected| <= rtol * max |expected|; NaN and inf in equal places. `rtol=None` asks for equal bits.

    Args:
        actual: any shape and dtype.
        expected: the same shape; float64 for a tolerance, the dtype of `actual` for equal bits.
        rtol: relative to the largest finite |expected|.
    Raises:
        AssertionError: with the place and size of the largest difference.
    """
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    if rtol is None or not actual.is_floating_point():
        assert actual.dtype == expected.dtype, f"{what}: dtype {actual.dtype}, expected {expected.dtype}"
        same = (actual == expected) | ((actual != actual) & (expected != expected))
        assert bool(same.all()), f"{what}: {int((~same).sum())} of {same.numel()} elements differ"
        return
    wide, finite = actual.double(), expected.isfinite()
    # A value that the narrow type cannot hold is an infinity there too.
    overflow = finite & (expected.abs() > torch.finfo(actual.dtype).max) & actual.isinf()
    odd = ~finite & ~((wide == expected) | (wide.isnan() & expected.isnan()))
    assert not bool(odd.any()), f"{what}: {int(odd.sum())} non-finite elements differ"
    keep = finite & ~overflow
    if not bool(keep.any()):
        return
    error = torch.where(keep, (wide - expected).abs(), torch.zeros_like(wide))
    scale = float(expected[keep].abs().max())
    worst = int(error.argmax())
    assert not bool(error.isnan().any()), f"{what}: NaN where {float(expected.flatten()[worst])} was expected"
    assert float(error.max()) <= rtol * scale + torch.finfo(actual.dtype).tiny, (
        f"{what}: |{float(wide.flatten()[worst])} - {float(expected.flatten()[worst])}| at flat index {worst} "
        f"is {float(error.max()) / max(scale, 1e-300):.2e} of the largest value, allowed {rtol:.1e}"
    )


def assert_gradient_close(
    actual: torch.Tensor, expected: torch.Tensor, what: str = "gradient", rtol: float | None = None
) -> None:
    """A gradient is a vector: its direction, length and mean must agree with the float64 one.

    Args:
        actual: gradient in any floating dtype.
        expected: float64 gradient.
        what: name for the message.
        rtol: allowed relative L2 error; None takes four times the rounding of the dtype.
    """
    assert actual is not None, f"{what}: no gradient"
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    rtol = 4 * ROUNDING[actual.dtype] if rtol is None else rtol
    a, e = actual.double().flatten(), expected.double().flatten()
    length = float(e.norm())
    error = float((a - e).norm())
    assert error <= rtol * length + 1e-30, (
        f"{what}: relative L2 error {error / max(length, 1e-300):.2e}, allowed {rtol:.1e}"
    )
    bias = abs(float((a - e).sum()))
    assert bias <= rtol * float(e.abs().sum()) + 1e-30, f"{what}: biased by {bias:.2e}"
