"""The header of a `.vkv` file: what the pictures are and which model draws them. Strict JSON with limits."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, NoReturn

from .._check import fail

MAX_HEADER_BYTES = 1 << 20
MAX_SIDE = 1 << 16
MAX_PIXELS = 1 << 28
_MAX_DEPTH = 16


@dataclass(frozen=True)
class Color:
    """Colour of the source by the code points of ITU-T H.273 (2 means unspecified); decoded frames are RGB uint8."""

    primaries: int = 2
    transfer: int = 2
    matrix: int = 2
    full_range: bool = False
    bit_depth: int = 8


@dataclass(frozen=True)
class Header:
    """What a reader must know before the first GOP.

    Convention: sizes are pixels before rotation; the shown picture is the rectangle of `width` x `height` whose top
    left corner lies at `crop` in the coded picture; then it is turned by `rotation` degrees clockwise.

    Args:     model: name of the representation, such as "gaussians" or "nerv"; decoders are chosen by it.
              width, height: size of the shown picture.
              time_base: seconds per unit of the presentation timestamps, a rational number.
              config: the model's own settings: JSON values (None, bool, int, float, str, list, dict).
              coded_size: (width, height) that the model draws; None: the shown size.
              crop: (x, y) of the shown picture inside the coded one.
              rotation: 0, 90, 180 or 270.
              pixel_aspect: width of a pixel over its height.
              color: of the source.
              exact: decoding gives the hashed frames bit for bit on every machine; otherwise only nearly.
              hash_bytes: bytes kept of each frame's SHA-256; 0, or 4 to 32.
              metadata: free text by name.
    Raises:   ValueError: a value out of range, or of a type that JSON does not keep.
    """

    model: str
    width: int
    height: int
    time_base: Fraction
    config: dict[str, Any] = field(default_factory=dict)
    coded_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    rotation: int = 0
    pixel_aspect: Fraction = Fraction(1)
    color: Color = Color()
    exact: bool = False
    hash_bytes: int = 8
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if self.coded_size is None:
            object.__setattr__(self, "coded_size", (self.width, self.height))
        try:
            _check(self)
        except (ValueError, TypeError) as error:
            fail("Header", f"{error}.", model=self.model, width=self.width, height=self.height)

    def to_bytes(self) -> bytes:
        """UTF-8 JSON, the same bytes for the same header. Fields with their default value are left out."""
        fields = {
            "model": self.model,
            "size": [self.width, self.height],
            "time_base": _pair(self.time_base),
            "config": self.config,
            "coded_size": list(self.coded_size),
            "crop": list(self.crop),
            "rotation": self.rotation,
            "pixel_aspect": _pair(self.pixel_aspect),
            "color": asdict(self.color),
            "exact": self.exact,
            "hash_bytes": self.hash_bytes,
            "metadata": self.metadata,
        }
        defaults = _DEFAULTS | {"coded_size": fields["size"], "color": asdict(Color())}
        kept = {k: v for k, v in fields.items() if k not in defaults or defaults[k] != v}
        try:
            text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            data = text.encode()
        except (ValueError, TypeError, RecursionError) as error:
            fail("Header", f"cannot be stored as JSON: {error}.", config=self.config)
        if len(data) > MAX_HEADER_BYTES:
            fail("Header", f"is {len(data)} bytes long, more than {MAX_HEADER_BYTES}.", "put bulk data into chunks.")
        if _loads(data) != kept:  # tuples, integer keys and the like would come back as something else
            fail("Header", "`config` or `metadata` holds values that JSON does not keep.", config=self.config)
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Header:
        """The header in `data`; ValueError names what is wrong, LookupError an unknown field that is required."""
        fields = _loads(data)
        if not isinstance(fields, dict):
            raise ValueError("the header is no JSON object")
        required = fields.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise ValueError("`required` of the header is no list of names")
        unknown = [name for name in required if name not in _FIELDS]
        if unknown:
            raise LookupError(f"the header field {unknown[0][:64]!r}")
        missing = {"model", "size", "time_base"} - set(fields)
        if missing:
            raise ValueError(f"the header lacks {sorted(missing)}")
        values = _DEFAULTS | {"coded_size": fields["size"], "color": {}} | {k: fields[k] for k in _FIELDS & set(fields)}
        try:
            width, height = _numbers("size", values["size"])
            color = values["color"]
            if not isinstance(color, dict):
                raise ValueError("`color` is no object")
            known = Color.__dataclass_fields__
            return cls(
                model=values["model"],
                width=width,
                height=height,
                time_base=_fraction("time_base", values["time_base"]),
                config=values["config"],
                coded_size=_numbers("coded_size", values["coded_size"]),
                crop=_numbers("crop", values["crop"]),
                rotation=values["rotation"],
                pixel_aspect=_fraction("pixel_aspect", values["pixel_aspect"]),
                color=Color(**{k: v for k, v in color.items() if k in known}),
                exact=values["exact"],
                hash_bytes=values["hash_bytes"],
                metadata=values["metadata"],
            )
        except ValueError as error:
            raise ValueError(str(error).splitlines()[0]) from None


_DEFAULTS = {
    "config": {},
    "crop": [0, 0],
    "rotation": 0,
    "pixel_aspect": [1, 1],
    "exact": False,
    "hash_bytes": 8,
    "metadata": {},
}
_FIELDS = {"model", "size", "time_base", "coded_size", "color", "required"} | set(_DEFAULTS)


def _pair(value: Fraction) -> list[int]:
    return [value.numerator, value.denominator]


def _numbers(name: str, value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(v) is int for v in value):
        raise ValueError(f"`{name}` is no pair of integers")
    return value[0], value[1]


def _fraction(name: str, value: object) -> Fraction:
    above, below = _numbers(name, value)
    if below <= 0:
        raise ValueError(f"`{name}` has no positive denominator")
    return Fraction(above, below)


def _integer(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"expected `{name}` between {low} and {high}, got {value!r:.40}")


def _check(h: Header) -> None:
    if not isinstance(h.model, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", h.model):
        raise ValueError("expected `model` of 1 to 64 letters, digits, dots, dashes and underscores")
    _integer("width", h.width, 1, MAX_SIDE)
    _integer("height", h.height, 1, MAX_SIDE)
    for name, pair in (("coded_size", h.coded_size), ("crop", h.crop)):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ValueError(f"expected `{name}` as a pair, got {pair!r:.40}")
    for axis, shown, coded, corner in zip("xy", (h.width, h.height), h.coded_size, h.crop):
        _integer(f"coded size in {axis}", coded, 1, MAX_SIDE)
        _integer(f"crop in {axis}", corner, 0, coded - shown)
    if h.coded_size[0] * h.coded_size[1] > MAX_PIXELS:
        raise ValueError(f"the coded picture has more than {MAX_PIXELS} pixels")
    for name in ("time_base", "pixel_aspect"):
        value = getattr(h, name)
        if not isinstance(value, Fraction) or value <= 0 or max(_pair(value)) >= 1 << 31:
            raise ValueError(f"expected `{name}` as a positive Fraction of 31-bit numbers, got {value!r:.40}")
    if type(h.rotation) is not int or h.rotation not in (0, 90, 180, 270):
        raise ValueError(f"expected `rotation` of 0, 90, 180 or 270, got {h.rotation!r:.40}")
    if not isinstance(h.color, Color) or type(h.color.full_range) is not bool:
        raise ValueError("expected `color` as a Color with a true or false `full_range`")
    for name in ("primaries", "transfer", "matrix"):
        _integer(name, getattr(h.color, name), 0, 255)
    _integer("bit_depth", h.color.bit_depth, 1, 16)
    if type(h.exact) is not bool:
        raise ValueError("expected `exact` to be True or False")
    _integer("hash_bytes", h.hash_bytes, 0, 32)
    if 0 < h.hash_bytes < 4:
        raise ValueError("expected `hash_bytes` of 0 or at least 4")
    if not isinstance(h.config, dict) or not isinstance(h.metadata, dict):
        raise ValueError("expected `config` and `metadata` as dicts")
    if not all(isinstance(k, str) and isinstance(v, str) for k, v in h.metadata.items()):
        raise ValueError("expected `metadata` to map text to text")


def _loads(data: bytes) -> Any:
    """Strict JSON: no NaN, no repeated names, not deeper than 16, not longer than the limit."""
    if len(data) > MAX_HEADER_BYTES:
        raise ValueError(f"the header is longer than {MAX_HEADER_BYTES} bytes")
    try:
        value = json.loads(
            bytes(data).decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite
        )
        deep = _depth(value)
    except RecursionError:
        deep = _MAX_DEPTH + 1
    except ValueError as error:
        raise ValueError(f"the header is no strict JSON ({str(error)[:100]})") from None
    if deep > _MAX_DEPTH:
        raise ValueError(f"the header is nested deeper than {_MAX_DEPTH}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is repeated")
    return found


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) != float("inf") else _constant(text[:40])


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0
