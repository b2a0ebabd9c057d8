"""Audio goes through a `.vkv` file packet for packet."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from codec import vkv

from vidkernels.codec import (
    Audio,
    ContainerReader,
    mux_audio,
    read_audio,
)


@pytest.fixture
def source(tmp_path):
    """A second of noise and pictures: aac in an mp4, with the encoder's negative first time."""
    av = pytest.importorskip("av")
    path, rng = tmp_path / "source.mp4", np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        video, audio = out.add_stream("mpeg4", rate=25), out.add_stream("aac", rate=44100)
        video.width, video.height, video.pix_fmt, audio.layout = 64, 48, "yuv420p", "stereo"
        for i in range(25):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(video.encode(frame))
        for i in range(43):
            sound = av.AudioFrame.from_ndarray(
                (0.1 * rng.standard_normal((2, 1024))).astype(np.float32), format="fltp", layout="stereo"
            )
            sound.sample_rate, sound.pts, sound.time_base = 44100, 1024 * i, Fraction(1, 44100)
            out.mux(audio.encode(sound))
        out.mux(audio.encode(None))
        out.mux(video.encode(None))
    return path


def test_audio_goes_through_unchanged(source, tmp_path):
    audio = read_audio(source)
    assert (audio.codec, audio.rate, audio.layout, audio.time_base) == ("aac", 44100, "stereo", Fraction(1, 44100))
    assert len(audio.packets) > 40
    path = vkv.write(tmp_path / "x.vkv", audio=audio)
    with ContainerReader(path) as r:
        stored = r.audio()
        assert r.verify().ok
    mux_audio(source, stored, tmp_path / "back.mp4")
    back = read_audio(tmp_path / "back.mp4")
    for other in (stored, back):
        assert other.packets == audio.packets
        assert np.array_equal(other.times, audio.times)
        assert (other.codec, other.rate, other.layout, other.extradata) == ("aac", 44100, "stereo", audio.extradata)
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "back.mp4")) as file:
        assert sum(1 for _ in file.decode(audio=0)) >= 43
    with av.open(str(tmp_path / "back.mp4")) as file:
        assert sum(1 for _ in file.decode(video=0)) == 25


def test_audio_that_is_not_there_or_damaged(source, tmp_path):
    av = pytest.importorskip("av")
    silent = tmp_path / "silent.mp4"
    with av.open(str(source)) as i, av.open(str(silent), "w") as o:
        stream = o.add_stream_from_template(i.streams.video[0])
        for packet in i.demux(i.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                o.mux(packet)
    assert read_audio(silent) is None
    with pytest.raises(ValueError, match="read_audio: FFmpeg cannot read"):
        read_audio(tmp_path / "none.mp4")
    audio = read_audio(source)
    data = audio.to_bytes()
    for size in (*range(0, 1200, 7), len(data) - 1):
        with pytest.raises(ValueError, match="audio"):
            Audio.from_bytes(data[:size])
    with pytest.raises(ValueError, match="mux_audio: FFmpeg refused"):
        mux_audio(source, replace(audio, template=bytes(536)), silent)
    assert read_audio(silent) is None  # and the file that was there before is still there
