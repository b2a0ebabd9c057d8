"""The Gaussian codec from a video file to a `.vkv` file and back: goals, exactness, damage."""

import itertools
import os
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from codec.fits import fit, psnr, whole

from vidkernels import _native
from vidkernels.codec import ContainerWriter, Header, frame_hash, gaussian, layout
from vidkernels.codec import open as open_vkv
from vidkernels.codec.errors import DamagedFileError
from vidkernels.codec.protocol import Goal, state_path

pytest.importorskip("av")
pytest.importorskip("safetensors")
pytestmark = [
    pytest.mark.skipif(_native._C is None, reason="needs the compiled module"),
    pytest.mark.usefixtures("little_work"),
]
_PLAN = gaussian.plan_for


@pytest.mark.parametrize(
    "goal", [Goal(seconds=0.5), Goal(bytes=3000), Goal(psnr=28.0)], ids=["seconds", "bytes", "psnr"]
)
def test_each_goal_gives_an_exact_file(source, tmp_path, goal, monkeypatch):
    monkeypatch.setattr(gaussian, "plan_for", _PLAN)  # all of the work
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


# ---- refused


def test_a_source_that_cannot_be_read(tmp_path, source):
    path, _ = source()
    with pytest.raises((ValueError, OSError), match=r"nothing\.mp4"):
        fit(tmp_path / "nothing.mp4", tmp_path / "o.vkv")
    with pytest.raises(ValueError, match="no frame"):
        fit(path, tmp_path / "o.vkv", start=5.0, end=6.0)
    assert not (tmp_path / "o.vkv").exists()
    assert not state_path(tmp_path / "o.vkv").exists()


def test_a_file_of_another_model_or_a_wrong_config_is_refused(tmp_path):
    def write(model, config):
        header = Header(model, 8, 6, Fraction(1, 10), config, exact=True)
        with ContainerWriter(tmp_path / "o.vkv", header) as writer:
            writer.add_gop(0, [0], {0: b"abc"}, [frame_hash(np.zeros((6, 8, 3), np.uint8))])
        return tmp_path / "o.vkv"

    with pytest.raises(ValueError, match="octree"):
        open_vkv(write("octree", {}))
    good = [-1, -1, -5, -5, -5, -8, -7, -7]
    for logs in (None, 3, good[:7], [*good, 0], [*good[:7], 9], [*good[:7], -25], [*good[:7], 0.5], [True] * 8,
                 [-5, *good[1:]]):  # fmt: skip
        with pytest.raises(ValueError, match="quanta_log2"):
            open_vkv(write("gaussian", {"quanta_log2": logs, "block": 32}))
    for block in (None, 0, 4, 33, 32.0, True, 1 << 17):
        with pytest.raises(ValueError, match="block"):
            open_vkv(write("gaussian", {"quanta_log2": good, "block": block}))
    with (
        open_vkv(write("gaussian", {"quanta_log2": good, "block": 32})) as video,
        pytest.raises(DamagedFileError, match="LAYR"),
    ):
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


def test_between_two_frames(source, tmp_path):
    """Half way between two frames the Gaussians are half way; the clock is the file's own, wherever it begins."""
    path, _ = source(frames=5)
    fit(path, tmp_path / "o.vkv")
    with open_vkv(tmp_path / "o.vkv") as video:
        middle = (video.gaussians(2) + video.gaussians(3)) / 2
        assert torch.equal(video.at(0.25), video.grid.draw(middle))
        assert torch.equal(video.at(0.5), video[4])  # the end shows the last frame
        header = video.reader.header
        with ContainerWriter(tmp_path / "late.vkv", header) as writer:
            late = [p + 70 for p in video.reader.pts(0)]
            writer.add_gop(0, late, {0: bytes(video.reader.read(0))}, list(video.reader.hashes(0)))
        with open_vkv(tmp_path / "late.vkv") as other:
            assert torch.equal(other.at(0.25), video.at(0.25))
            assert torch.equal(other.at(0.0), video[0])


def test_iterating_and_asking_at_the_same_time(source, tmp_path):
    path, _ = source(frames=6)
    fit(path, tmp_path / "o.vkv", gop=2)
    with open_vkv(tmp_path / "o.vkv") as video:
        frames = whole(tmp_path / "o.vkv", 6)
        for i, frame in enumerate(video):
            assert torch.equal(frame, frames[i])
            assert torch.equal(video[5 - i], frames[5 - i])
        next(iter(video))  # leaving early leaves no thread behind
    assert not any(t.name.startswith("vidkernels-decode") for t in threading.enumerate())
