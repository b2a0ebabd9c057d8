"""The Gaussian codec from a video file to a `.vkv` file and back: goals, exactness, interruption, damage."""

import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from vidkernels import _native
from vidkernels.codec import ContainerWriter, Header, frame_hash, gaussian, layout
from vidkernels.codec import open as open_vkv
from vidkernels.codec.errors import DamagedFileError
from vidkernels.codec.protocol import Goal, Source, state_path
from vidkernels.data import write_video

pytest.importorskip("av")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.skipif(_native._C is None, reason="needs the compiled module")
ROOT = Path(__file__).parents[2]
_PLAN = gaussian._plan


@pytest.fixture
def source(tmp_path, moving_clip):
    """make(frames, height, width): a losslessly coded clip, and the frames that are in it."""

    def make(frames=5, height=48, width=64, grey=False, name="in.mkv", **more):
        clip = moving_clip(frames, height, width)
        clip = clip[..., :1].expand_as(clip).contiguous() if grey else clip
        path = tmp_path / name
        write_video(path, clip, fps=10, codec="libx264rgb", crf=0, **more)
        return path, clip

    return make


@pytest.fixture(autouse=True)
def little_work(monkeypatch):
    """A tenth of the steps: what is tested here does not depend on how good the pictures are."""
    monkeypatch.setattr(gaussian, "_plan", _small_plan(gaussian._plan))


def _small_plan(plan):
    def small(clip, grid, goal, gop):
        whole = plan(clip, grid, goal, gop)
        return replace(whole, key_steps=min(whole.key_steps, 24), steps=min(whole.steps, 6))

    return small


def run(work):
    """All that a fit reports, and what it returns."""
    reports = []
    while True:
        try:
            reports.append(next(work))
        except StopIteration as end:
            return reports, end.value


def fit(path, out, goal=None, gop=None, **cut):
    return run(gaussian.fit(Source(path, **cut), out, goal or Goal(psnr=30.0), gop=gop))


def psnr(a, b):
    return 10 * np.log10(255**2 / float((a.float() - b.float()).square().mean()))


def whole(out, frames):
    """The file says what its encoder saw, in every frame."""
    with open_vkv(out) as video:
        report = video.verify()
        assert report.profile == "exact"
        assert report.ok
        assert report.mismatches == ()
        assert report.frames == report.checked_frames == report.hashed_frames == len(video) == frames
        return torch.stack(list(video))


@pytest.mark.parametrize(
    "goal", [Goal(seconds=0.5), Goal(bytes=3000), Goal(psnr=28.0)], ids=["seconds", "bytes", "psnr"]
)
def test_each_goal_gives_an_exact_file(source, tmp_path, goal, monkeypatch):
    monkeypatch.setattr(gaussian, "_plan", _PLAN)  # all of the work
    path, clip = source()
    reports, returned = fit(path, tmp_path / "o.vkv", goal)
    assert returned.path == path
    assert [r.done for r in reports] == [1, 2, 3, 4, 5, 5]
    assert all(r.total == 5 and r.done <= r.total for r in reports)
    assert all(a.elapsed <= b.elapsed for a, b in itertools.pairwise(reports))
    assert not state_path(tmp_path / "o.vkv").exists()
    frames = whole(tmp_path / "o.vkv", 5)
    assert frames.shape == clip.shape
    grey = clip.float().mean((0, 1, 2)).expand_as(clip)
    assert psnr(frames, clip) > psnr(grey, clip) + 3
    each = np.mean([psnr(a, b) for a, b in zip(frames, clip, strict=True)])
    assert reports[-1].psnr == pytest.approx(each, abs=1e-3)


