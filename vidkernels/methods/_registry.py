"""The registry is the directory: methods/<family>/<name>.py is the method `<name>`."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from types import ModuleType

from torch import nn

from ._card import Card

_ROOT = Path(__file__).parent


def _files() -> dict[str, str]:
    """Method name -> family, from file names alone."""
    found: dict[str, str] = {}
    for path in sorted(_ROOT.glob("*/*.py")):
        family, name = path.parent.name, path.stem
        if name.startswith("_") or family.startswith("_"):
            continue
        if name in found:
            raise RuntimeError(
                f"methods: two files are named {name!r}, in {found[name]} and {family}.\n"
                "HINT: a method's name is its registry key; rename one of them."
            )
        found[name] = family
    return found


def list_methods(family: str | None = None) -> list[str]:
    """Names of all methods (of one family, if given), sorted. Imports none of them.

    Example:
        >>> "videomae" in list_methods("masked_video")
        True
    """
    return sorted(name for name, folder in _files().items() if family in (None, folder))


def _module(name: str) -> ModuleType:
    files = _files()
    if name not in files:
        close = difflib.get_close_matches(name, files, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known methods: {', '.join(sorted(files))}."
        raise KeyError(f"methods: expected the name of a method, got {name!r}.\nHINT: {hint}")
    return importlib.import_module(f"{__package__}.{files[name]}.{name}")


def card(name: str) -> Card:
    """The card of one method.

    Example:
        >>> card("videomae").arxiv
        '2203.12602'
    """
    return _module(name).CARD


def get(name: str) -> type[nn.Module]:
    """The class of one method; build it with `get(name)(get(name).Config.tiny())`.

    Raises:   KeyError: no such method; names the closest one.
    Example:
        >>> get("videomae").__name__
        'VideoMAE'
    """
    module = _module(name)
    classes = [
        value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and value.__module__ == module.__name__
        and not key.startswith("_")
    ]
    if len(classes) != 1:
        raise RuntimeError(
            f"methods: expected exactly one public nn.Module in {module.__name__}, got {len(classes)}.\n"
            "HINT: prefix helper modules with an underscore."
        )
    return classes[0]
