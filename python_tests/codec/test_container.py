"""The `.vkv` container: what goes in comes out, from anywhere in the file."""

import json
import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest
import torch
from codec import vkv

from vidkernels.codec import (
    ContainerReader,
    ContainerWriter,
    DamagedFileError,
    Header,
    frame_hash,
)
from vidkernels.codec import layout as L


@pytest.fixture
def path(tmp_path):
    return vkv.write(tmp_path / "clip.vkv")


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
