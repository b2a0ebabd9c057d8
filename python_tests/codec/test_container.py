"""The `.vkv` container: what goes in comes out, from anywhere in the file, and nothing else is accepted."""

import json
import mmap
import os
import resource
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from codec import vkv
from hypothesis import given, settings
from hypothesis import strategies as st

from vidkernels.codec import (
    Audio,
    ContainerReader,
    ContainerWriter,
    DamagedFileError,
    Header,
    UnsupportedFileError,
    frame_hash,
    mux_audio,
    read_audio,
)
from vidkernels.codec import layout as L


@pytest.fixture
def path(tmp_path):
    return vkv.write(tmp_path / "clip.vkv")


def rewritten(path, change):
    data = path.read_bytes()
    path.write_bytes(change(data))
    return path


def test_everything_comes_back(path):
    with ContainerReader(path) as r:
        assert r.header == vkv.HEADER
        assert (r.frames, len(r.gops), r.interrupted) == (20, 4, False)
        for gop in r.gops:
            assert [bytes(v) for v in r.read_layers(gop)] == list(vkv.layers(gop.number).values())
            assert gop.sizes == tuple(map(len, vkv.layers(gop.number).values()))
            assert np.array_equal(r.pts(gop), vkv.PTS[gop.number])
            assert len(r.hashes(gop)) == 5
            assert all(len(h) == 8 for h in r.hashes(gop))
        assert len(r.read_layers(0, limit=2)) == 2
        assert bytes(r.chunk("CODE")) == b"shared codebook"
        assert r.chunk("NONE") is None
        assert r.audio() is None
        assert [g.number for g in r.gops[1:3]] == [1, 2]
        assert r.gops[-1].number == 3


def test_the_same_content_is_the_same_file(tmp_path):
    a, b = (vkv.write(tmp_path / name).read_bytes() for name in ("a.vkv", "b.vkv"))
    assert a == b


def test_the_format_is_the_documented_one(tmp_path):
    """A reader of its own, written from docs/container.md, with struct only."""
    with ContainerWriter(tmp_path / "x.vkv", Header("m", 3, 2, Fraction(1, 25), hash_bytes=4)) as w:
        w.add_gop(0, [10, 11], [b"abc"], [b"1234", b"5678"])
    data = (tmp_path / "x.vkv").read_bytes()
    assert data[:12] == b"\x89VKV\r\n\x1a\n" + struct.pack("<HH", 1, 0)
    assert struct.unpack("<I", data[12:16])[0] == zlib.crc32(data[:12])
    at, found = 16, []
    while at < len(data):
        kind, flags, length, crc, own = struct.unpack_from("<4sIQII", data, at)
        payload = data[at + 24 : at + 24 + length]
        assert own == zlib.crc32(data[at : at + 20])
        assert crc == zlib.crc32(payload)
        assert flags == 1
        found.append((kind, at, payload))
        at += 24 + (length + 7) // 8 * 8
    assert at == len(data)
    kinds = [f[0] for f in found]
    assert kinds == [b"HEAD", b"GOPI", b"LAYR", b"INDX", b"TAIL"]
    head, gop, layer, index, tail = found
    assert json.loads(head[2]) == {"model": "m", "size": [3, 2], "time_base": [1, 25], "hash_bytes": 4}
    assert struct.unpack_from("<IIQqqHBBI", gop[2]) == (0, 2, 0, 10, 12, 1, 4, 0, 1)
    assert gop[2][40:] == b"12345678"
    assert layer[2] == struct.pack("<II", 0, 0) + b"abc"
    assert struct.unpack_from("<QIIII", index[2]) == (2, 1, 1, 0, 0)
    assert struct.unpack_from("<QqqQIIHHI", index[2], 24) == (0, 10, 12, gop[1], 0, 2, 1, 1, 0)
    assert struct.unpack_from("<QQ", index[2], 72) == (layer[1], 3)
    assert struct.unpack("<QQ", tail[2]) == (index[1], len(data))