def test_frames_by_index_slice_and_time(source, tmp_path):
    path, _ = source(frames=7)
    fit(path, tmp_path / "o.vkv", gop=3)
    frames = whole(tmp_path / "o.vkv", 7)
    with open_vkv(tmp_path / "o.vkv") as video:
        assert video.size == (48, 64)
        assert video.fps == 10
        assert video.audio is None
        assert video.bytes == os.path.getsize(tmp_path / "o.vkv")
        assert [g.frames for g in video.reader.gops] == [3, 3, 1]
        for i in (6, 0, 3, 2, 5, np.int64(4)):
            assert torch.equal(video[i], frames[i])
        assert torch.equal(video[-1], frames[6])
        assert torch.equal(video[-7], frames[0])
        for s in (slice(None), slice(1, 6, 2), slice(None, None, -1), slice(-3, None)):
            assert torch.equal(video[s], torch.stack([frames[i] for i in range(*s.indices(7))]))
        assert video[3:3].shape == (0, 48, 64, 3)
        assert video[3:3].dtype == torch.uint8
        for bad in (7, -8):
            with pytest.raises(IndexError):
                video[bad]
        for i in range(7):
            assert torch.equal(video.at(i / 10 + 1e-9), video.at(i / 10 + 1e-9, size=(48, 64)))
        assert torch.equal(video.at(0), frames[0])
        assert torch.equal(video.at(0.5), frames[5])
        assert torch.equal(video.at(0.29), frames[2])  # the last of its GOP stays until the next one
        assert torch.equal(video.at(0.7), frames[6])
        between = video.at(0.05)
        assert not torch.equal(between, frames[0])
        assert psnr(between, frames[0]) > 20
        for bad in (-0.01, 0.71, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="at:"):
                video.at(bad)


@pytest.mark.parametrize("size", [(96, 128), (24, 32), (48, 96), (17, 5), (1, 1)])
def test_another_size_is_the_same_picture(source, tmp_path, size):
    path, _ = source(frames=1)
    fit(path, tmp_path / "o.vkv")
    with open_vkv(tmp_path / "o.vkv") as video:
        drawn = video.at(0, size=size)
        assert drawn.shape == (*size, 3)
        assert drawn.dtype == torch.uint8
        if min(size) > 20:
            scaled = torch.nn.functional.interpolate(
                video[0].permute(2, 0, 1)[None].float(), size=size, mode="bilinear", antialias=True
            )[0].permute(1, 2, 0)
            assert psnr(drawn, scaled) > 20


@pytest.mark.parametrize(
    ("frames", "height", "width", "gop", "grey"),
    [(1, 48, 64, None, False), (2, 47, 61, None, False), (3, 16, 130, 1, False), (5, 47, 61, 2, True),
     (4, 34, 18, 100, False), (6, 48, 64, 6, False)],
)  # fmt: skip
def test_shapes_of_clips(source, tmp_path, frames, height, width, gop, grey):
    path, clip = source(frames, height, width, grey)
    fit(path, tmp_path / "o.vkv", Goal(psnr=30.0), gop=gop)
    got = whole(tmp_path / "o.vkv", frames)
    assert got.shape == clip.shape
    with open_vkv(tmp_path / "o.vkv") as video:
        lengths = [g.frames for g in video.reader.gops]
    each = gop or frames
    assert lengths == [min(each, frames - k) for k in range(0, frames, each)]


def test_a_cut_at_another_size(source, tmp_path):
    path, _ = source(frames=8)
    _, returned = fit(path, tmp_path / "o.vkv", start=0.2, end=0.6, size=(24, 32))
    assert (returned.start, returned.end, returned.size) == (0.2, 0.6, (24, 32))
    assert whole(tmp_path / "o.vkv", 4).shape == (4, 24, 32, 3)


def test_a_variable_frame_rate_keeps_its_times(source, tmp_path):
    times = [0.0, 0.1, 0.15, 0.4, 0.9]
    path, _ = source(frames=5, timestamps=times)
    fit(path, tmp_path / "o.vkv", gop=2)
    frames = whole(tmp_path / "o.vkv", 5)
    with open_vkv(tmp_path / "o.vkv") as video:
        base = video.reader.header.time_base
        got = np.concatenate([video.reader.pts(g) for g in video.reader.gops]) * float(base)
        np.testing.assert_allclose(got - got[0], times, atol=2e-3)
        assert torch.equal(video.at(0.6), frames[3])


