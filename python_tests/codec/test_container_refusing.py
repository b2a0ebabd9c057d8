"""What is no `.vkv` file is refused, with a reason, before it costs anything."""

import json
import struct
import zlib

import pytest
from codec import vkv

from vidkernels.codec import (
    ContainerReader,
    ContainerWriter,
    DamagedFileError,
    UnsupportedFileError,
)


@pytest.fixture
def path(tmp_path):
    return vkv.write(tmp_path / "clip.vkv")


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
    vkv.rewritten(path, change)
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
        assert not vkv.read_all(path, path.read_bytes()), at


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