def test_random_access_by_frame_and_time(path):
    base = vkv.HEADER.time_base
    flat = np.concatenate(vkv.PTS)
    with ContainerReader(path) as r:
        for frame, pts in enumerate(flat):
            assert r.gop_of_frame(frame).number == frame // 5
            assert r.frame_of_time(int(pts) * base) == frame
            assert r.gop_of_time(int(pts) * base).number == frame // 5
        between = (int(flat[7]) + Fraction(1, 2)) * base
        assert r.frame_of_time(between) == 7
        assert r.frame_of_time(float(between)) == 7
        end = r.gops[-1].end_pts
        assert end == flat[-1] + 1001
        assert r.duration == (end - 7) * base
        assert r.frame_of_time((end - 1) * base) == 19
        for outside in (6 * base, end * base, -1.0, float("nan"), float("inf"), 1e300):
            with pytest.raises(ValueError, match=r"time|seconds"):
                r.frame_of_time(outside)
        for frame in (-1, 20):
            with pytest.raises(ValueError, match="expected a frame from 0 to 19"):
                r.gop_of_frame(frame)
        with pytest.raises(ValueError, match="expected a layer"):
            r.read(0, 3)
        with pytest.raises(ValueError, match="expected a GOP"):
            r.read(4)


def test_negative_times_and_given_end(tmp_path):
    with ContainerWriter(tmp_path / "x.vkv", Header("m", 3, 2, Fraction(1, 25))) as w:
        w.add_gop(0, [-5], [b"a"])
        w.add_gop(1, [0], [b"b"], end_pts=100)
    with ContainerReader(tmp_path / "x.vkv") as r:
        assert r.frame_of_time(Fraction(-5, 25)) == 0
        assert r.frame_of_time(99 / 25) == 1
        assert r.duration == Fraction(105, 25)
        assert r.hashes(0) == []


def test_an_empty_film(tmp_path):
    ContainerWriter(tmp_path / "x.vkv", vkv.HEADER).close()
    with ContainerReader(tmp_path / "x.vkv") as r:
        assert (r.frames, len(r.gops), r.duration) == (0, 0, 0)
        assert r.verify().gops == 0
        with pytest.raises(ValueError, match="nothing is shown"):
            r.gop_of_time(0)


def test_base_layers_first(tmp_path):
    with ContainerWriter(tmp_path / "x.vkv", Header("m", 3, 2, Fraction(1, 25))) as w:
        for g in range(3):
            w.add_gop(g, [g], [b"base%d" % g], hash_layers=2)
        for g in range(3):
            assert w.add_layer(g, b"fine%d" % g) == 1
    with ContainerReader(tmp_path / "x.vkv") as r:
        assert [[bytes(v) for v in r.read_layers(g)] for g in r.gops] == [
            [b"base%d" % g, b"fine%d" % g] for g in range(3)
        ]
        cut = int(r.index.layers["offset"][3])  # behind the last base layer and the first refinement
    whole = (tmp_path / "x.vkv").read_bytes()
    (tmp_path / "cut.vkv").write_bytes(whole[:cut])
    with pytest.raises(DamagedFileError, match="cut short"):
        ContainerReader(tmp_path / "cut.vkv")
    with ContainerReader(tmp_path / "cut.vkv", partial=True) as r:
        assert [g.layers for g in r.gops] == [2, 1, 1]
        assert r.verify(lambda g, d: 1 / 0).checked_frames == 0  # no hashes were kept


def test_partial_reads_what_is_whole_at_every_cut(path, tmp_path):
    whole = path.read_bytes()
    with ContainerReader(path) as r:
        ends = [(L.parse_head(whole, int(o)).end) for o in r.index.layers["offset"]]
        head = L.parse_head(whole, L.PRELUDE.size).end
    cut = tmp_path / "cut.vkv"
    for size in range(head, len(whole), 3):
        cut.write_bytes(whole[:size])
        with ContainerReader(cut, partial=True) as r:
            arrived = sum(end <= size for end in ends)
            assert sum(g.layers for g in r.gops) == arrived
            for g in r.gops:
                expected = list(vkv.layers(g.number).values())[: g.layers]
                assert [bytes(v) for v in r.read_layers(g)] == expected


