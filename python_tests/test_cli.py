"""The commands, run on a codec that stores frames as they are: arguments, messages, exit codes, files."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from vidkernels.cli import app, units
from vidkernels.codec import protocol

pytest.importorskip("av")
ROOT = Path(__file__).parent.parent


@dataclass
class Report:
    profile: str = "exact"
    frames: int = 6
    gops: int = 1
    chunks: int = 3
    bytes: int = 99
    hashed_frames: int = 6
    checked_frames: int = 6
    mismatches: tuple = ()

    @property
    def ok(self):
        return not (self.mismatches and self.profile == "exact")


class StoredVideo:
    """A "codec": frames saved with torch.save, and whether they are as the encoder left them."""

    model, audio, fps = "stored", None, 10

    def __init__(self, path):
        try:
            self.frames, wrong, self.profile = torch.load(path)
        except Exception as error:
            raise ValueError(f"{path}: damaged") from error
        self.wrong = tuple(wrong)
        self.size = tuple(self.frames.shape[1:3])
        self.bytes = os.path.getsize(path)

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, key):
        return self.frames[key]

    def __iter__(self):
        return iter(self.frames)

    def at(self, seconds):
        return self.frames[int(seconds * self.fps + 1e-6)]

    def verify(self):
        return Report(self.profile, len(self), mismatches=self.wrong)


class Fitter:
    """Takes a step per frame; what is done lies in the state file, so that resuming starts where it stopped."""

    def __init__(self):
        self.calls, self.stop_at = [], None

    def fit(self, source, out, goal, *, gop):
        self.calls.append((source, goal, gop))
        frames, _, _ = protocol.read_source(source)
        torch.save((frames, 0, str(source.path), source.start, source.end, source.size), protocol.state_path(out))
        return (yield from self.resume(protocol.state_path(out)))

    def resume(self, state):
        frames, done, *cut = torch.load(state, weights_only=False)
        for at in range(done, len(frames)):
            torch.save((frames, at, *cut), state)
            if self.stop_at == at:
                self.stop_at = None
                raise KeyboardInterrupt
            yield protocol.Progress(at + 1, len(frames), at + 1, 0, 30.0 + at, 1000 * at, 0.5 * at)
        torch.save((frames ^ 1, [], "exact"), state.with_suffix(""))
        state.unlink()
        return protocol.Source(Path(cut[0]), *cut[1:])


@pytest.fixture
def fitter(monkeypatch):
    made = Fitter()
    monkeypatch.setattr(protocol, "model", lambda name: made if name == "gaussian" else real(name))
    monkeypatch.setattr(protocol, "state_model", lambda state: "gaussian")  # its states are not safetensors
    monkeypatch.setattr(protocol, "open_video", StoredVideo)
    return made


real = protocol.model


@pytest.fixture
def clip(tmp_path):
    """A lossless movie of six frames and its pixels."""
    from vidkernels.data import VideoReader, write_video

    g = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (6, 4, 6, 3), dtype=torch.uint8, generator=g)
    frames = frames.repeat_interleave(8, 1).repeat_interleave(8, 2)
    write_video(tmp_path / "in.mp4", frames, 10, "libx264rgb", crf=0)
    with VideoReader(tmp_path / "in.mp4") as reader:
        assert torch.equal(reader[:], frames)
    return tmp_path / "in.mp4", frames


def run(*words, code=0, **rest):
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"}, **rest)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def stored(path, frames, wrong=(), profile="exact"):
    torch.save((frames, list(wrong), profile), path)
    return path


# ---- units


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.duration, "60s", 60), (units.duration, "1.5min", 90), (units.duration, "2 h", 7200),
        (units.duration, "500ms", 0.5), (units.duration, "12", 12), (units.duration, "2M", 120),
        (units.size, "500kB", 500_000), (units.size, "500KiB", 512_000), (units.size, "1.5MB", 1_500_000),
        (units.size, "2MiB", 2 << 20), (units.size, "1234", 1234), (units.decibels, "34", 34),
        (units.decibels, "34.5dB", 34.5), (units.position, "0", 0), (units.position, "0.0s", 0),
        (units.position, "1m", 60), (units.frame_range, "0:48", slice(0, 48)),
        (units.frame_range, "-5:", slice(-5, None)), (units.frame_range, ":", slice(None)),
        (units.frame_range, "7", slice(7, 8)), (units.frame_range, "-1", slice(-1, None)),
        (units.picture, "1280x720", (720, 1280)), (units.picture, "360", 360),
        (units.numbers, "20, 28.5", [20, 28.5]), (units.words, "x264, x265", ["x264", "x265"]),
        (units.words, "none", []),
    ],
)  # fmt: skip
def test_units(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (units.duration, ["", "s", "0", "-5s", "5 parsecs", "1e999", "nan", "5kB", "1:30"]),
        (units.size, ["0", "0.1", "-1kB", "5s", "kB", "1e400"]),
        (units.decibels, ["0", "-3", "x", "34s"]),
        (units.position, ["-1", "later"]),
        (units.frame_range, ["", "a:b", "1:2:3", "1.5:2", "--1:"]),
        (units.picture, ["", "0x5", "5x0", "0", "axb", "1280x", "-5", "1x2x3"]),
        (units.numbers, ["", "a", "1,,2", "inf"]),
    ],
)
def test_units_refuse_with_the_text(parse, texts):
    for text in texts:
        with pytest.raises(ValueError, match="is ") as caught:
            parse(text)
        assert repr(text) in str(caught.value)


# ---- fit and resume


def test_fit_writes_the_file_and_a_contact_sheet(tmp_path, clip, fitter):
    source, frames = clip
    result = run("fit", source, tmp_path / "a.vkv", "--budget", "2min", "--gop", "3")
    assert torch.equal(StoredVideo(tmp_path / "a.vkv").frames, frames ^ 1)
    ((cut, goal, gop),) = fitter.calls
    assert cut == protocol.Source(source)
    assert goal == protocol.Goal(seconds=120)
    assert gop == 3
    assert "PSNR 35.00 dB" in result.stderr
    assert f"{os.path.getsize(tmp_path / 'a.vkv')} bytes" in result.stderr
    assert sorted(os.listdir(tmp_path)) == ["a.sheet.png", "a.vkv", "in.mp4"]
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("words", "goal"),
    [
        ((), protocol.Goal(seconds=60)),
        (("--size", "500kB"), protocol.Goal(bytes=500_000)),
        (("--psnr", "34dB"), protocol.Goal(psnr=34)),
        (("--psnr", "34dB", "--budget", "2min"), protocol.Goal(seconds=120, psnr=34)),
    ],
)
def test_goals(tmp_path, clip, fitter, words, goal):
    run("fit", clip[0], tmp_path / "a.vkv", *words, "--no-sheet")
    assert fitter.calls[0][1] == goal
    assert not (tmp_path / "a.sheet.png").exists()


def test_cut_and_resize(tmp_path, clip, fitter):
    run("fit", clip[0], tmp_path / "a.vkv", "--start", "0.2", "--end", "500ms", "--resize", "24x16")
    assert fitter.calls[0][0] == protocol.Source(clip[0], 0.2, 0.5, (16, 24))
    assert StoredVideo(tmp_path / "a.vkv").frames.shape == (3, 16, 24, 3)


def test_an_interrupted_fit_is_resumed_to_the_same_bytes(tmp_path, clip, fitter):
    source, _ = clip
    run("fit", source, tmp_path / "whole.vkv")
    fitter.stop_at = 3
    result = run("fit", source, tmp_path / "a.vkv", code=130)
    assert "vidkernels resume" in result.stderr
    assert not (tmp_path / "a.vkv").exists()
    assert "unfinished fit" in run("fit", source, tmp_path / "a.vkv", code=1).stderr
    run("resume", tmp_path / "a.vkv")
    assert torch.equal(StoredVideo(tmp_path / "a.vkv").frames, StoredVideo(tmp_path / "whole.vkv").frames)
    assert (tmp_path / "a.sheet.png").exists()
    assert "no unfinished fit" in run("resume", tmp_path / "a.vkv", code=1).stderr
    fitter.stop_at = 1
    run("fit", source, tmp_path / "b.vkv", code=130)
    run("resume", tmp_path / "b.vkv.state", "--no-sheet")
    assert (tmp_path / "b.vkv").exists()


def test_fit_says_what_is_wrong(tmp_path, clip, fitter):
    source, _ = clip
    out = tmp_path / "a.vkv"
    for words, text, code in [
        ((source, out, "--size", "60kB", "--psnr", "30"), "give one of", 2),
        ((source, out, "--budget", "soon"), "'soon' is not a time above 0", 2),
        ((source, out, "--size", "5s"), "'5s' is not a size", 2),
        ((source, out, "--gop", "0"), "--gop", 2),
        ((source, tmp_path / "a.mp4"), "does not end with .vkv", 1),
        ((tmp_path / "missing.mp4", out), "no such file", 1),
        ((source, out, "--start", "9"), "the cut holds no frame", 1),
        ((source, out, "--model", "wavelet"), "no model named 'wavelet'", 1),
    ]:
        said = run("fit", *words, code=code)
        assert text in said.output + said.stderr, said.output
        assert "Traceback" not in said.output
    assert sorted(os.listdir(tmp_path)) == ["in.mp4"]


# ---- decode, verify


def test_decode_to_pictures_and_movies(tmp_path, clip, fitter):
    image = pytest.importorskip("PIL.Image")
    _, frames = clip
    path = stored(tmp_path / "a.vkv", frames)
    run("decode", path, tmp_path / "pictures", "--frames", "1:4")
    for number in range(3):
        with image.open(tmp_path / "pictures" / f"{number:06d}.png") as picture:
            assert torch.equal(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(32, 48, 3),
                               frames[1 + number])  # fmt: skip
    assert len(os.listdir(tmp_path / "pictures")) == 3
    assert "6 frames" in run("decode", path, tmp_path / "a.mp4").stderr
    assert "12 frames" in run("decode", path, tmp_path / "a.mkv", "--fps", "20").stderr
    assert "no frame in that range" in run("decode", path, tmp_path / "b.mp4", "--frames", "6:", code=1).stderr
    assert "suffix '.avi'" in run("decode", path, tmp_path / "b.avi", code=1).stderr
    (tmp_path / "bad.vkv").write_bytes(b"nonsense")
    assert "damaged" in run("decode", tmp_path / "bad.vkv", tmp_path / "b.mp4", code=1).stderr
    assert not list(tmp_path.glob("b.*"))


def test_decode_to_stdout(tmp_path, clip, fitter):
    _, frames = clip
    path = stored(tmp_path / "a.vkv", frames)
    assert run("decode", path, "-", "--raw").stdout_bytes == frames.numpy().tobytes()
    said = run("decode", path, "-", "--frames", "0:2").stdout_bytes
    assert said.startswith(b"YUV4MPEG2 W48 H32 F10:1 ")
    assert said.count(b"FRAME\n") == 2
    assert run("decode", path, "-", "--raw", "--frames", "-1").stdout_bytes == frames[-1].numpy().tobytes()
    assert "--raw is for stdout" in run("decode", path, tmp_path / "a.mp4", "--raw", code=1).stderr


def test_decode_at_another_rate_and_size(tmp_path, clip, fitter):
    _, frames = clip
    path = stored(tmp_path / "a.vkv", frames)
    raw = run("decode", path, "-", "--raw", "--fps", "20").stdout_bytes
    assert raw == frames.repeat_interleave(2, 0).numpy().tobytes()
    raw = run("decode", path, "-", "--raw", "--fps", "5", "--frames", "2:6").stdout_bytes
    assert raw == frames[[2, 4]].numpy().tobytes()
    flat = stored(tmp_path / "flat.vkv", torch.full((1, 32, 48, 3), 77, dtype=torch.uint8))
    assert run("decode", flat, "-", "--raw", "--size", "20x10").stdout_bytes == bytes([77]) * 600
    assert run("decode", flat, "-", "--raw", "--size", "16").stdout_bytes == bytes([77]) * (16 * 24 * 3)


def test_a_reader_that_stops_early_is_no_error(tmp_path):
    """A real pipe whose other end closes after the first bytes."""
    frames = torch.zeros(60, 64, 64, 3, dtype=torch.uint8)
    path = stored(tmp_path / "a.vkv", frames)
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_cli
from vidkernels.codec import protocol
protocol.open_video = test_cli.StoredVideo
from vidkernels.cli import main
sys.argv = ["vidkernels", "decode", {str(path)!r}, "-", "--raw"]
main()
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(10) == b"\0" * 10
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 0


def test_verify_reports_and_fails_only_if_the_profile_promises(tmp_path, clip, fitter):
    _, frames = clip
    assert "6 of 6 frame hashes" in run("verify", stored(tmp_path / "a.vkv", frames)).stdout
    said = run("verify", stored(tmp_path / "b.vkv", frames, [2, 4]), code=1).stdout
    assert "2 frames differ from those of the encoder: 2, 4" in said
    assert "2 frames differ" in run("verify", stored(tmp_path / "c.vkv", frames, [2, 4], "not exact")).stdout
    (tmp_path / "d.vkv").write_bytes(b"nonsense")
    assert "damaged" in run("verify", tmp_path / "d.vkv", code=1).stderr


# ---- compare


def test_compare_prints_tables_and_writes_plot_and_points(tmp_path, clip, fitter):
    pytest.importorskip("matplotlib")
    from vidkernels.codec.rate_distortion import load_points

    source, frames = clip
    path = stored(tmp_path / "a.vkv", frames ^ 1)
    said = run(
        "compare", source, path, "--peers", "x264,svtav1-p8", "--crf", "20,45", "--out", tmp_path / "plot.png",
        "--points", tmp_path / "points.json",
    ).stdout  # fmt: skip
    points = load_points(tmp_path / "points.json")
    assert [p.name for p in points] == ["stored", *["x264-medium"] * 2, *["svtav1-p8"] * 2]
    assert points[0].bytes == os.path.getsize(path)
    for word in ("stored", "svtav1-p8", "crf=45", "BD-rate", "48.13"):
        assert word in said
    assert (tmp_path / "plot.png").stat().st_size > 1000
    again = run("compare", source, tmp_path / "points.json", "--peers", "none").stdout
    assert "x264-medium" in again


def test_compare_says_what_is_wrong(tmp_path, clip, fitter):
    source, frames = clip
    path = stored(tmp_path / "a.vkv", frames[:3])
    assert "--start, --end and --resize" in run("compare", source, path, "--peers", "none", code=1).stderr
    run("compare", source, path, "--peers", "none", "--end", "0.3")
    assert "no encoder named 'h267'" in run("compare", source, "--peers", "h267", code=1).stderr
    assert "is no list of numbers" in run("compare", source, "--crf", "fine", code=2).output


# ---- info, and what the commands cost


def test_info_of_a_file(tmp_path):
    container = pytest.importorskip("vidkernels.codec.container")
    from fractions import Fraction

    header = container.Header(model="gaussian", width=64, height=48, time_base=Fraction(1, 25))
    with container.ContainerWriter(tmp_path / "a.vkv", header) as file:
        file.add_gop(0, [0, 1, 2, 3], [b"x" * 100])
    facts = json.loads(run("info", tmp_path / "a.vkv", "--json").stdout)
    assert facts["model"] == "gaussian"
    assert (facts["width"], facts["height"], facts["frames"], facts["gops"]) == (64, 48, 4, 1)
    assert facts["bytes"] == os.path.getsize(tmp_path / "a.vkv")
    assert facts["fps"] == pytest.approx(25)
    assert "gaussian" in run("info", tmp_path / "a.vkv").stdout
    (tmp_path / "b.vkv").write_bytes(b"nonsense")
    assert "error" in run("info", tmp_path / "b.vkv", code=1).stderr


def test_a_goal_is_bytes_or_decibels_and_a_time_may_come_with_either():
    with pytest.raises(ValueError, match="expected seconds, bytes or psnr"):
        protocol.Goal()
    with pytest.raises(ValueError, match="not both"):
        protocol.Goal(bytes=1000, psnr=30)
    assert protocol.Goal(seconds=1).only_time
    assert not protocol.Goal(seconds=1, psnr=30).only_time


def test_help_imports_no_codec():
    code = "import sys, vidkernels.cli; print([m for m in ('av', 'scipy', 'vidkernels.codec') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
