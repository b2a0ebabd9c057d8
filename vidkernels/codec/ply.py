"""3D Gaussians as PLY files, in the layout that 3D Gaussian splatting tools exchange."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from vidkernels import _check

_MAX_HEADER = 1 << 16
_MAX_PROPERTIES = 1024
_MAX_NUMBER = 64  # characters
_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "<i2", "int16": "<i2", "ushort": "<u2",
    "uint16": "<u2", "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4", "float": "<f4", "float32": "<f4",
    "double": "<f8", "float64": "<f8",
}  # fmt: skip
_FIXED = {
    "means": ["x", "y", "z"],
    "normals": ["nx", "ny", "nz"],
    "colors": ["f_dc_0", "f_dc_1", "f_dc_2"],
    "opacities": ["opacity"],
    "scales": ["scale_0", "scale_1", "scale_2"],
    "quats": ["rot_0", "rot_1", "rot_2", "rot_3"],
}
_NEEDED = {"means", "colors", "opacities", "scales", "quats"}


@dataclass
class GaussianCloud:
    """3D Gaussians as the file stores them: nothing is activated, so that reading and writing change no bit.

    Args:     means: [N, 3] float32, centres.
              colors: [N, 3], coefficients f_dc of the constant spherical harmonic; rgb = 0.5 + 0.28209479 f_dc.
              opacities: [N], logits; alpha = sigmoid(opacities).
              scales: [N, 3], natural logarithms of the standard deviations.
              quats: [N, 4], rotation (w, x, y, z), any length.
              harmonics: [N, 3, K] higher coefficients f_rest (channel first, as the file), K = (degree + 1)^2 - 1.
              normals: [N, 3], unused by renderers; zeros.
    """

    means: torch.Tensor
    colors: torch.Tensor
    opacities: torch.Tensor
    scales: torch.Tensor
    quats: torch.Tensor
    harmonics: torch.Tensor | None = None
    normals: torch.Tensor | None = None

    def __post_init__(self):
        count = len(self.means)
        if self.harmonics is None:
            self.harmonics = torch.zeros(count, 3, 0)
        if self.normals is None:
            self.normals = torch.zeros(count, 3)
        for name, columns in _FIXED.items():
            value = getattr(self, name)
            shape = (count,) if name == "opacities" else (count, len(columns))
            if value.dtype is not torch.float32 or tuple(value.shape) != shape:
                _check.fail("GaussianCloud", f"expected `{name}` of shape {list(shape)}, float32.", **{name: value})
        rest = self.harmonics
        if (
            rest.dtype is not torch.float32
            or rest.shape[:2] != (count, 3)
            or rest.dim() != 3
            or not _full(rest.shape[2])
        ):
            _check.fail("GaussianCloud", "expected `harmonics` of shape [N, 3, (degree + 1)^2 - 1], float32.", got=rest)


def write_ply(path: str | os.PathLike, cloud: GaussianCloud) -> None:
    """Write Gaussians as binary little-endian PLY, in one step.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/points.ply"
        >>> zeros = torch.zeros(5, 3)
        >>> write_ply(path, GaussianCloud(zeros, zeros, zeros[:, 0], zeros, torch.ones(5, 4)))
        >>> read_ply(path).quats.shape
        torch.Size([5, 4])
    """
    rest = cloud.harmonics.flatten(1)
    order = ["x", "y", "z", "nx", "ny", "nz", *_FIXED["colors"], *(f"f_rest_{i}" for i in range(rest.shape[1]))]
    order += ["opacity", *_FIXED["scales"], *_FIXED["quats"]]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(cloud.means)}"]
    lines += [f"property float {name}" for name in order]
    parts = (cloud.means, cloud.normals, cloud.colors, rest, cloud.opacities[:, None], cloud.scales, cloud.quats)
    table = np.concatenate([part.detach().cpu().numpy() for part in parts], 1).astype("<f4", copy=False)
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with open(temporary, "wb") as file:
            file.write("\n".join([*lines, "end_header", ""]).encode())
            file.write(table.tobytes())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_ply(path: str | os.PathLike) -> GaussianCloud:
    """Read Gaussians from a PLY file, binary little-endian or ASCII; properties of other names are passed over.

    Returns:  the Gaussians as stored (float32; other number types are converted).
    Raises:   ValueError: not a PLY file of Gaussians, cut short, or with a header that no such file has; the message
                  says where. Never more memory than a few times the file.
    """
    data = Path(path).read_bytes()
    reader = _Header(str(path), data)
    names = {name for name, _ in reader.properties}
    fields = {}
    for field, columns in _FIXED.items():
        missing = [column for column in columns if column not in names]
        if missing and (field in _NEEDED or len(missing) < len(columns)):
            reader.refuse(f"the vertex has no property {missing[0]!r}")
        if not missing:
            fields[field] = columns
    rest = [f"f_rest_{i}" for i in range(sum(name.startswith("f_rest_") for name in names))]
    if not names.issuperset(rest) or len(rest) % 3 or not _full(len(rest) // 3):
        reader.refuse(f"{len(rest)} properties f_rest_* are no complete spherical harmonics")
    table = _ascii_table(reader) if reader.ascii else _binary_table(reader)
    values = {field: _columns(table, columns, reader.count) for field, columns in fields.items()}
    values["opacities"] = values["opacities"][:, 0]
    harmonics = _columns(table, rest, reader.count)
    return GaussianCloud(**values, harmonics=harmonics.reshape(reader.count, 3, len(rest) // 3))


class _Header:
    """The parsed header: number of vertices, their properties [(name, numpy type)], where the body begins."""

    def __init__(self, path: str, data: bytes):
        self.path, self.data, self.at = path, data, 0
        self.properties: list[tuple[str, str]] = []
        self.count, self.ascii = 0, False
        if data[:4] not in (b"ply\n", b"ply\r"):
            self.refuse("it does not begin with 'ply'")
        self._parse()
        self.end = self.at

    def refuse(self, reason: str) -> NoReturn:
        _check.fail("read_ply", f"{reason}.", path=self.path, offset=self.at, bytes=len(self.data))

    def _parse(self) -> None:
        self._line()
        words = self._line()
        if words[:1] != ["format"] or len(words) != 3 or words[1] not in ("ascii", "binary_little_endian"):
            self.refuse("the format is neither 'ascii' nor 'binary_little_endian'")
        self.ascii = words[1] == "ascii"
        elements = 0
        while (words := self._line()) != ["end_header"]:
            if not words or words[0] in ("comment", "obj_info"):
                continue
            if words[0] == "element" and len(words) == 3:
                elements += 1
                if elements == 1:
                    self._vertices(words)
            elif words[0] == "property" and elements == 1:
                self._property(words)
            elif words[0] != "property" or elements == 0:
                self.refuse(f"unexpected header line {' '.join(words)[:60]!r}")
        if elements == 0:
            self.refuse("the header has no element")

    def _vertices(self, words: list[str]) -> None:
        if words[1] != "vertex":
            self.refuse("the first element is not 'vertex'")
        if not words[2].isascii() or not words[2].isdigit() or len(words[2]) > 10:
            self.refuse(f"the number of vertices is {words[2][:20]!r}")
        self.count = int(words[2])

    def _property(self, words: list[str]) -> None:
        if len(words) != 3 or words[1] not in _TYPES:
            self.refuse(f"a vertex property is {' '.join(words[1:])[:60]!r}")
        if words[2] in dict(self.properties) or len(self.properties) == _MAX_PROPERTIES:
            self.refuse(f"the property {words[2][:40]!r} is there twice, or one too many")
        self.properties.append((words[2], _TYPES[words[1]]))

    def _line(self) -> list[str]:
        stop = self.data.find(b"\n", self.at, min(len(self.data), _MAX_HEADER))
        if stop < 0:
            self.refuse("the header does not end")
        line = self.data[self.at : stop].rstrip(b"\r")
        if not line.isascii() or b"\0" in line:
            self.refuse("a header line is not text")
        self.at = stop + 1
        return line.decode("ascii").split()


def _fits(reader: _Header, needed: int) -> None:
    present = len(reader.data) - reader.end
    if needed > present:
        reader.refuse(f"cut short: {reader.count} vertices need {needed} bytes, {present} are there")


def _binary_table(reader: _Header) -> np.ndarray:
    record = np.dtype(reader.properties)
    _fits(reader, reader.count * record.itemsize)
    return np.frombuffer(reader.data, record, reader.count, reader.end)


def _ascii_table(reader: _Header) -> dict[str, np.ndarray]:
    columns = len(reader.properties)
    _fits(reader, reader.count * columns * 2 - 1)  # a digit and a blank each; the last blank may be missing
    numbers = np.empty((reader.count, columns))
    for row in range(reader.count):
        stop = reader.data.find(b"\n", reader.at)
        line = reader.data[reader.at : stop if stop >= 0 else len(reader.data)]
        words = line.split()
        try:
            if len(words) != columns or max(map(len, words)) > _MAX_NUMBER:
                raise ValueError
            numbers[row] = [float(word) for word in words]
        except ValueError:
            reader.refuse(f"vertex {row} is not {columns} numbers")
        reader.at += len(line) + 1
    return {name: numbers[:, i] for i, (name, _) in enumerate(reader.properties)}


def _columns(table, names: list[str], count: int) -> torch.Tensor:
    """[N, len(names)] float32; float32 columns are copied bit by bit, NaNs included."""
    out = np.empty((count, len(names)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for i, name in enumerate(names):
            if table[name].dtype == np.float32:
                out.view(np.uint32)[:, i] = np.ascontiguousarray(table[name]).view(np.uint32)
            else:
                out[:, i] = table[name]
    return torch.from_numpy(out)


def _full(coefficients: int) -> bool:
    return math.isqrt(coefficients + 1) ** 2 == coefficients + 1