def test_verify_reports_profile_and_frames(path):
    with ContainerReader(path) as r:
        report = r.verify(vkv.decode)
        assert (report.profile, report.ok, report.mismatches) == ("exact", True, ())
        assert (report.frames, report.gops, report.hashed_frames, report.checked_frames) == (20, 4, 20, 20)
        assert report.bytes == path.stat().st_size

        def wrong(gop, layers):
            frames = vkv.decode(gop, layers)
            if gop.number == 2:
                frames[3, 0, 0, 0] ^= 1
            return frames

        report = r.verify(wrong)
        assert report.mismatches == (13,)
        assert not report.ok
        with pytest.raises(ValueError, match="expected 5 frames"):
            r.verify(lambda gop, layers: vkv.decode(gop, layers)[:4])


def test_not_exact_is_said(tmp_path):
    header = Header("m", 6, 4, Fraction(1, 25), exact=False)
    frame = np.zeros((4, 6, 3), np.uint8)
    with ContainerWriter(tmp_path / "x.vkv", header) as w:
        w.add_gop(0, [0], [b"x"], [frame_hash(frame)])
    with ContainerReader(tmp_path / "x.vkv") as r:
        report = r.verify(lambda gop, layers: [frame + 1])
        assert (report.profile, report.mismatches, report.ok) == ("not exact", (0,), True)


def test_frame_hash_is_pinned():
    import hashlib

    frame = torch.arange(2 * 3 * 3, dtype=torch.uint8).reshape(2, 3, 3)
    expected = hashlib.sha256(b"\x02\0\0\0\x03\0\0\0" + bytes(range(18))).digest()
    assert frame_hash(frame, 32) == expected
    assert frame_hash(frame.numpy()) == expected[:8]
    strided = torch.stack([frame, frame], -1)[..., 0]
    assert frame_hash(strided, 32) == expected
    with pytest.raises(ValueError, match="uint8"):
        frame_hash(frame.float())


# ---- writing


def test_the_old_file_stays_until_the_new_one_is_complete(path):
    before = path.read_bytes()

    def broken():
        with ContainerWriter(path, vkv.HEADER) as w:
            vkv.add(w, 0)
            raise KeyError("stop")

    with pytest.raises(KeyError):
        broken()
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["clip.vkv"]


def test_append(path, tmp_path):
    part = vkv.write(tmp_path / "part.vkv", gops=2)
    with ContainerReader(part) as old:  # stays open, as a player would
        view = old.read(1, 1)
        with ContainerWriter.append(part) as w:
            assert w.frames == 10
            vkv.add(w, 2)
        with ContainerWriter.append(part) as w:
            vkv.add(w, 3)
            w.add_chunk("CODE", b"newer")
            w.add_layer(0, b"finer still")
        assert bytes(view) == vkv.layers(1)[1]
        assert old.frames == 10
    with ContainerReader(part) as r, ContainerReader(path) as at_once:
        assert r.verify(vkv.decode).ok
        assert bytes(r.chunk("CODE")) == b"newer"
        assert bytes(r.read(0, 3)) == b"finer still"
        assert list(r.gops)[1:] == list(at_once.gops)[1:]
        for g in at_once.gops:
            assert [bytes(v) for v in r.read_layers(g, 3)] == [bytes(v) for v in at_once.read_layers(g)]
            assert np.array_equal(r.pts(g.number), at_once.pts(g.number))


def test_append_interrupted_anywhere_keeps_the_old_film(tmp_path):
    part = vkv.write(tmp_path / "part.vkv", gops=2)
    before = part.read_bytes()
    with ContainerWriter.append(part) as w:
        vkv.add(w, 2)
    after = part.read_bytes()
    assert after[: len(before)] == before
    for size in range(len(before), len(after)):
        for tail in (after[len(before) : size], bytes(size - len(before))):  # lost end, or lost blocks
            part.write_bytes(before + tail)
            with warnings.catch_warnings():
                warnings.simplefilter("error" if size == len(before) else "ignore")
                reader = ContainerReader(part)
            with reader as r:
                assert (r.frames, r.interrupted) == (10, size > len(before))
                assert r.verify(vkv.decode).ok
    with pytest.warns(UserWarning, match="unfinished append"):
        ContainerReader(part)
    with ContainerWriter.append(part) as w:  # drops the rest and goes on
        vkv.add(w, 2)
    assert part.read_bytes() == after


