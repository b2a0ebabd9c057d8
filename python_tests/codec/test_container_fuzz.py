"""Files changed at random: read correctly or refused in words, never a crash, a hang or a heap full of nothing."""

import resource
import struct
import tempfile
import time
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from codec import vkv

from vidkernels.codec import Audio, ContainerReader, ContainerWriter, DamagedFileError, UnsupportedFileError
from vidkernels.codec import layout as L

SECONDS = 0.5  # of processor time for one file; a sound one takes about a millisecond
MEMORY = 4 << 20
NUMBERS = (0, 1, 2, 7, 0x7F, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def tiny_audio():
    from fractions import Fraction

    times = np.array([[0, 0, 960], [960, 960, 960]], np.int64)
    return Audio("opus", 48000, "mono", Fraction(1, 48000), b"head", times, (b"one", b"packets"), b"nut")


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    plain = vkv.write(folder / "a.vkv", gops=3, audio=tiny_audio())
    grown = vkv.write(folder / "b.vkv", gops=1)
    with ContainerWriter.append(grown) as writer:
        vkv.add(writer, 1)
    with ContainerWriter(folder / "c.vkv", vkv.HEADER) as writer:
        for gop in range(3):
            writer.add_gop(5 * gop, vkv.PTS[gop], [bytes(40)], hash_layers=2)
        for gop in range(3):
            writer.add_layer(gop, bytes([gop]) * 9)
    return [plain.read_bytes(), grown.read_bytes(), (folder / "c.vkv").read_bytes()]


def mutate(rng, seeds):
    data = bytearray(seeds[rng.integers(len(seeds))])
    kinds = ["bits", "bytes", "number", "number", "cut", "longer", "splice", "drop", "double", "tail"]
    for _ in range(int(rng.integers(1, 4))):
        kind, at = kinds[rng.integers(len(kinds))], int(rng.integers(max(len(data), 1)))
        size = int(rng.choice([1, 4, 8, 40, 300]))
        if kind == "bits":
            data[at : at + 1] = bytes([data[at] ^ 1 << int(rng.integers(8))]) if data else b""
        elif kind == "bytes":
            data[at : at + size] = rng.bytes(size)
        elif kind == "number":
            value = int(rng.choice(NUMBERS)) if rng.random() < 0.7 else int(rng.integers(len(data) + 9))
            width = int(rng.choice([1, 2, 4, 8]))
            data[at // 4 * 4 : at // 4 * 4 + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        elif kind == "cut":
            del data[at:]
        elif kind == "longer":
            data += rng.bytes(size)
        elif kind == "splice":
            other = seeds[rng.integers(len(seeds))]
            data[at // 8 * 8 :] = other[int(rng.integers(len(other))) // 8 * 8 :]
        elif kind == "drop":
            del data[at // 8 * 8 : at // 8 * 8 + size // 8 * 8 + 8]
        elif kind == "double":
            data[at:at] = data[at : at + size]
        else:  # the last bytes, where the trailer lies
            place = max(len(data) - 1 - int(rng.integers(200)), 0)
            data[place : place + 1] = rng.bytes(1)
    return vkv.reseal(data) if rng.random() < 0.7 and len(data) >= 16 else bytes(data)


def read_everything(path, partial):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = ContainerReader(path, partial=partial)
    with reader as r:
        assert r.end <= path.stat().st_size
        for gop in r.gops:
            layers, pts = r.read_layers(gop), r.pts(gop)
            assert [len(v) for v in layers] == list(gop.sizes)
            assert len(pts) == gop.frames
            assert (np.diff(pts) > 0).all()
            assert r.gop_of_frame(gop.first_frame) == gop
            last = int(pts[-1]) * r.header.time_base
            if r.gop_of_time(last) == gop:  # verify refuses GOPs that overlap in time
                assert r.frame_of_time(last) == gop.first_frame + gop.frames - 1
            assert r.gop_of_time(gop.first_pts * r.header.time_base) == gop
            assert len(r.hashes(gop)) in (0, gop.frames)
        for kind in r.kinds:
            r.chunk(kind)
        r.audio()
        if not partial:
            r.verify()


def attempt(path, partial):
    """What happened; anything but the two errors goes through and fails the test."""
    try:
        read_everything(path, partial)
        return "read"
    except DamagedFileError as error:
        return "damaged" if error.path and error.reason and error.chunk else "an error without its facts"
    except UnsupportedFileError:
        return "unsupported"


@pytest.fixture
def scratch():
    """A folder in memory where there is one: a hundred thousand files are rewritten."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize("count", [2000, pytest.param(110_000, marks=pytest.mark.slow)])
def test_mutated_files(seeds, scratch, count):
    rng, path, outcomes = np.random.default_rng(count), scratch / "x.vkv", Counter()
    slowest, largest = 0.0, 0
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), before[1]))
    try:
        for number in range(count):
            path.write_bytes(mutate(rng, seeds))
            watch = number % 16 == 0  # tracing is slow; the limit on the address space holds for all
            if watch:
                tracemalloc.start()
            start = time.process_time()
            outcomes[attempt(path, partial=number % 3 == 0)] += 1
            slowest = max(slowest, time.process_time() - start)
            if watch:
                largest = max(largest, tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        if tracemalloc.is_tracing():
            tracemalloc.stop()
    assert set(outcomes) <= {"read", "damaged", "unsupported"}, outcomes
    assert min(outcomes["read"], outcomes["damaged"], outcomes["unsupported"]) > count // 1000, outcomes
    assert slowest < SECONDS
    assert largest < MEMORY


def test_the_seeds_are_sound(seeds, tmp_path):
    for data in seeds:
        (tmp_path / "x.vkv").write_bytes(data)
        assert attempt(tmp_path / "x.vkv", False) == "read"
        assert vkv.reseal(data) == data


def test_every_number_of_the_index_is_checked(seeds, scratch):
    """Each 32-bit word of the index set to hostile values, checksums right: read as before or refused."""
    data, at = seeds[0], L.PRELUDE.size
    while (chunk := L.parse_head(data, at)).kind != b"INDX":
        at = chunk.end
    outcomes = Counter()
    for place in range(chunk.start, chunk.start + chunk.length, 4):
        for value in NUMBERS:
            changed = bytearray(data)
            changed[place : place + 4] = struct.pack("<I", value)
            (scratch / "x.vkv").write_bytes(vkv.reseal(changed))
            if bytes(changed) != data:
                outcomes[attempt(scratch / "x.vkv", False)] += 1
    assert outcomes["damaged"] > 0.9 * sum(outcomes.values()), outcomes
    assert set(outcomes) <= {"read", "damaged", "unsupported"}
