"""Our own coder of key frames: what comes back, what it costs, and what it refuses."""

import base64
import contextlib
import hashlib
import io

import numpy as np
import pytest
import torch
from codec.fits import psnr
from hypothesis import given, settings
from hypothesis import strategies as st

from vidkernels.codec.keys import chosen_quality, decode_keys, encode_keys
from vidkernels.codec.keys_blocks import SIZES, basis, forward, inverse, smooth, to_frame, to_planes
from vidkernels.codec.keys_transform import decode_transform, encode_transform
from vidkernels.codec.passes import PassReader, encode_passes


@pytest.mark.parametrize(("count", "height", "width"), [(1, 1, 1), (3, 48, 64), (1, 17, 5), (2, 65, 131)])
def test_pictures_come_back(moving_clip, count, height, width):
    clip = moving_clip(count, height, width)
    coded = encode_transform(clip, 20)
    assert coded == encode_transform(clip, 20)
    back = decode_transform(coded, (height, width), count)
    assert back.shape == clip.shape
    assert back.dtype is torch.uint8
    assert psnr(back, clip) > 30
    for size, number in (((height, width), count + 1), ((height + 1, width), count)):
        with pytest.raises(ValueError, match="key frames"):
            decode_transform(coded, size, number)


def test_quality_and_bytes_fall_together(moving_clip):
    clip = moving_clip(2, 64, 96)
    coded = [encode_transform(clip, quality) for quality in (1, 20, 40, 63)]
    sizes = [len(data) for data in coded]
    values = [psnr(decode_transform(data, (64, 96), 2), clip) for data in coded]
    assert sizes == sorted(sizes, reverse=True)
    assert values == sorted(values, reverse=True)
    room = sizes[2]
    assert len(chosen_quality(clip, lambda data: len(data) <= room, "transform")) <= room


def test_flat_and_grey_pictures_take_next_to_nothing():
    flat = torch.full((1, 64, 64, 3), 77, dtype=torch.uint8)
    coded = encode_transform(flat, 20)
    assert len(coded) < 120
    assert (decode_transform(coded, (64, 64), 1) == 77).all()


def test_fewer_bytes_than_jpeg(moving_clip):
    image = pytest.importorskip("PIL.Image")
    frame = moving_clip(1, 96, 128)[0].numpy()
    out = io.BytesIO()
    image.fromarray(frame).save(out, "JPEG", quality=60, optimize=True)
    wanted = psnr(torch.from_numpy(np.array(image.open(out))), torch.from_numpy(frame))
    clip = torch.from_numpy(frame[None])
    for quality in range(63, 0, -3):
        better = encode_transform(clip, quality)
        if psnr(decode_transform(better, (96, 128), 1), clip) >= wanted:
            break
    assert len(better) < 0.9 * len(out.getvalue())