def test_audio_goes_along_with_the_whole_clip_only(source, tmp_path):
    import av

    path, _ = source()
    sound = tmp_path / "sound.mkv"
    with av.open(str(path)) as read, av.open(str(sound), "w") as write:
        picture = write.add_stream_from_template(read.streams.video[0])
        audio = write.add_stream("flac", rate=8000, layout="mono")
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = picture
                write.mux(packet)
        tone = (np.sin(np.arange(4000) / 9) * 9000).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(tone, "s16", "mono")
        frame.sample_rate, frame.pts = 8000, 0
        for packet in [*audio.encode(frame), *audio.encode(None)]:
            write.mux(packet)
    fit(sound, tmp_path / "o.vkv")
    fit(sound, tmp_path / "cut.vkv", end=0.3)
    with open_vkv(tmp_path / "o.vkv") as video, open_vkv(tmp_path / "cut.vkv") as cut:
        assert video.verify().ok
        assert cut.verify().ok
        assert video.audio is not None
        assert video.audio.rate == 8000
        assert cut.audio is None


# ---- interruption


@pytest.mark.parametrize("goal", [Goal(bytes=4000), Goal(psnr=33.0)], ids=["bytes", "psnr"])
def test_closed_at_any_frame_and_resumed_it_writes_the_same_bytes(source, tmp_path, goal):
    path, _ = source(frames=5)
    fit(path, tmp_path / "whole.vkv", goal, gop=2)
    expected = (tmp_path / "whole.vkv").read_bytes()
    for stop in range(6):
        out = tmp_path / f"o{stop}.vkv"
        work = gaussian.fit(Source(path), out, goal, gop=2)
        for _ in range(stop):
            next(work)
        work.close()
        if stop == 0:
            assert not state_path(out).exists()  # it had not begun
            continue
        assert state_path(out).exists()
        assert not out.exists()
        reports, returned = run(gaussian.resume(state_path(out)))
        assert returned.path == path
        assert reports[-1].done == 5
        assert out.read_bytes() == expected, f"closed after {stop} frames"
        assert not state_path(out).exists()


def test_interrupted_again_and_again(source, tmp_path):
    path, _ = source(frames=6)
    fit(path, tmp_path / "whole.vkv", gop=4)
    out = tmp_path / "o.vkv"
    work = gaussian.fit(Source(path), out, Goal(psnr=30.0), gop=4)
    elapsed = []
    for _ in range(6):
        elapsed.append(next(work).elapsed)
        work.close()
        work = gaussian.resume(state_path(out))
    run(work)
    assert elapsed == sorted(elapsed)
    assert out.read_bytes() == (tmp_path / "whole.vkv").read_bytes()