def test_append_aborts_cleanly_and_alone(path):
    before = path.read_bytes()
    writer = ContainerWriter.append(path)
    with pytest.raises(BlockingIOError, match="another writer"):
        ContainerWriter.append(path)
    writer.add_gop(20, [10**6], [b"new"])
    writer.abort()
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="the file is closed"):
        writer.add_gop(21, [10**7], [b"new"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, [9**9], [b""]), "expected `first_frame` 5"),
        ((5, [], [b""]), "integers"),
        ((5, [1.5], [b""]), "integers"),
        ((5, [0], [b""]), "after those of the GOP before"),
        ((5, [10**6, 10**6], [b""]), "rise from frame to frame"),
        ((5, [10**6, 2**40], [b""]), "after those"),
        ((5, [2**63], [b""]), "after those"),
        ((5, [10**6], {1: b""}), "without gaps"),
        ((5, [10**6], [b""] * 257), "at most 256 layers"),
        ((5, [10**6], [b""], [b"short"]), "expected 1 hashes of 8 bytes"),
        ((5, [10**6], [b""], [bytes(8)] * 2), "expected 1 hashes of 8 bytes"),
    ],
)
def test_wrong_gops_are_refused(tmp_path, arguments, message):
    writer = ContainerWriter(tmp_path / "x.vkv", vkv.HEADER)
    vkv.add(writer, 0)
    with pytest.raises(ValueError, match=message):
        writer.add_gop(*arguments)
    vkv.add(writer, 1)  # a refused GOP leaves nothing behind
    writer.close()
    with ContainerReader(tmp_path / "x.vkv") as r:
        assert r.verify(vkv.decode).ok
        assert len(r.gops) == 2


def test_a_layer_that_is_no_bytes_leaves_nothing_behind(tmp_path):
    writer = ContainerWriter(tmp_path / "x.vkv", vkv.HEADER)
    with pytest.raises(TypeError):
        writer.add_gop(0, [0], [b"fine", "text"])
    writer.add_gop(0, [0], [np.arange(3, dtype=np.int16)])  # anything that lends its bytes will do
    writer.close()
    with ContainerReader(tmp_path / "x.vkv") as r:
        assert bytes(r.read(0)) == b"\0\0\1\0\2\0"
    with pytest.raises(FileNotFoundError, match="no such file"):
        ContainerWriter.append(tmp_path / "y.vkv")


STEPS = st.lists(st.integers(1, 1 << 31) | st.just(40), min_size=1, max_size=6)
LAYERS = st.lists(st.binary(max_size=50), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(STEPS, LAYERS), max_size=6), st.integers(-(1 << 40), 1 << 40), st.integers(0, 6))
def test_any_gops_come_back(gops, start, cut):
    """In one go or with an append after `cut` GOPs."""
    with tempfile.TemporaryDirectory() as folder:
        path, frames, times = Path(folder) / "x.vkv", 0, []
        writer = ContainerWriter(path, Header("m", 2, 2, Fraction(1, 1000), hash_bytes=0))
        for number, (steps, layers) in enumerate(gops):
            if number == cut:
                writer.close()
                writer = ContainerWriter.append(path)
            pts = np.cumsum(steps) + start
            writer.add_gop(frames, pts, layers)
            start, frames = int(pts[-1]), frames + len(steps)
            times.append(pts)
        writer.close()
        with ContainerReader(path) as r:
            assert r.verify().frames == frames
            for (_, layers), pts, gop in zip(gops, times, r.gops, strict=True):
                assert [bytes(v) for v in r.read_layers(gop)] == layers
                assert np.array_equal(r.pts(gop), pts)
                shown = [r.frame_of_time(int(t) * r.header.time_base) for t in pts]
                assert shown == list(range(gop.first_frame, gop.first_frame + gop.frames))


