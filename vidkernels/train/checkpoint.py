"""Checkpoints that survive a crash at any moment.

A file is a torch archive followed by the SHA-256 of its bytes. Writing goes to a temporary file, which is
flushed to the disk before it takes the final name; the file it replaces stays as `<name>.prev`. So at every
moment at least one complete checkpoint exists, and a damaged one is noticed, not loaded.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch

_MARK = b"vksha256"
_FOOTER = len(_MARK) + hashlib.sha256().digest_size


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, or belongs to another run."""


def previous(path: str | os.PathLike) -> Path:
    """Where the checkpoint before `path` is kept."""
    return Path(f"{os.fspath(path)}.prev")


def save_checkpoint(path: str | os.PathLike, state: dict[str, Any]) -> None:
    """Write `state` so that a crash leaves the old file, the new file, or the old one as `.prev`.

    Args:     path: final name; its folder is created.
              state: tensors, numbers, strings, lists and dicts of them: what `weights_only` loading reads.
    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(folder + "/last.pt", {"step": 3})
        ...     load_checkpoint(folder + "/last.pt")["step"]
        3
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    fresh = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        with open(fresh, "wb") as file:
            file.write(payload)
            file.write(_MARK + hashlib.sha256(payload).digest())
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.replace(path, previous(path))
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # A rename is durable only once its folder is; some systems cannot open folders, and have no such call.
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load_checkpoint(path: str | os.PathLike, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint, or the one before it if this one is damaged or missing.

    Args:     path: the name given to `save_checkpoint`.
              map_location: as in torch.load.
    Returns:  the saved state. Only data is read, never code (`weights_only`).
    Raises:   CheckpointError: neither file can be read; gives the reason for each.
    """
    try:
        return _read(Path(path), map_location)
    except CheckpointError as error:
        if not previous(path).exists():
            raise
        try:
            state = _read(previous(path), map_location)
        except CheckpointError as second:
            raise CheckpointError(f"{error}\nThe one before it cannot be used either: {second}") from None
        warnings.warn(f"{error}\nContinuing from {previous(path)} instead.", stacklevel=2)
        return state


def _read(path: Path, map_location: Any) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _error(path, error.strerror or str(error), "check the path.") from None
    payload, footer = memoryview(data)[:-_FOOTER], data[-_FOOTER:]
    hint = "the file was cut short or changed; use an older copy."
    if len(data) <= _FOOTER or not footer.startswith(_MARK):
        raise _error(path, f"no checksum at the end of its {len(data)} bytes", hint)
    if hashlib.sha256(payload).digest() != footer[len(_MARK) :]:
        raise _error(path, "its bytes do not match their checksum", hint)
    try:
        return torch.load(io.BytesIO(payload), map_location=map_location, weights_only=True)
    except Exception as error:
        # Intact bytes that torch refuses: written by something else, or holding more than data.
        reason = str(error).splitlines()[0]
        raise _error(path, reason, "only files of save_checkpoint can be loaded.") from error


def _error(path: Path, reason: str, hint: str) -> CheckpointError:
    return CheckpointError(f"load_checkpoint: cannot use {path}: {reason}.\nHINT: {hint}")
