"""What a reader says when it refuses a file: the file, the place, the chunk, the reason."""

from __future__ import annotations

import os
from typing import NoReturn

from .._check import fail


class DamagedFileError(ValueError):
    """The bytes are not what a `.vkv` file may hold. Attributes: path, offset, chunk, reason."""

    def __init__(self, message: str, path: str = "", offset: int = 0, chunk: str = "", reason: str = ""):
        super().__init__(message)
        self.path, self.offset, self.chunk, self.reason = path, offset, chunk, reason


class UnsupportedFileError(ValueError):
    """A sound file that needs a newer reader: a later format version, an unknown required field or chunk."""


def damaged(path: str | os.PathLike, offset: int, chunk: str, reason: str, hint: str = "") -> NoReturn:
    """Raise DamagedFileError in the house's form."""
    path = str(path)
    fail(
        "vkv",
        f"damaged file: {reason}.",
        hint or "copy or download the file again; ContainerReader(path, partial=True) reads what is left.",
        error=lambda text: DamagedFileError(text, path, offset, chunk, reason),
        path=path,
        offset=offset,
        chunk=chunk,
    )


def unsupported(path: str | os.PathLike, what: str) -> NoReturn:
    """Raise UnsupportedFileError in the house's form."""
    hint = "install a newer vidkernels; this one would decode it wrongly."
    fail("vkv", f"{what} is not known to this reader.", hint, error=UnsupportedFileError, path=str(path))