@pytest.mark.parametrize("name", ["fit_change", "encode_change", "frame_hash", "fit_key", "encode_key"])
def test_interrupted_inside_a_frame(source, tmp_path, monkeypatch, name):
    """Ctrl-C does not wait for a frame to end."""
    path, _ = source(frames=5)
    fit(path, tmp_path / "whole.vkv", gop=3)
    out, calls, real = tmp_path / "o.vkv", [], getattr(gaussian, name)

    def interrupted(*args):
        calls.append(0)
        result = real(*args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(gaussian, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(path, out, gop=3)
    run(gaussian.resume(state_path(out)))
    assert out.read_bytes() == (tmp_path / "whole.vkv").read_bytes()


def test_interrupted_while_the_file_is_written(source, tmp_path, monkeypatch):
    path, _ = source(frames=3)
    fit(path, tmp_path / "whole.vkv")
    out = tmp_path / "o.vkv"
    with monkeypatch.context() as patch:
        patch.setattr(gaussian, "read_audio", lambda path: (_ for _ in ()).throw(OSError("disk")))
        with pytest.raises(OSError, match="disk"):
            fit(path, out)
    assert not out.exists()
    run(gaussian.resume(state_path(out)))
    assert out.read_bytes() == (tmp_path / "whole.vkv").read_bytes()


def test_killed_and_resumed(source, tmp_path):
    path, _ = source(frames=5)
    program = (
        "import sys\nfrom vidkernels.codec import gaussian\nfrom vidkernels.codec.protocol import Goal, Source\n"
        "gaussian._SAVE_EVERY = 0.0\n"
        "from dataclasses import replace\nplan = gaussian._plan\n"
        "gaussian._plan = lambda *a: replace(plan(*a), key_steps=24, steps=6)\n"
        "for report in gaussian.fit(Source(sys.argv[1]), sys.argv[2], Goal(bytes=4000), gop=3):\n"
        "    print(report.done, flush=True)\n"
    )
    fit(path, tmp_path / "whole.vkv", Goal(bytes=4000), gop=3)
    out = tmp_path / "o.vkv"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(path), str(out)], stdout=subprocess.PIPE, text=True, env=environment
    )
    while child.stdout.readline().strip() != "2":
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    if state_path(out).exists():  # unless it was quicker than the signal
        run(gaussian.resume(state_path(out)))
    assert out.read_bytes() == (tmp_path / "whole.vkv").read_bytes()


# ---- refused


def test_a_source_that_cannot_be_read(tmp_path, source):
    path, _ = source()
    with pytest.raises((ValueError, OSError), match=r"nothing\.mp4"):
        fit(tmp_path / "nothing.mp4", tmp_path / "o.vkv")
    with pytest.raises(ValueError, match="no frame"):
        fit(path, tmp_path / "o.vkv", start=5.0, end=6.0)
    assert not (tmp_path / "o.vkv").exists()
    assert not state_path(tmp_path / "o.vkv").exists()


def _stopped(path, out):
    work = gaussian.fit(Source(path), out, Goal(psnr=30.0), gop=3)
    next(work), next(work)
    work.close()
    return state_path(out)


