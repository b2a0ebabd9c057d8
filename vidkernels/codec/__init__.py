"""Coded video: the `.vkv` container and entropy coding. Bytes in, bytes out."""

from .container import (
    Audio,
    Color,
    ContainerReader,
    ContainerWriter,
    DamagedFileError,
    Gop,
    Header,
    Report,
    UnsupportedFileError,
    frame_hash,
    mux_audio,
    read_audio,
)
from .entropy import decode_symbols, encode_symbols
from .video import GaussianFile, open

__all__ = [
    "Audio",
    "Color",
    "ContainerReader",
    "ContainerWriter",
    "DamagedFileError",
    "GaussianFile",
    "Gop",
    "Header",
    "Report",
    "UnsupportedFileError",
    "decode_symbols",
    "encode_symbols",
    "frame_hash",
    "mux_audio",
    "open",
    "read_audio",
]
