"""Reading, sampling, making and writing video.

`VideoReader`, `write_video` and `sample_clip` work on files (PyAV is imported on first use), `ClipSampler` and
`VideoClipDataset` turn files into training clips, and `SceneEngine` makes clips whose masks, flow and depth are known
exactly. Importing this package costs nothing: every name is loaded on first use.
"""

from importlib import import_module

_HOME = {
    "VideoReader": "reader",
    "MissingVideoError": "_container",
    "ClipSampler": "sampler",
    "VideoClipDataset": "dataset",
    "write_video": "writer",
    "sample_clip": "samples",
    "SceneEngine": "scene",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(_HOME))
