"""The audio stream of the source, kept packet for packet and written back beside the decoded pictures."""

from __future__ import annotations

import heapq
import io
import json
import os
import struct
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .._check import fail

_HEAD = struct.Struct("<II")  # bytes of the JSON parameters, number of packets
_PACKET = np.dtype([("pts", "<i8"), ("dts", "<i8"), ("duration", "<u4"), ("size", "<u4")])
_MAX_PARAMETERS = 1 << 20
_FIELDS = {"codec": str, "rate": int, "layout": str, "time_base": list, "extradata": str, "template": str}


@dataclass(frozen=True)
class Audio:
    """An encoded audio stream.

    codec, rate, layout: FFmpeg's codec and channel layout names, samples a second.
    time_base: seconds per unit of `times`.
    extradata: the codec's own parameters.
    times: [packets, 3] int64: presentation time, decoding time, duration.
    packets: the bytes of each packet.
    template: a NUT file with the first packet: FFmpeg's own words for the codec parameters, to write packets back with.
    """

    codec: str
    rate: int
    layout: str
    time_base: Fraction
    extradata: bytes
    times: np.ndarray
    packets: tuple[bytes, ...]
    template: bytes

    def to_bytes(self) -> bytes:
        """Payload of an AUDI chunk."""
        base = [self.time_base.numerator, self.time_base.denominator]
        values = (self.codec, self.rate, self.layout, base, self.extradata.hex(), self.template.hex())
        text = json.dumps(dict(zip(_FIELDS, values)), separators=(",", ":")).encode()
        table = np.zeros(len(self.packets), _PACKET)
        for column, name in enumerate(("pts", "dts", "duration")):
            table[name] = self.times[:, column]
        table["size"] = [len(p) for p in self.packets]
        return _HEAD.pack(len(text), len(table)) + text + table.tobytes() + b"".join(self.packets)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Audio:
        """The stream in the payload of an AUDI chunk; ValueError says what is wrong with it."""
        if len(data) < _HEAD.size:
            raise ValueError("the audio chunk is too short")
        length, count = _HEAD.unpack_from(data)
        start = _HEAD.size + length
        if length > _MAX_PARAMETERS or start + count * _PACKET.itemsize > len(data):
            raise ValueError("the packet table of the audio is longer than its chunk")
        values = _parameters(bytes(data[_HEAD.size : start]))
        table = np.frombuffer(data, _PACKET, count, start)
        ends = np.cumsum(table["size"], dtype=np.int64) + start + count * _PACKET.itemsize
        if (int(ends[-1]) if count else start) != len(data):
            raise ValueError("the audio packets do not fill their chunk")
        begins = ends - table["size"]
        times = np.stack([table[name].astype(np.int64) for name in ("pts", "dts", "duration")], 1)
        packets = tuple(bytes(data[a:b]) for a, b in zip(begins.tolist(), ends.tolist()))
        return cls(**values, times=times, packets=packets)


def _parameters(text: bytes) -> dict[str, Any]:
    try:
        values = json.loads(text.decode())
        if not isinstance(values, dict) or any(type(values.get(k)) is not t for k, t in _FIELDS.items()):
            raise ValueError("a parameter is missing or of the wrong type")
        above, below = values["time_base"]
        if not (type(above) is type(below) is int and 0 < above < 1 << 31 and 0 < below < 1 << 31):
            raise ValueError("the time base is out of range")
        if not 0 < values["rate"] < 1 << 24 or max(len(values["codec"]), len(values["layout"])) > 64:
            raise ValueError("the rate or a name is out of range")
        blobs = {k: bytes.fromhex(values[k]) for k in ("extradata", "template")}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the parameters of the audio are unreadable ({str(error)[:100]})") from None
    return {k: values[k] for k in ("codec", "rate", "layout")} | blobs | {"time_base": Fraction(above, below)}


def _import_av():
    try:
        import av
    except ImportError:
        fail("vidkernels.codec", "audio needs PyAV.", "pip install 'vidkernels[video]'", error=ImportError)
    return av


def read_audio(path: str | os.PathLike) -> Audio | None:
    """The first audio stream of a media file as it is stored, or None if it has none. Nothing is decoded."""
    av = _import_av()
    try:
        with _open(av, path) as file:
            if not file.streams.audio:
                return None
            stream = file.streams.audio[0]
            packets = [p for p in file.demux(stream) if p.size and p.pts is not None and p.dts is not None]
            if not packets:
                return None
            times = [(p.pts, p.dts, p.duration or 0) for p in packets]
            blobs = tuple(bytes(p) for p in packets)
            context = stream.codec_context
            return Audio(
                codec=context.codec.canonical_name,
                rate=context.sample_rate,
                layout=context.layout.name,
                time_base=Fraction(stream.time_base),
                extradata=bytes(context.extradata or b""),
                times=np.array(times, np.int64).reshape(-1, 3),
                packets=blobs,
                template=_template(av, stream, packets[0]),
            )
    except (av.error.FFmpegError, OSError) as error:
        fail("read_audio", f"FFmpeg cannot read the file: {error}.", path=str(path))


def mux_audio(video: str | os.PathLike, audio: Audio, path: str | os.PathLike) -> None:
    """Write the packets of a video file and of `audio` into one file, both as they are.

    Args:     video: a file with one video stream, such as `vidkernels.data.write_video` makes.
              audio: the stream to put beside it; its times are on the same clock as the video's.
              path: the file to write; its suffix chooses the format. It appears when it is complete.
    Raises:   ValueError: FFmpeg cannot read one of them, or the format does not hold this codec.
    """
    av = _import_av()
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem[:64]}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        parameters = io.BytesIO(audio.template)
        with (
            _open(av, video) as file,
            av.open(parameters, format="nut") as template,
            av.open(temporary, "w") as out,
        ):
            pictures = file.streams.video[0]
            streams = [out.add_stream_from_template(s) for s in (pictures, template.streams.audio[0])]
            frames = ((p, streams[0]) for p in file.demux(pictures) if p.dts is not None)
            sounds = ((p, streams[1]) for p in _packets(av, audio))
            for packet, stream in heapq.merge(frames, sounds, key=lambda x: x[0].dts * x[0].time_base):
                packet.stream = stream
                out.mux(packet)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private to their owner
        os.replace(temporary, path)
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        fail("mux_audio", f"FFmpeg refused: {error}.", video=str(video), path=str(path), codec=audio.codec)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _open(av, path: str | os.PathLike):
    """Only the local file itself is read: playlists that point elsewhere are refused by the protocol list."""
    return av.open(f"file:{os.fspath(path)}", options={"protocol_whitelist": "file"}, metadata_errors="replace")


def _packets(av, audio: Audio):
    for data, (pts, dts, duration) in zip(audio.packets, audio.times.tolist()):
        packet = av.Packet(data)
        packet.pts, packet.dts, packet.duration, packet.time_base = pts, dts, duration, audio.time_base
        yield packet


def _template(av, stream, packet) -> bytes:
    """`packet` is read again by nobody: muxing it changes its times."""
    file = io.BytesIO()
    with av.open(file, "w", format="nut") as out:
        packet.stream = out.add_stream_from_template(stream)
        out.mux(packet)
    return file.getvalue()