def test_a_damaged_state_is_refused(source, tmp_path):
    path, _ = source()
    state = _stopped(path, tmp_path / "o.vkv")
    data = state.read_bytes()
    for damage in (b"", data[:7], data[: len(data) // 2], data[:-1], b"\xff" * len(data), b"{}" + data):
        state.write_bytes(damage)
        with pytest.raises(ValueError, match="resume"):
            run(gaussian.resume(state))
    from safetensors.numpy import load, save

    arrays = load(data)
    size = int.from_bytes(data[:8], "little")
    facts = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["facts"])
    for key in facts:
        if key not in ("start", "end", "size", "out"):
            state.write_bytes(save(arrays, {"facts": json.dumps({k: v for k, v in facts.items() if k != key})}))
            with pytest.raises(ValueError, match="resume"):
                run(gaussian.resume(state))
    state.write_bytes(save(arrays, {"facts": json.dumps({**facts, "version": 2})}))
    with pytest.raises(ValueError, match="version 2"):
        run(gaussian.resume(state))
    for name in ("mean", "variance", "coded", "lengths", "hashes"):
        state.write_bytes(save({k: v for k, v in arrays.items() if k != name}, {"facts": json.dumps(facts)}))
        with pytest.raises(ValueError, match="resume"):
            run(gaussian.resume(state))


def test_a_state_without_its_source_is_refused_and_kept(source, tmp_path):
    path, _ = source()
    state = _stopped(path, tmp_path / "o.vkv")
    path.rename(tmp_path / "elsewhere.mkv")
    with pytest.raises((ValueError, OSError), match=r"in\.mkv"):
        run(gaussian.resume(state))
    assert state.exists()


def test_a_file_of_another_model_or_a_wrong_config_is_refused(tmp_path):
    def write(model, config):
        header = Header(model, 8, 6, Fraction(1, 10), config, exact=True)
        with ContainerWriter(tmp_path / "o.vkv", header) as writer:
            writer.add_gop(0, [0], {0: b"abc"}, [frame_hash(np.zeros((6, 8, 3), np.uint8))])
        return tmp_path / "o.vkv"

    with pytest.raises(ValueError, match="octree"):
        open_vkv(write("octree", {}))
    good = [-1, -1, -5, -5, -5, -8, -7, -7]
    for logs in (None, 3, good[:7], [*good, 0], [*good[:7], 9], [*good[:7], -25], [*good[:7], 0.5], [True] * 8):
        with pytest.raises(ValueError, match="quanta_log2"):
            open_vkv(write("gaussian", {"quanta_log2": logs}))
    with open_vkv(write("gaussian", {"quanta_log2": good})) as video, pytest.raises(DamagedFileError, match="LAYR"):
        video[0]


# ---- damage


def _payloads(data):
    """(start, length, offset of the chunk) of the layers of a file."""
    at = layout.PRELUDE.size
    while at < len(data):
        chunk = layout.parse_head(data, at)
        if chunk.kind == b"LAYR":
            yield chunk
        at = chunk.end


def _mutated(data, chunk, random):
    """The file with other bytes in a layer, and a checksum that fits them."""
    data = bytearray(data)
    begin = chunk.start + layout.LAYER.size
    end = chunk.start + chunk.length
    for _ in range(random.integers(1, 5)):
        at = int(random.integers(begin, end))
        kind = random.integers(4)
        if kind == 0:
            data[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            data[at] = int(random.integers(256))
        elif kind == 2:
            data[at : min(end, at + 4)] = (b"\0", b"\xff")[int(random.integers(2))] * min(4, end - at)
        else:
            other = int(random.integers(begin, end))
            n = min(8, end - at, end - other)
            data[at : at + n] = data[other : other + n]
    head = layout.chunk_head(b"LAYR", chunk.flags, [bytes(data[chunk.start : end])])
    data[chunk.offset : chunk.start] = head
    return bytes(data)


def _survive(source, tmp_path, count):
    path, _ = source(frames=4, height=24, width=32)
    fit(path, tmp_path / "o.vkv", gop=2)
    good = (tmp_path / "o.vkv").read_bytes()
    chunks, random = list(_payloads(good)), np.random.default_rng(5)
    assert len(chunks) == 2
    refused = 0
    for i in range(count):
        data = _mutated(good, chunks[i % 2], random)
        target = tmp_path / "m.vkv"
        target.write_bytes(data)
        with open_vkv(target) as video:
            try:
                video.verify()
                assert video[0].shape == (24, 32, 3)
            except (ValueError, DamagedFileError):
                refused += 1
    assert refused > count / 4  # and the rest gave a picture


def test_mutated_layers_are_refused_or_drawn(source, tmp_path):
    _survive(source, tmp_path, 300)


@pytest.mark.slow
def test_many_mutated_layers(source, tmp_path):
    _survive(source, tmp_path, 6000)


def test_a_wrong_hash_is_found(source, tmp_path):
    """An exact file whose numbers are others than the encoder's: verify names the frames."""
    path, _ = source(frames=2, height=24, width=32)
    fit(path, tmp_path / "o.vkv")
    with open_vkv(tmp_path / "o.vkv") as video:
        header, data, pts = video.reader.header, bytes(video.reader.read(0)), video.reader.pts(0)
        hashes = [video.reader.hashes(0)[0], b"\0" * 8]
        with ContainerWriter(tmp_path / "x.vkv", header) as writer:
            writer.add_gop(0, pts, {0: data}, hashes)
    with open_vkv(tmp_path / "x.vkv") as video:
        report = video.verify()
    assert report.mismatches == (1,)
    assert not report.ok
