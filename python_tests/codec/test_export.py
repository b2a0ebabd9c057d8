"""Frames into movies, y4m, PNG folders and pipes: read back, whole or not at all."""

import io
import os
import stat
from fractions import Fraction

import numpy as np
import pytest
import torch

from vidkernels.codec import export as exporting
from vidkernels.codec.export import export, write_raw, write_y4m
from vidkernels.codec.pictures import contact_sheet, error_picture, spread
from vidkernels.metrics import psnr

av = pytest.importorskip("av")
Image = pytest.importorskip("PIL.Image")


def read(source, matrix=None):
    """Frames as RGB by FFmpeg alone (it believes the tags, or `matrix`), rate and pixel format."""
    with av.open(source) as container:
        stream = container.streams.video[0]
        frames = [f.reformat(format="rgb24", src_colorspace=matrix).to_ndarray() for f in container.decode(stream)]
        return torch.from_numpy(np.stack(frames)), stream.average_rate, stream.pix_fmt


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_movies_come_back_with_their_colours(tmp_path, moving_clip, suffix):
    clip = moving_clip(6, 48, 64)
    assert export(tmp_path / f"a{suffix}", clip, Fraction(30000, 1001)) == 6
    got, rate, pix_fmt = read(str(tmp_path / f"a{suffix}"))
    assert psnr(got, clip) > 33
    assert (rate, pix_fmt) == (Fraction(30000, 1001), "yuv420p")
    with av.open(str(tmp_path / f"a{suffix}")) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (1, 1)
    assert os.listdir(tmp_path) == [f"a{suffix}"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / f"a{suffix}").stat().st_mode) == 0o666 & ~umask


def test_flat_colours_of_a_movie_are_exact_to_a_step(tmp_path):
    for colour in [(255, 0, 0), (10, 200, 90), (255, 255, 255)]:
        clip = torch.tensor(colour, dtype=torch.uint8).expand(2, 32, 32, 3)
        export(tmp_path / "a.mp4", clip, 25)
        assert (read(str(tmp_path / "a.mp4"))[0].int() - clip.int()).abs().max() <= 3


def test_movies_of_odd_size_and_variable_rate(tmp_path, moving_clip):
    clip = moving_clip(4, 33, 47)
    times = [0.0, 0.1, 0.15, 0.5]
    export(tmp_path / "a.mp4", clip, 10, timestamps=times)
    got, _, pix_fmt = read(str(tmp_path / "a.mp4"))
    assert got.shape == clip.shape
    assert pix_fmt == "yuv444p"
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert [float(f.pts * f.time_base) for f in container.decode(video=0)] == pytest.approx(times, abs=1e-4)
    for wrong in ([0, 0.1], [0, 0.2, 0.2, 0.3], [-1, 0, 1, 2]):
        with pytest.raises(ValueError, match="timestamps"):
            export(tmp_path / "b.mp4", clip, 10, timestamps=wrong)
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p"])
@pytest.mark.parametrize("size", [(48, 64), (33, 47), (1, 1), (720, 16)])
def test_y4m_is_read_by_ffmpeg(moving_clip, pix_fmt, size):
    clip = moving_clip(3, *size)
    file = io.BytesIO()
    assert write_y4m(file, clip, Fraction(24000, 1001), pix_fmt=pix_fmt) == 3
    file.seek(0)
    got, rate, stored = read(file, matrix=1 if size[0] >= 720 else 5)
    assert got.shape == clip.shape
    assert (rate, stored) == (Fraction(24000, 1001), pix_fmt)
    assert psnr(got, clip) > (45 if pix_fmt == "yuv444p" or size == (1, 1) else 33)


def test_y4m_header_and_length_by_hand(moving_clip):
    file = io.BytesIO()
    write_y4m(file, moving_clip(2, 5, 7), 25)
    head, rest = file.getvalue().split(b"\n", 1)
    assert head == b"YUV4MPEG2 W7 H5 F25:1 Ip A1:1 C420jpeg XCOLORRANGE=LIMITED"
    assert len(rest) == 2 * (len(b"FRAME\n") + 35 + 2 * 4 * 3)
    assert rest.startswith(b"FRAME\n")
    grey = io.BytesIO()
    write_y4m(grey, torch.full((1, 2, 2, 3), 255, dtype=torch.uint8), 25, pix_fmt="yuv444p")
    assert grey.getvalue().endswith(bytes([235] * 4 + [128] * 8))


def test_pictures_keep_every_pixel(tmp_path, generator):
    clip = torch.randint(0, 256, (3, 21, 13, 3), dtype=torch.uint8, generator=generator)
    folder = tmp_path / "frames"
    folder.mkdir()  # an empty one is taken
    assert export(folder, clip, 25) == 3
    assert sorted(os.listdir(folder)) == ["000000.png", "000001.png", "000002.png"]
    for number, frame in enumerate(clip):
        with Image.open(folder / f"{number:06d}.png") as picture:
            assert np.array_equal(np.asarray(picture), frame.numpy())
    with pytest.raises(ValueError, match="not empty"):
        export(folder, clip, 25)
    assert os.listdir(tmp_path) == ["frames"]


