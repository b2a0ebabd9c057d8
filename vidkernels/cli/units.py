"""Human units on the command line: 60s, 500kB, 34dB, 0:48, 1280x720."""

from __future__ import annotations

import math
import re

_SECONDS = {"ms": 1e-3, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
_BYTES = {"b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
_NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)


def duration(text: str) -> float:
    """Seconds above 0: "60s", "1.5min", "2h", "500ms"; a bare number is seconds."""
    return _quantity(text, _SECONDS, "s", "a time above 0, such as 60s, 1.5min or 2h")


def size(text: str) -> int:
    """Bytes, at least 1: "500kB" is 500,000, "500KiB" 512,000; a bare number is bytes."""
    value = math.floor(_quantity(text, _BYTES, "b", "a size of at least a byte, such as 500kB, 1.5MB or 2MiB"))
    if value < 1:
        raise ValueError(f"{text!r} is less than a byte")
    return value


def decibels(text: str) -> float:
    """PSNR above 0: "34" or "34dB"."""
    return _quantity(text, {"db": 1}, "db", "decibels above 0, such as 34 or 34.5dB")


def position(text: str) -> float:
    """A time on the source's clock, 0 included."""
    return 0.0 if re.fullmatch(r"0+(\.0*)?\s*(s|ms|m|min|h)?", text.strip(), re.IGNORECASE) else duration(text)


def frame_range(text: str) -> slice:
    """ "a:b", "a:", ":b" as in Python, negative ones from the end; "a" is that frame alone."""
    match = re.fullmatch(r"(-?\d{1,9})?(:)?(-?\d{1,9})?", text.strip())
    if not match or (match[1] is None and match[2] is None):
        raise ValueError(f"{text!r} is no range of frames, such as 0:48, 100: or 7")
    first, colon, last = match.groups()
    if colon is None:
        return slice(int(first), int(first) + 1 or None)
    return slice(int(first) if first else None, int(last) if last else None)


def picture(text: str) -> tuple[int, int] | int:
    """(height, width) of "1280x720", or the short side "720"."""
    match = re.fullmatch(r"(\d{1,5})(?:\s*x\s*(\d{1,5}))?", text.strip(), re.IGNORECASE)
    if not match or int(match[1]) == 0 or (match[2] is not None and int(match[2]) == 0):
        raise ValueError(f"{text!r} is no picture size, such as 1280x720 (width x height) or 720 (short side)")
    return int(match[1]) if match[2] is None else (int(match[2]), int(match[1]))


def numbers(text: str) -> list[float]:
    """Comma-separated numbers."""
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"{text!r} is no list of numbers, such as 20,28,36")
    return values


def words(text: str) -> list[str]:
    """Comma-separated names; "none" is an empty list."""
    return [] if text == "none" else [word.strip() for word in text.split(",") if word.strip()]


def _quantity(text: str, units: dict[str, float], usual: str, expected: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    unit = (match[2] or usual).lower() if match else ""
    if unit not in units:
        raise ValueError(f"{text!r} is not {expected}")
    value = float(match[1]) * units[unit]
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is not {expected}")
    return value
