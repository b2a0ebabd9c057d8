"""The state file of an unfinished fit: numbers as safetensors and facts as JSON, whole or not at all."""

from __future__ import annotations

import json
import os
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .. import _check
from .clip import Clip
from .protocol import Source

_VERSION = 1


def safetensors_for(doing: str):
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        _check.fail(
            doing, f"the state of a fit needs safetensors: {error}.", "pip install 'vidkernels[codec]'.", ImportError
        )
    return safetensors


def write_state(path: Path, clip: Clip, facts: dict, arrays: dict[str, np.ndarray]) -> None:
    """Replace the state at `path`; `facts` is what JSON can hold. The source is described along with them."""
    save = safetensors_for("fit").numpy.save
    source = clip.source
    facts = {
        "version": _VERSION, "path": str(source.path), "start": source.start, "end": source.end, "size": source.size,
        "fingerprint": clip.fingerprint, **facts,
    }  # fmt: skip
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.write(save(arrays, {"facts": json.dumps(facts)}))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


@contextmanager
def reading_state(path: Path):
    """(clip, facts, arrays) of a state; whatever is wrong with them inside the block is told as one error."""
    safetensors = safetensors_for("resume")
    try:
        with safetensors.safe_open(str(path), "np") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts["version"] != _VERSION:
            raise ValueError(f"version {facts['version']}")
        size = facts["size"]
        source = Source(Path(facts["path"]), facts["start"], facts["end"], tuple(size) if type(size) is list else size)
        clip = Clip(source)
        if clip.fingerprint != facts["fingerprint"]:
            raise ValueError(f"{source.path} is no longer the file that the fit began with")
        yield clip, facts, arrays
    except (KeyError, TypeError, ValueError, zlib.error, safetensors.SafetensorError) as error:
        if isinstance(error, ValueError) and "\n" in str(error):
            raise
        _check.fail("resume", f"{path} is not a state that can be resumed: {error}.")


def state_facts(path: Path) -> dict:
    """What a state says of itself; nothing is checked but its form."""
    safetensors = safetensors_for("resume")
    try:
        with safetensors.safe_open(str(path), "np") as file:
            facts = json.loads((file.metadata() or {})["facts"])
        if not isinstance(facts, dict):
            raise ValueError("no facts")
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        _check.fail("resume", f"{path} is not a state that can be resumed: {error}.")
    return facts
