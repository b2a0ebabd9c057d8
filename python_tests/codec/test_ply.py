"""PLY files of 3D Gaussians: bits that survive, files of other tools, files that lie."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidkernels.codec.ply import GaussianCloud, read_ply, write_ply

NAMES = ("means", "colors", "opacities", "scales", "quats", "harmonics", "normals")


def cloud(count, coefficients=0, seed=0):
    g = torch.Generator().manual_seed(seed)

    def bits(*shape):  # any float32 at all: NaNs with payload, infinities, subnormals
        return torch.randint(-(2**31), 2**31, shape, generator=g).to(torch.int32).view(torch.float32)

    return GaussianCloud(
        bits(count, 3), bits(count, 3), bits(count), bits(count, 3), bits(count, 4), bits(count, 3, coefficients),
        bits(count, 3),
    )  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 17])
@pytest.mark.parametrize("degree", [0, 1, 3])
def test_round_trip_keeps_every_bit(tmp_path, count, degree):
    written = cloud(count, (degree + 1) ** 2 - 1)
    write_ply(tmp_path / "a.ply", written)
    read = read_ply(tmp_path / "a.ply")
    for name in NAMES:
        a, b = (getattr(x, name).contiguous().view(torch.int32) for x in (written, read))
        assert torch.equal(a, b), name
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


def test_the_layout_is_the_one_that_viewers_read(tmp_path):
    """Header and one row of degree 1, byte for byte."""
    rows = torch.arange(26, dtype=torch.float32)[None]
    written = GaussianCloud(
        rows[:, 0:3], rows[:, 6:9], rows[:, 18], rows[:, 19:22], rows[:, 22:26], rows[:, 9:18].reshape(1, 3, 3),
        rows[:, 3:6],
    )  # fmt: skip
    write_ply(tmp_path / "a.ply", written)
    names = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 " + " ".join(f"f_rest_{i}" for i in range(9))
    names += " opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
    head = "ply\nformat binary_little_endian 1.0\nelement vertex 1\n"
    head += "".join(f"property float {name}\n" for name in names.split()) + "end_header\n"
    assert (tmp_path / "a.ply").read_bytes() == head.encode() + struct.pack("<26f", *range(26))


FIELDS = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2",
          "rot_0", "rot_1", "rot_2", "rot_3"]  # fmt: skip


def header(kind="ascii", count=2, fields=FIELDS, extra=""):
    lines = "".join(f"property float {name}\n" for name in fields)
    return f"ply\nformat {kind} 1.0\ncomment made by hand\nelement vertex {count}\n{lines}{extra}end_header\n"


def test_ascii_files_with_other_order_and_more_elements(tmp_path):
    fields = [*FIELDS[::-1], "confidence"]
    rows = np.arange(30).reshape(2, 15) / 8
    body = "\n".join(" ".join(f"{v:.9g}" for v in row) for row in rows) + "\n"
    extra = "element face 1\nproperty list uchar int vertex_indices\n"
    text = header(fields=fields, extra=extra) + body + "3 0 1 1\n"
    for ending in ("\n", "\r\n"):
        (tmp_path / "a.ply").write_bytes(text.replace("\n", ending).encode())
        read = read_ply(tmp_path / "a.ply")
        assert read.means.tolist() == rows[:, [13, 12, 11]].tolist()
        assert read.quats.tolist() == rows[:, [3, 2, 1, 0]].tolist()
        assert read.opacities.tolist() == rows[:, 7].tolist()
        assert read.harmonics.shape == (2, 3, 0)
        assert not read.normals.any()


def test_binary_files_with_other_number_types(tmp_path):
    fields = "".join(f"property {'double' if name == 'x' else 'float'} {name}\n" for name in FIELDS)
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty uchar red\n{fields}end_header\n"
    (tmp_path / "a.ply").write_bytes(head.encode() + struct.pack("<Bd13f", 9, *range(14)))
    read = read_ply(tmp_path / "a.ply")
    assert read.means.tolist() == [[0, 1, 2]]
    assert read.quats.tolist() == [[10, 11, 12, 13]]


def test_hostile_files_are_refused_with_the_place(tmp_path):
    path = tmp_path / "a.ply"
    body = b"\0" * 56 * 2
    good = header("binary_little_endian")
    huge = "9999999999"
    for words, data in [
        ("begin with 'ply'", b""),
        ("begin with 'ply'", b"plz\n" + body),
        ("header does not end", b"ply\nformat ascii 1.0\n"),
        ("header does not end", b"ply\n" + b"a" * 100_000),
        ("neither 'ascii' nor", good.replace("little", "big").encode() + body),
        ("not text", good.replace("comment", "comm\xe9nt").encode("latin1") + body),
        ("number of vertices", good.replace("vertex 2", "vertex -2").encode() + body),
        ("number of vertices", good.replace("vertex 2", "vertex 99999999999").encode() + body),
        (f"cut short: {huge} vertices", good.replace("vertex 2", f"vertex {huge}").encode() + body),
        (f"cut short: {huge} vertices", header(count=huge).encode() + body),
        ("cut short", good.encode() + body[:-1]),
        ("first element", good.replace("element vertex", "element face").encode() + body),
        ("no element", b"ply\nformat ascii 1.0\nend_header\n"),
        ("vertex property is 'list", good.replace("property float x", "property list uchar int x").encode() + body),
        ("vertex property is 'quad x'", good.replace("property float x", "property quad x").encode() + body),
        ("'x' is there twice", good.replace("float y", "float x").encode() + body),
        ("no property 'rot_3'", header("binary_little_endian", fields=FIELDS[:-1]).encode() + body),
        ("no property 'ny'", header("binary_little_endian", fields=[*FIELDS, "nx"]).encode() + body),
        ("no property 'x'", header("binary_little_endian", count=huge, fields=[]).encode() + body),
        ("harmonics", header("binary_little_endian", fields=[*FIELDS, "f_rest_0"]).encode() + body),
        ("harmonics", header("ascii", fields=[*FIELDS, *(f"f_rest_{i}" for i in range(1, 10))]).encode() + body),
        ("unexpected header line 'obj", good.replace("comment", "object").encode() + body),
        ("vertex 1 is not 14 numbers", header().encode() + b"0 " * 14 + b"\n" + b"0 " * 15),
        ("vertex 0 is not 14 numbers", header().encode() + b"0 " * 13 + b"x\n" + b"0 " * 14),
        ("vertex 0 is not 14 numbers", header().encode() + b"0 " * 13 + b"0" * 9999 + b"\n" + b"0 " * 14),
    ]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=words) as caught:
            read_ply(path)
        assert "offset" in str(caught.value)
        assert str(path) in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.ply"
    if data.draw(st.booleans()):
        write_ply(path, cloud(2, 3))
        good = bytearray(path.read_bytes())
    else:
        good = bytearray((header() + "1 2 3 4 5 6 7 8 9 1 2 3 4 5\n" * 2).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good) - 1))
        change = data.draw(st.sampled_from(["byte", "cut", "insert", "drop"]))
        if change == "byte":
            good[at] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del good[at + 1 :]
        elif change == "insert":
            good[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            del good[at : at + data.draw(st.integers(1, 8))]
        good = good or bytearray(b"p")
    path.write_bytes(good)
    try:
        read = read_ply(path)
    except ValueError as error:
        said = str(error)
    else:
        said = "read_ply: " if read.means.shape == (len(read.means), 3) else "wrong shape"
    assert said.startswith("read_ply: ")


def test_a_cloud_checks_itself():
    zeros = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="`quats`"):
        GaussianCloud(zeros, zeros, zeros[:, 0], zeros, zeros)
    with pytest.raises(ValueError, match="`means`"):
        GaussianCloud(zeros.double(), zeros, zeros[:, 0], zeros, torch.zeros(4, 4))
    with pytest.raises(ValueError, match="`harmonics`"):
        GaussianCloud(zeros, zeros, zeros[:, 0], zeros, torch.zeros(4, 4), torch.zeros(4, 3, 4))
