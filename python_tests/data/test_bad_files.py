import random
import struct
import warnings
import wave
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from vidkernels.data import VideoReader, write_video


def refused(path, *words):
    with pytest.raises((ValueError, RuntimeError)) as caught:
        VideoReader(path)
    text = str(caught.value)
    assert str(path) in text
    for word in words:
        assert word in text, text


def test_missing_file(tmp_path):
    refused(tmp_path / "nothing.mp4", "no such file")
    with pytest.raises(FileNotFoundError):
        VideoReader(tmp_path / "nothing.mp4")


def test_folder_and_empty_file(tmp_path):
    refused(tmp_path, "not a regular file")
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "empty")


def test_text_files(tmp_path):
    for name in ("notes.txt", "notes.mp4"):
        (tmp_path / name).write_text("These are words.\n" * 60)
        refused(tmp_path / name, "cannot read the file as video")


def test_picture(tmp_path, numbered_frames):
    import av

    for name, kind in (("picture.png", "rgb24"), ("picture.jpg", "yuvj420p")):
        frame = av.VideoFrame.from_ndarray(numbered_frames(1)[0].numpy(), format="rgb24").reformat(format=kind)
        codec = av.CodecContext.create("png" if name.endswith("png") else "mjpeg", "w")
        codec.width, codec.height, codec.pix_fmt, codec.time_base = 64, 48, kind, Fraction(1, 25)
        (tmp_path / name).write_bytes(b"".join(bytes(p) for p in codec.encode(frame) + codec.encode(None)))
        refused(tmp_path / name, "picture")


def test_audio_only(tmp_path):
    with wave.open(str(tmp_path / "tone.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(struct.pack("<4000h", *(1000 * (i % 7) for i in range(4000))))
    refused(tmp_path / "tone.wav", "no video stream", "audio")


def test_moov_missing(bframes, tmp_path):
    data = Path(bframes).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: data.index(b"moov") - 4])
    refused(tmp_path / "cut.mp4", "moov")


def test_cut_mdat_gives_what_is_there(tmp_path, numbered_frames, plain_decode):
    whole = tmp_path / "whole.mp4"
    write_video(whole, numbered_frames(30), 25, options={"g": "10", "bf": "0", "movflags": "faststart"})
    expected = plain_decode(whole)
    data = whole.read_bytes()
    if data.index(b"moov") > data.index(b"mdat"):  # the muxer option did not reach it: move the index by hand
        data = index_first(data)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: int(len(data) * 0.8)])
    with pytest.warns(RuntimeWarning, match="cut short: .* of 30 frames"):
        reader = VideoReader(cut)
    assert 5 < len(reader) < 30
    for frame, right in zip(reader, expected):
        assert torch.equal(frame, right)
    with pytest.raises(RuntimeError, match=f"frame {len(reader)} is missing: the file is cut short"):
        reader[len(reader)]
    with pytest.raises(IndexError):
        reader[30]


def index_first(data):
    """Move `moov` before `mdat` and shift the chunk offsets by its size."""
    boxes, at = {}, 0
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        boxes[kind] = bytearray(data[at : at + length])
        at += length
    moov = boxes[b"moov"]
    entry = moov.index(b"stco") + 8
    (count,) = struct.unpack(">I", moov[entry : entry + 4])
    for k in range(count):
        at = entry + 4 + 4 * k
        (offset,) = struct.unpack(">I", moov[at : at + 4])
        moov[at : at + 4] = struct.pack(">I", offset + len(moov))
    return bytes(boxes[b"ftyp"] + moov + boxes.get(b"free", b"") + boxes[b"mdat"])


def test_one_damaged_frame_is_named_and_the_others_stay(make_video, tmp_path, plain_decode):
    """All-intra file, one packet overwritten: that frame alone may fail, and by its number."""
    import av

    path = make_video("pictures.mkv", codec="mjpeg", crf=None, pix_fmt="yuvj420p")
    expected = plain_decode(path)
    with av.open(path) as container:
        packet = next(p for k, p in enumerate(container.demux(video=0)) if k == 11)
        body = bytes(packet)
    data = Path(path).read_bytes().replace(body, b"\x00" * len(body))
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(data)
    reader = VideoReader(broken)
    with pytest.raises(RuntimeError, match="frame 11 cannot be decoded"):
        reader[11]
    for i in (0, 10, 12, 39):
        assert torch.equal(reader[i], expected[i])


def test_mutated_files_never_crash(make_video, tmp_path):
    """200 damaged copies, opened and read in this process: an error of ours, or frames; nothing else."""
    path = make_video("small.mp4", count=12, height=32, width=48, options={"g": "4", "bf": "2"})
    original = Path(path).read_bytes()
    dice = random.Random(7)
    outcomes = {"read": 0, "refused": 0}
    broken = tmp_path / "broken.mp4"
    for _ in range(200):
        data = bytearray(original)
        for _ in range(dice.choice((1, 4, 30))):
            start = dice.randrange(len(data))
            data[start] = dice.randrange(256)
        if dice.random() < 0.3:
            del data[dice.randrange(len(data)) :]
        broken.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # a cut file says so
                reader = VideoReader(broken, threads=1)
                for i in {0, len(reader) // 2, len(reader) - 1}:
                    assert reader[i].shape == (*reader.size, 3)
                reader.motion_vectors(len(reader) - 1)
                reader.get_frames_at(float(reader.timestamps[0]))
                reader.close()
            outcomes["read"] += 1
        except (ValueError, RuntimeError, IndexError):
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10, outcomes