@pytest.mark.parametrize("size", SIZES)
def test_transform_is_orthonormal_and_the_decoder_exact(size):
    rng = np.random.default_rng(0)
    blocks = rng.integers(-128, 128, (5, size, size)).astype(np.float64)
    matrix = basis(size) / 2**14
    rounding = 0.5 / (2**14 / size**0.5)  # of a number of the first row, relative
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=2 * rounding)
    coefficients = np.round(forward(blocks)).astype(np.int32)
    back = inverse(coefficients, 16)
    assert np.abs(back - blocks).max() <= 3
    # The same in integers of any length.
    whole = basis(size).astype(int).astype(object)
    rows = (whole.T @ (coefficients[0].astype(object) * 16) + 2**9) // 2**10
    assert ((rows @ whole + 2**21) // 2**22 == back[0]).all()


def test_tables_of_the_transform_are_the_documented_ones():
    """cos() may differ in its last bit from machine to machine; what is rounded here must not."""
    for size in SIZES:
        k, n = np.arange(size)[:, None], np.arange(size)[None]
        exact = np.cos(np.pi * (2 * n + 1) * k / (2 * size)) * np.sqrt(2 / size) * 2.0**14
        exact[0] /= np.sqrt(2)
        assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-6


def test_colours_there_and_back():
    rng = np.random.default_rng(1)
    flat = np.repeat(np.repeat(rng.integers(0, 256, (8, 8, 3)), 8, 0), 8, 1).astype(np.uint8)
    back = to_frame([np.round(plane).astype(np.int32) for plane in to_planes(flat)])
    middle = np.abs(back.astype(int) - flat)[3::8, 3::8]  # away from edges, where chroma is blurred
    assert middle.max() <= 2


def test_smoothing_softens_small_steps_and_leaves_large_ones():
    plane = np.repeat([[0, 6]], 8, 1).repeat(8, 0).astype(np.int32)
    edges = np.ones((1, 2), bool)
    soft = smooth(plane, edges, 16)
    assert 0 < soft[0, 7] < soft[0, 8] < 6
    assert (smooth(plane * 10, edges, 16) == plane * 10).all()
    assert (smooth(plane, np.zeros((1, 2), bool), 16) == plane).all()


def test_golden_pixels():
    """The format is written down: what old bytes show does not change without a new name."""
    coded = base64.b85decode(
        "C;&JB+5rJ5)&T+l@c;k+2mrwU|NmBV94SUNo8yQL@(m)97(pi3@uw2<M2N&<=!lG-;sX!}0{`#-UjTpr0Q~>|zyB`)Kp+VG|L=bS"
        "0Pz3+|Nc7|iZM_i5J^o?7zC*T5Qd=?14%>?DG?lrB2ptf4a8F)I19v6A3P1k#X`6uh^0EP0ssO40ssbr7y-sWkRl);2x0^n13`>{"
        "BY|j&gW`Zl5k<lA|3CTv`~L_2|Nj3sVJO9bf-szVU~wRt;=rLOD%HZ%V$_ryQ^Rn|0x6^D6bx1bv6Kc90RUhS00Gs$W&jTB|G5B5"
        "Digr_KPDo{4q&F$C^GmDK+jUnezrZKjsz0`009&L000313phgv08IiL0RO)mKmz~}Jo~@wfYLg0zXJNTGcEfS6~G|~0j^E(KmUK="
        "sTjpN;3R_WG>QLR<^VvU2lu|<?|C)oo5h23z*2L{vY;UXo144=1{w%NOV}Ib>LDqT^3&&whkst4P63S>(;XFzz*GPZ!16MY00Dre"
        "*7IK9XT0<rzCS>+Yat>$)>52LZ5&Se(7hz|pQm5}v&fwg1-gj>00%xyt2@n2-U00V0RRxTwag+(Kb_*FJ&MBqHX>JMc@yu=<Kr%4"
        "Rfg!VeaO8EJOR=n0RRJHWswptR+eM|urvVx5BGp)1ZvLwAn-r{fNgsxqe~4!6%cBCw>s@G|H`a-X9EwJ8URu9(#H$-QC9(}9*qR3"
        "y1d?@qW4jh-4l-ztLuIOOvWD08U75tI6VMOobLAh{~I;w6w=7<t(r7UB_RMCUjuknkpTmg6k-aNfCK<zBTt*DNCK~X=^*VYB6S)$"
        "$OG9TnG~5g$MpssU`YV<D`XJ2*{_S^90aYY7b27>TD;au10;U|0FDRO76UE5G5~(C(LDkmlNkU}y8(X{_0<6$1_A&9ju!y{"
    )
    pixels = decode_transform(coded, (40, 56), 1).numpy().tobytes()
    assert hashlib.sha256(pixels).hexdigest()[:16] == "46f7f0a58d4c9885"


def test_largest_coefficients_are_drawn_in_whole_numbers_and_larger_ones_refused():
    step, q = 1 << 8, np.full((1, 32, 32), 1 << 12, np.int32)
    drawn = inverse(q, step)
    whole = basis(32).astype(int).astype(object)
    rows = (whole.T @ (q[0].astype(object) * step) + 2**9) // 2**10
    exact = (rows @ whole + 2**21) // 2**22
    assert np.abs(exact).max() > 2**20
    assert (drawn[0] == exact.clip(-1023, 1023)).all()
    for sample in (-1023, 1023):  # colours of the outermost samples, in 32 bits
        planes = [np.full((2 * n, 2 * n), sample, np.int32) for n in (4, 2, 2)]
        y, c = sample + 128, 16 * sample
        green = y - ((5638 * c + 11700 * c + 2**17) >> 18)
        expected = [max(0, min(255, v)) for v in (sample * 3, green, sample * 3)]
        assert (to_frame(planes) == expected).all()
    flat = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    coded = bytearray(encode_transform(flat, 1))
    coded[4:6] = (1 << 12).to_bytes(2, "little")  # the step
    with pytest.raises(ValueError, match="out of range"):
        decode_transform(bytes(coded), (32, 32), 1)


def test_more_pictures_than_a_byte_counts():
    clip = (torch.arange(257).view(-1, 1, 1, 1) % 256).expand(257, 1, 1, 3).to(torch.uint8).contiguous()
    back = decode_transform(encode_transform(clip, 20), (1, 1), 257)
    assert (back.int() - clip).abs().max() <= 2


def test_passes_may_depend_on_what_came_before():
    rng = np.random.default_rng(2)
    first = rng.integers(0, 2, 500).astype(np.int32)
    second = (rng.normal(size=500) * np.where(first, 40, 1)).astype(np.int32)
    empty = np.zeros(0, np.int32), np.zeros(0, np.uint8)
    told = encode_passes([(first, np.zeros(500, np.uint8)), empty, (second, (1 + first).astype(np.uint8))])
    reader = PassReader(told)
    assert (reader.take(500, np.zeros(500, np.uint8)) == first).all()
    assert len(reader.take(*map(len, empty[:1]), empty[1])) == 0
    assert (reader.take(500, (1 + first).astype(np.uint8)) == second).all()
    assert reader.finished()
    blind = encode_passes([(first, np.zeros(500, np.uint8)), (second, np.ones(500, np.uint8))])
    assert len(told) < len(blind)


@pytest.fixture(scope="module")
def coded():
    x = torch.arange(33 * 24).view(33, 24, 1) % torch.tensor([7, 90, 251])
    return encode_keys(torch.stack([x, 255 - x]).to(torch.uint8), 40, "transform")


@settings(max_examples=60, deadline=None)
@given(damage=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
       cut=st.integers(0, 40))  # fmt: skip
def test_damaged_bytes_are_refused_or_decoded(coded, damage, cut):
    data = bytearray(coded[: len(coded) - cut])
    for at, byte in damage:
        data[at % len(data)] = byte
    with contextlib.suppress(ValueError):
        assert decode_keys(bytes(data), (33, 24), 2, "transform").shape == (2, 33, 24, 3)