def test_a_gop_without_layers_is_refused_at_the_end(tmp_path):
    writer = ContainerWriter(tmp_path / "x.vkv", vkv.HEADER)
    writer.add_gop(0, [0], [])
    with pytest.raises(ValueError, match="no layers"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"width": 65},
        {"height": True},
        {"crop": (2, 0)},
        {"coded_size": (1 << 16, 1 << 16)},
        {"rotation": 45},
        {"time_base": Fraction(0)},
        {"time_base": 0.5},
        {"hash_bytes": 3},
        {"model": ""},
        {"model": "a b"},
        {"metadata": {"a": 1}},
        {"exact": 1},
    ],
)
def test_wrong_headers_are_refused(change):
    with pytest.raises(ValueError, match="Header: "):
        Header(**(vars(vkv.HEADER) | change))


@pytest.mark.parametrize(
    "config", [{"x": float("nan")}, {"x": (1, 2)}, {1: 2}, {"x": object()}, {"x": "y" * (1 << 20)}]
)
def test_config_must_survive_json(config):
    with pytest.raises(ValueError, match="Header: "):
        Header("m", 1, 1, Fraction(1, 25), config=config).to_bytes()


# ---- refusing


def header_file(path, text):
    data = path.read_bytes()
    path.write_bytes(vkv.replace_chunk(data, b"HEAD", text if isinstance(text, bytes) else text.encode()))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "nonsense",
        b"\xff\xfe",
        '{"model":"m","size":[1,1],"time_base":[1,25],"model":"n"}',
        '{"model":"m","size":[1,1],"time_base":[1,0]}',
        '{"model":"m","size":[1,1.5],"time_base":[1,25]}',
        '{"model":"m","size":[1,1],"time_base":[1,25],"config":{"x":NaN}}',
        '{"model":"m","size":[1,1],"time_base":[1,25],"config":{"x":1e999}}',
        '{"model":"m","size":[1,1],"time_base":[1,25],"color":{"primaries":-1}}',
        '{"model":"m","size":[1,1],"time_base":[1,25],"color":[]}',
        '{"model":"m","size":[1,1],"time_base":[1,25],"required":3}',
        '{"model":"m","size":[1,1],"time_base":[1,25],"config":' + '{"a":' * 20 + "1" + "}" * 21,
        '{"model":"m","size":[1,1],"time_base":[1,25],"config":{"a":' + "[" * 100000 + "]" * 100000 + "}}",
        '{"model":"m","size":[' + "9" * 5000 + ',1],"time_base":[1,25]}',
        b'{"model":"m","size":[1,1],"time_base":[1,25]}' + b" " * (1 << 20),
    ],
    ids=range(16),
)
def test_hostile_headers_are_refused(path, text):
    with pytest.raises(DamagedFileError, match="HEAD") as caught:
        ContainerReader(header_file(path, text))
    assert caught.value.offset == 16
    assert caught.value.chunk == "HEAD"


def test_unknown_fields_are_skipped_unless_required(path):
    fields = json.loads(vkv.HEADER.to_bytes()) | {"newer": [1], "color": {"primaries": 1, "newer": 1}}
    partial = {"partial": True}  # the header's length changes, so the index of the file no longer fits
    with ContainerReader(header_file(path, json.dumps(fields)), **partial) as r:
        assert r.header.color.primaries == 1
        assert r.frames == 20
    fields["required"] = ["newer"]
    with pytest.raises(UnsupportedFileError, match="newer"):
        ContainerReader(header_file(path, json.dumps(fields)), **partial)


def test_unknown_chunks_are_skipped_unless_required(tmp_path):
    for required in (False, True):
        with ContainerWriter(tmp_path / "x.vkv", vkv.HEADER) as w:
            w.add_chunk("zzzz", b"?", required=required)
            vkv.add(w, 0)
        if required:
            with pytest.raises(UnsupportedFileError, match="'zzzz'"):
                ContainerReader(tmp_path / "x.vkv")
        with ContainerReader(tmp_path / "x.vkv", known=["zzzz"] if required else []) as r:
            assert r.verify(vkv.decode).ok


