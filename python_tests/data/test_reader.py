import multiprocessing
import operator
import pickle
import random
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vidkernels.data import VideoReader, write_video


def digest(frame):
    return hash(frame.numpy().tobytes())


KINDS = {
    "bframes.mp4": {"options": {"g": "12", "bf": "3", "x264-params": "scenecut=0"}},
    "open_gop.mkv": {"options": {"g": "8", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}},
    "intra_refresh.mp4": {"options": {"g": "10", "bf": "0", "x264-params": "intra-refresh=1"}},
    "stream.ts": {"options": {"g": "8", "bf": "2"}},
    "raw.h264": {"options": {"g": "8", "bf": "2"}},
    "bframes.avi": {"options": {"g": "8", "bf": "2"}},
    "mpeg4.avi": {"codec": "mpeg4", "crf": None, "options": {"g": "8", "bf": "2"}},
    "hidden_frames.webm": {
        "codec": "libvpx-vp9",
        "options": {"g": "9", "auto-alt-ref": "1", "lag-in-frames": "16"},
    },
    "pictures.mkv": {"codec": "mjpeg", "crf": None, "pix_fmt": "yuvj420p"},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=10:log-level=none"}},
    "odd.mp4": {"height": 45, "width": 67},
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_random_access_equals_plain_decode(make_video, name, threads, plain_decode):
    path = make_video(name, **KINDS[name])
    expected = [digest(frame) for frame in plain_decode(path)]
    assert len(expected) == 40
    assert len(set(expected)) == 40, "the fixture's frames must differ, or order could not be seen"
    with VideoReader(path, threads=threads) as reader:
        assert len(reader) == 40
        assert [digest(frame) for frame in reader] == expected
        shuffled = random.Random(1).sample(range(40), 40)
        for i in shuffled:
            assert digest(reader[i]) == expected[i], f"frame {i}"
        assert [digest(frame) for frame in reader.get_frames([39, 0, 7, 7, -1])] == [
            expected[i] for i in (39, 0, 7, 7, 39)
        ]


def test_real_clips_random_access(real_clip, plain_decode):
    expected = [digest(frame) for frame in plain_decode(real_clip)]
    reader = VideoReader(real_clip)
    assert len(reader) == len(expected)
    assert reader.fps == 25
    assert reader.duration == pytest.approx(len(expected) / 25, abs=1e-12)
    assert [digest(frame) for frame in reader[::-9]] == expected[::-9]
    for i in random.Random(0).sample(range(len(expected)), 12):
        assert digest(reader[i]) == expected[i]
    reader.close()


def test_only_needed_groups_are_decoded(bframes, monkeypatch):
    import vidkernels.data._cursor as cursor

    reader = VideoReader(bframes, threads=1)
    reader._release()
    fed = []
    decode = cursor._decode
    monkeypatch.setattr(
        cursor, "_decode", lambda context, packet, av: (fed.append(packet), decode(context, packet, av))[1]
    )
    reader[37]  # keyframes at 0, 12, 24, 36
    assert len(fed) <= 6
    fed.clear()
    reader.get_frames([39, 38, 39])
    assert len(fed) <= 4, "reading on needs no seek"
    fed.clear()
    reader.get_frames([1, 25])
    assert len(fed) <= 2 * 7


def test_slices_shapes_and_order(bframes):
    reader = VideoReader(bframes)
    assert reader[3].shape == (48, 64, 3)
    assert reader[3].dtype == torch.uint8
    assert torch.equal(reader[5:15:4], torch.stack([reader[5], reader[9], reader[13]]))
    assert torch.equal(reader[10:4:-3], torch.stack([reader[10], reader[7]]))
    assert reader[4:4].shape == (0, 48, 64, 3)
    assert torch.equal(reader.get_frames(torch.tensor([8, 2])), torch.stack([reader[8], reader[2]]))


def test_lossless_file_gives_the_written_pixels(folder, numbered_frames):
    frames = numbered_frames(10, 33, 41)
    write_video(folder / "exact.mkv", frames, 30, "libx264rgb", crf=0)
    assert torch.equal(VideoReader(folder / "exact.mkv")[:], frames)


def test_index_out_of_range_names_the_length(bframes):
    reader = VideoReader(bframes)
    for i in (40, -41, 10**9):
        with pytest.raises(IndexError, match="40 frames"):
            reader[i]
    with pytest.raises(TypeError):
        reader[1.5]


def test_variable_frame_rate_times(make_video):
    times = [0, 0.04, 0.1, 0.11, 0.3, 0.333, 0.5, 0.501, 0.6, 1.7]
    path = make_video("vfr.mp4", count=10, timestamps=times, options={"bf": "2", "g": "4"})
    reader = VideoReader(path)
    assert reader.timestamps.tolist() == pytest.approx(times, abs=1e-5)
    assert reader.timestamps.dtype == torch.float64
    sequential = reader[:]
    for t, i in [
        (0, 0),
        (0.039, 0),
        (0.04, 1),
        (0.0999, 1),
        (0.2, 3),
        (0.29, 3),
        (0.4, 5),
        (1.0, 8),
        (1.7, 9),
    ]:
        assert torch.equal(reader.get_frames_at(t), sequential[i]), t
    assert torch.equal(reader.get_frames_at([1.0, 0.0, 0.2]), sequential[[8, 0, 3]])
    with pytest.raises(ValueError, match=r"no frame is on display at -0\.1 s"):
        reader.get_frames_at(-0.1)
    with pytest.raises(ValueError, match="no frame is on display"):
        reader.get_frames_at(60.0)


def test_time_of_every_frame_finds_that_frame(real_clip):
    reader = VideoReader(real_clip)
    stamps = reader.timestamps
    assert [reader._number_at(t) for t in stamps.tolist()] == list(range(len(reader)))
    assert [reader._number_at(i / 25) for i in range(len(reader))] == list(range(len(reader)))
    middles = stamps + 0.02
    assert [reader._number_at(t) for t in middles.tolist()] == list(range(len(reader)))


def test_stream_that_starts_late(make_video):
    reader = VideoReader(make_video("stream.ts", **KINDS["stream.ts"]))
    start = float(reader.timestamps[0])
    assert start > 0
    assert torch.equal(reader.get_frames_at(start + 0.041), reader[1])
    assert reader.duration == pytest.approx(40 / 25, abs=1e-6)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(make_video, degrees, plain_decode):
    path = make_video(f"turned{degrees}.mp4", count=3, rotation=degrees)
    upright = torch.stack(plain_decode(path))
    reader = VideoReader(path)
    assert reader.rotation == degrees
    expected = torch.rot90(upright, -degrees // 90, dims=(1, 2))
    assert torch.equal(reader[:], expected)
    assert reader.size == tuple(expected.shape[1:3])


def test_display_matrices_with_mirroring():
    from vidkernels.data._orient import Orientation

    class Frame:
        def __init__(self, a, b, c, d):
            values = [a * 65536, b * 65536, 0, c * 65536, d * 65536, 0, 0, 0, 1 << 30]
            self.side_data = {"DISPLAYMATRIX": np.array(values, np.int32).tobytes()}

    picture = np.arange(6).reshape(2, 3)
    for a, b, c, d in [
        (1, 0, 0, 1),
        (-1, 0, 0, 1),
        (1, 0, 0, -1),
        (0, 1, 1, 0),
        (0, 1, -1, 0),
        (0, -1, -1, 0),
    ]:
        # where each pixel centre goes, by the matrix's own definition x' = a x + c y, y' = b x + d y
        moved = {(a * x + c * y, b * x + d * y): picture[y, x] for y in range(2) for x in range(3)}
        left, top = min(x for x, _ in moved), min(y for _, y in moved)
        got = Orientation.of(Frame(a, b, c, d)).apply(picture)
        assert got.size == 6
        for (x, y), value in moved.items():
            assert got[y - top, x - left] == value, (a, b, c, d)


def test_edit_list_hides_leading_frames(bframes, folder, plain_decode):
    data = bytearray(Path(bframes).read_bytes())
    at = data.index(b"elst") + 12  # version and flags, count; then duration, media time
    duration, start = (int.from_bytes(data[at + k : at + k + 4], "big") for k in (0, 4))
    ticks = av.open(bframes).streams.video[0].time_base.denominator // 25
    data[at + 4 : at + 8] = (start + 5 * ticks).to_bytes(4, "big")
    path = folder / "edited.mp4"
    path.write_bytes(data)
    assert duration > 0
    whole = plain_decode(bframes)
    reader = VideoReader(path)
    assert reader.timestamps[0] == 0
    for i in (20, 0, 7, 34, 3):
        assert torch.equal(reader[i], whole[i + 5]), i
    assert len(reader) == len(plain_decode(path)) == 35


def test_missing_pts_are_counted(make_video):
    path = make_video("raw.h264", **KINDS["raw.h264"])
    reader = VideoReader(path)
    assert reader.timestamps.tolist() == pytest.approx([i / 25 for i in range(40)])
    assert torch.equal(reader.get_frames_at(0.4), reader[10])


def test_size_scales_frames(make_video, bframes):
    assert VideoReader(bframes, size=(24, 40))[:3].shape == (3, 24, 40, 3)
    assert VideoReader(bframes, size=12).size == (12, 16)
    assert VideoReader(bframes, size=480).size == (48, 64)
    turned = make_video("turned90.mp4", count=3, rotation=90)
    assert VideoReader(turned, size=(32, 24))[0].shape == (32, 24, 3)


def test_pickle_close_and_context(bframes):
    reader = VideoReader(bframes)
    frame = reader[13]
    twin = pickle.loads(pickle.dumps(reader))
    assert torch.equal(twin[13], frame)
    with reader:
        pass
    with pytest.raises(ValueError, match="closed"):
        reader[0]
    assert len(reader) == 40
    assert torch.equal(twin[13], frame)


def test_open_decoder_survives_a_fork(bframes):
    reader = VideoReader(bframes, threads=2)
    frame = reader[17]  # a decoder with threads is open when the process forks
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(reader[21].tolist()))
    child.start()
    got = queue.get(timeout=30)
    child.join(30)
    assert child.exitcode == 0
    assert got == reader[21].tolist()
    assert torch.equal(reader[17], frame)


def test_reader_travels_to_a_spawned_process(bframes):
    reader = VideoReader(bframes, threads=2)
    frame = reader[17]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert torch.equal(pool.submit(operator.getitem, reader, 17).result(timeout=60), frame)


def test_importing_the_package_leaves_av_alone():
    code = "import sys, vidkernels as vk; vk.data.ClipSampler, vk.data.VideoReader; assert 'av' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_fps_of_ntsc(make_video):
    path = make_video("ntsc.mp4", count=12, fps=Fraction(30000, 1001))
    reader = VideoReader(path)
    assert reader.fps == pytest.approx(30000 / 1001, abs=1e-9)
    assert reader.timestamps[7] == pytest.approx(7 * 1001 / 30000, abs=1e-9)


def test_stream_that_changes_its_size(make_video, folder):
    small, large = (make_video(f"{n}.h264", count=5, height=n, width=n, options={"bf": "0"}) for n in (32, 64))
    joined = folder / "joined.h264"
    joined.write_bytes(Path(small).read_bytes() + Path(large).read_bytes())
    reader = VideoReader(joined)
    assert len(reader) == 10
    assert reader[:].shape == (10, 32, 32, 3)
