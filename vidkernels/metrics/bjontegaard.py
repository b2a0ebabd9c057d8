"""Bjontegaard deltas: the mean distance between two rate-distortion curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vidkernels import _check

Curve = Sequence[tuple[float, float]]


def bd_rate(anchor: Curve, test: Curve) -> float:
    """How many percent more (or, negative, fewer) bytes `test` needs than `anchor` for the same quality.

    (10^(mean over q of log10 rate_test(q) - log10 rate_anchor(q)) - 1) * 100
    Convention: log10(rate) over quality by piecewise cubic Hermite interpolation (PCHIP) through all points, integrated
        over the qualities that both curves reach. Nothing is extrapolated.
    Args:
        anchor: points (rate, quality), two or more (four are usual), in any order; any unit of rate.
        test: the same for the curve in question, same unit.
    Returns:
        percent: a Python float.
    Raises:
        ValueError: fewer than two points, a rate <= 0 or not finite, quality that does not rise with the rate, or no
            quality that both curves reach.
        ImportError: scipy is missing.
    Backends: scipy. Deterministic: yes.
    Source: Bjontegaard 2001, VCEG-M33; PCHIP in place of the cubic fit, as in JCTVC-L1100 and AOM's test conditions.
    Example:
        >>> anchor = [(100, 30), (200, 33), (400, 36), (800, 39)]
        >>> round(bd_rate(anchor, [(rate / 2, quality) for rate, quality in anchor]), 6)
        -50.0
    """
    anchor, test = _curve("bd_rate", "anchor", anchor), _curve("bd_rate", "test", test)
    mean = _mean_distance("bd_rate", anchor[:, ::-1], test[:, ::-1], "quality")
    return float((10.0**mean - 1) * 100)


def bd_psnr(anchor: Curve, test: Curve) -> float:
    """How many units of quality (decibels) `test` is better than `anchor` at the same rate.

    mean over r of quality_test(r) - quality_anchor(r), r = log10 rate
    Convention: as `bd_rate`, with the axes exchanged: over the rates that both curves reach.
    Args:
        anchor: points (rate, quality), two or more, in any order.
        test: the same for the curve in question.
    Returns:
        decibels: a Python float.
    Raises:
        ValueError: as `bd_rate`, or no rate that both curves reach.
        ImportError: scipy is missing.
    Backends: scipy. Deterministic: yes.
    Source: as `bd_rate`.
    Example:
        >>> anchor = [(100, 30), (200, 33), (400, 36), (800, 39)]
        >>> round(bd_psnr(anchor, [(rate, quality + 1.5) for rate, quality in anchor]), 6)
        1.5
    """
    anchor, test = _curve("bd_psnr", "anchor", anchor), _curve("bd_psnr", "test", test)
    return float(_mean_distance("bd_psnr", anchor, test, "rate"))


def _curve(name: str, label: str, points: Curve) -> np.ndarray:
    """[N, 2] (log10 rate, quality), both rising."""
    curve = np.array([tuple(point) for point in points], np.float64)
    if curve.ndim != 2 or curve.shape[0] < 2 or curve.shape[1] != 2:
        _check.fail(name, f"expected `{label}` to hold two or more points (rate, quality).", points=list(points))
    if not np.isfinite(curve).all() or (curve[:, 0] <= 0).any():
        _check.fail(name, f"expected rates above 0 and finite qualities in `{label}`.", points=curve.tolist())
    curve[:, 0] = np.log10(curve[:, 0])
    curve = curve[np.lexsort((curve[:, 1], curve[:, 0]))]
    if (np.diff(curve, axis=0) <= 0).any():
        _check.fail(
            name,
            f"expected quality to rise with the rate along `{label}`.",
            "leave out the points that another point of the curve beats.",
            points=[(float(10**rate), float(quality)) for rate, quality in curve],
        )
    return curve


def _mean_distance(name: str, anchor: np.ndarray, test: np.ndarray, axis: str) -> float:
    """Mean of test(x) - anchor(x) over the x in both curves' range; columns are (x, y)."""
    low, high = max(anchor[0, 0], test[0, 0]), min(anchor[-1, 0], test[-1, 0])
    if low >= high:
        _check.fail(
            name,
            f"the curves have no {axis} in common.",
            "add points: another CRF or budget.",
            anchor=(float(anchor[0, 0]), float(anchor[-1, 0])),
            test=(float(test[0, 0]), float(test[-1, 0])),
        )
    try:
        from scipy.interpolate import PchipInterpolator
    except ImportError:
        _check.fail(name, "interpolation needs scipy.", "pip install scipy", error=ImportError)
    areas = [PchipInterpolator(curve[:, 0], curve[:, 1]).integrate(low, high) for curve in (anchor, test)]
    return (areas[1] - areas[0]) / (high - low)