def test_raw_bytes(generator):
    clip = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8, generator=generator)
    file = io.BytesIO()
    assert write_raw(file, clip[:, :, ::2]) == 2
    assert file.getvalue() == clip[:, :, ::2].contiguous().numpy().tobytes()


@pytest.mark.parametrize("name", ["a.mp4", "a.y4m", "folder"])
def test_an_interrupted_export_leaves_nothing(tmp_path, moving_clip, name):
    def interrupted():
        yield from moving_clip(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / name, interrupted(), 25)
    assert os.listdir(tmp_path) == []
    if "." in name:
        export(tmp_path / name, moving_clip(2), 25)
        before = (tmp_path / name).read_bytes()
        with pytest.raises(KeyboardInterrupt):
            export(tmp_path / name, interrupted(), 25)
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("name", ["a.mp4", "a.y4m", "folder"])
def test_wrong_frames_are_refused(tmp_path, moving_clip, name):
    clip = moving_clip(2)
    for words, frames, fps in [
        ("no frames", clip[:0], 25),
        ("uint8", clip.float(), 25),
        ("one size", [clip[0], clip[1, :20]], 25),
        (r"\[H, W, 3\]", clip[..., :2], 25),
        ("fps", clip, 0),
    ]:
        if words == "fps" and name == "folder":
            continue
        with pytest.raises(ValueError, match=words):
            export(tmp_path / name, frames, fps)
    assert os.listdir(tmp_path) == []


def test_wrong_targets_are_refused(tmp_path, moving_clip):
    with pytest.raises(ValueError, match=r"suffix '.webp'"):
        export(tmp_path / "a.webp", moving_clip(2), 25)
    with pytest.raises(ValueError, match="only movies hold audio"):
        export(tmp_path / "a.y4m", moving_clip(2), 25, audio=object())
    with pytest.raises(ValueError, match="pix_fmt"):
        write_y4m(io.BytesIO(), moving_clip(2), 25, pix_fmt="yuv422p")


def test_audio_is_copied_packet_by_packet(tmp_path, moving_clip):
    audio = pytest.importorskip("vidkernels.codec.audio")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        tone = (np.sin(np.arange(16000) / 20) * 9000).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    sound = audio.read_audio(tmp_path / "sound.mp4")
    clip = moving_clip(5)
    export(tmp_path / "a.mp4", clip, 5, audio=sound)
    assert list(audio.read_audio(tmp_path / "a.mp4").packets) == list(sound.packets)
    assert psnr(read(str(tmp_path / "a.mp4"))[0], clip) > 33
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "sound.mp4"]


def test_error_picture():
    source = torch.tensor([[[10, 20, 200]]], dtype=torch.uint8)
    decoded = torch.tensor([[[13, 10, 100]]], dtype=torch.uint8)
    assert error_picture(decoded, source).tolist() == [[[12, 40, 255]]]


def test_contact_sheet_shows_source_decoded_and_error(tmp_path, moving_clip):
    source = moving_clip(3, 40, 60)
    decoded = (source.int() + 5).clamp(0, 255).to(torch.uint8)
    contact_sheet(tmp_path / "sheet.png", source, decoded, ["one", "two", "three"], title="A title")
    with Image.open(tmp_path / "sheet.png") as picture:
        pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy())
    for column in range(3):
        x = 74 + column * 64
        for row, wanted in enumerate([source, decoded, error_picture(decoded, source)]):
            y = 40 + row * 44
            assert torch.equal(pixels[y : y + 40, x : x + 60], wanted[column]), (column, row)
    contact_sheet(tmp_path / "sheet.jpg", source, decoded, ["1", "2", "3"], width=30)
    with Image.open(tmp_path / "sheet.jpg") as picture:
        assert picture.size == (74 + 3 * 34, 22 + 3 * 24)
    assert sorted(os.listdir(tmp_path)) == ["sheet.jpg", "sheet.png"]


def test_contact_sheet_refuses(tmp_path, moving_clip):
    clip = moving_clip(2)
    for words, name, decoded, labels in [
        ("labels", "a.png", clip, ["one"]),
        ("one shape", "a.png", clip[:1], ["one", "two"]),
        (".jpg", "a.gif", clip, ["one", "two"]),
    ]:
        with pytest.raises(ValueError, match=words):
            contact_sheet(tmp_path / name, clip, decoded, labels)
    assert os.listdir(tmp_path) == []


def test_spread():
    assert spread(4, 10) == [0, 3, 6, 9]
    assert spread(4, 2) == [0, 1]
    assert spread(1, 9) == [0]


def test_the_temporary_file_lies_beside_the_target(tmp_path, monkeypatch, moving_clip):
    """So that the last step is a rename, never a copy between file systems."""
    monkeypatch.chdir(tmp_path)
    seen = []
    real = os.replace
    monkeypatch.setattr(exporting.os, "replace", lambda a, b: (seen.append(str(a)), real(a, b)))
    export("a.y4m", moving_clip(2), 25)
    assert os.path.dirname(seen[0]) == str(tmp_path)
