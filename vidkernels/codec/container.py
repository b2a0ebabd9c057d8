"""The `.vkv` file: what a coded video is kept in, whatever model draws it. docs/container.md has every byte.

    with ContainerWriter("clip.vkv", Header("gaussians", 1280, 720, Fraction(1, 30), exact=True)) as w:
        w.add_chunk("CODE", codebook)                            # optional: bytes that all GOPs share
        w.add_gop(0, pts, {0: base, 1: finer}, [frame_hash(f) for f in decoded])
        w.set_audio(read_audio("source.mp4"))                    # optional

    with ContainerReader("clip.vkv") as r:
        r.header, r.frames, r.duration, r.gops[3], len(r.gops)
        gop = r.gop_of_time(12.5)                                # or gop_of_frame(i); frame_of_time(seconds)
        base = r.read(gop, 0)                                    # memoryview into the mapped file, checksum checked
        r.pts(gop), r.hashes(gop), r.chunk("CODE"), r.audio()
        r.verify(decode)                                         # every byte, and every frame against its hash

`ContainerWriter.append(path)` adds GOPs to a finished file. Damage raises DamagedFileError, a file that needs a newer
reader UnsupportedFileError; both are ValueErrors.
"""

from .audio import Audio, mux_audio, read_audio
from .errors import DamagedFileError, UnsupportedFileError
from .header import Color, Header
from .reader import ContainerReader, Gop, Report, frame_hash
from .writer import ContainerWriter

__all__ = [
    "Audio",
    "Color",
    "ContainerReader",
    "ContainerWriter",
    "DamagedFileError",
    "Gop",
    "Header",
    "Report",
    "UnsupportedFileError",
    "frame_hash",
    "mux_audio",
    "read_audio",
]
