"""Reading a `.vkv` file costs what is read, and outlives what happens around it."""

import mmap
import os
import resource
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from codec import vkv

from vidkernels.codec import (
    ContainerReader,
    ContainerWriter,
    Header,
)
from vidkernels.codec import layout as L


@pytest.fixture
def path(tmp_path):
    return vkv.write(tmp_path / "clip.vkv")


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
        refused = sum(not vkv.read_all(path, content) for content in files)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert refused > len(files) // 2


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
