"""Writing a `.vkv` file: whole or not at all, and adding to one without ever breaking it."""

import tempfile
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from codec import vkv
from hypothesis import given, settings
from hypothesis import strategies as st

from vidkernels.codec import (
    ContainerReader,
    ContainerWriter,
    Header,
)


@pytest.fixture
def path(tmp_path):
    return vkv.write(tmp_path / "clip.vkv")


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
