"""A finished file as an append finds it, so that it can tell whether it is still the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import _check
from .container import ContainerReader, ContainerWriter


@dataclass(frozen=True)
class Onto:
    """frames: in the file. end: of the last one, in ticks of the file's clock. bytes: of the file."""

    frames: int
    end: int
    bytes: int

    @classmethod
    def of(cls, reader: ContainerReader) -> Onto:
        return cls(reader.frames, reader.gops[-1].end_pts, reader.end)

    def same(self, path: Path) -> Onto:
        """Itself, if the file at `path` is still like this; else ValueError."""
        with ContainerReader(path) as reader:
            if Onto.of(reader) != self:
                raise ValueError(f"{path} is no longer the file that the append began with")
        return self

    def writer(self, path: Path) -> ContainerWriter:
        """What adds to the file; ValueError if it is no longer like this."""
        writer = ContainerWriter.append(path)
        if (writer.frames, writer.end) != (self.frames, self.bytes):
            writer.abort()
            _check.fail("append", "the file has changed in the meantime.", path=str(path))
        return writer