def test_a_later_version_is_refused_without_reading_on(path):
    data = bytearray(path.read_bytes())
    data[8:10] = struct.pack("<H", 2)
    path.write_bytes(bytes(data[:12]) + struct.pack("<I", zlib.crc32(data[:12])) + b"who knows")
    with pytest.raises(UnsupportedFileError, match="format version 2"):
        ContainerReader(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: b"", "shorter"),
        (lambda d: d[:10], "shorter"),
        (lambda d: b"\0" + d[1:], "does not begin"),
        (lambda d: d.replace(b"\r\n", b"\n"), "does not begin"),
        (lambda d: d[:-1], "cut short"),
        (lambda d: d[:16], "outside the file"),
        (lambda d: d[:40] + bytes([d[40] ^ 1]) + d[41:], "checksum of the payload"),
    ],
    ids=range(7),
)
def test_the_error_says_file_offset_chunk_and_reason(path, change, reason):
    rewritten(path, change)
    with pytest.raises(DamagedFileError, match=reason) as caught:
        ContainerReader(path)
    text = str(caught.value)
    assert text.startswith("vkv: damaged file: ")
    assert caught.value.path == str(path)
    assert all(part in text for part in ("  path  ", "  offset", "  chunk ", "HINT:"))


def test_every_changed_byte_is_noticed_by_verify(path):
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        assert not read_all(path, path.read_bytes()), at


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        ContainerReader(tmp_path / "none.vkv")
    with pytest.raises(FileNotFoundError):
        ContainerReader(tmp_path)


def test_gops_that_overlap_in_time_are_found_by_verify(path):
    data = bytearray(path.read_bytes())
    early = int(vkv.PTS[0][-1]) - 1
    with ContainerReader(path) as r:
        gop = int(r.index.gops["offset"][1])
    index = data.rfind(b"INDX") + 24 + 24 + 48
    for place in (gop + 24 + 16, index + 8):  # the first time of GOP 1, in its head and in the index
        struct.pack_into("<q", data, place, early)
    path.write_bytes(vkv.reseal(data))
    with ContainerReader(path) as r:
        assert r.gop_of_time(early * r.header.time_base).number == 1
        with pytest.raises(DamagedFileError, match="begins before"):
            r.verify()


# ---- memory


def test_hostile_lengths_allocate_nothing(path):
    """Counts of billions with right checksums, in a process that may not have the memory they ask for."""
    data = path.read_bytes()
    at, names = L.PRELUDE.size, []
    while at < len(data):
        chunk = L.parse_head(data, at)
        names.append(chunk)
        at = chunk.end
    files = []
    for chunk in names:
        for place in range(chunk.offset, chunk.offset + 24 + min(chunk.length, 120), 4):
            for value in (0xFFFFFFFF, 0x7FFFFFFF, 0x10000):
                changed = bytearray(data)
                changed[place : place + 4] = struct.pack("<I", value)
                files.append(vkv.reseal(changed))
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), before[1]))
    try:
        refused = sum(not read_all(path, content) for content in files)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert refused > len(files) // 2


def read_all(path, content):
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = ContainerReader(path)
        with reader as r:
            r.verify()
        return True
    except (DamagedFileError, UnsupportedFileError):
        return False


def test_reading_one_gop_of_a_large_file_is_cheap(tmp_path):
    import tracemalloc

    block = os.urandom(1 << 20)
    with ContainerWriter(tmp_path / "x.vkv", Header("m", 3, 2, Fraction(1, 25))) as w:
        for g in range(32):
            w.add_gop(g, [g], [block])
    tracemalloc.start()
    try:
        with ContainerReader(tmp_path / "x.vkv") as r:
            assert len(r.read(r.gop_of_frame(17))) == 1 << 20
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()


def test_views_outlive_the_reader(path):
    with ContainerReader(path) as r:
        view = r.read(0, 1)
    assert bytes(view) == vkv.layers(0)[1]
    with pytest.raises(ValueError, match="closed"):
        r.read(0)


def test_a_killed_writer_leaves_the_old_file(path, tmp_path):
    before = path.read_bytes()
    script = (
        "import os, sys; from vidkernels.codec import ContainerReader, ContainerWriter\n"
        "w = ContainerWriter.append(sys.argv[1]); w.add_gop(20, [10**6], [bytes(10**6)]); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == 9
    assert path.stat().st_size > len(before) + 10**6
    with pytest.warns(UserWarning, match="unfinished"):
        reader = ContainerReader(path)
    with reader as r:
        assert r.frames == 20
        assert r.verify(vkv.decode).ok


# ---- audio


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
