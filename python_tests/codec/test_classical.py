"""x264, x265 and SVT-AV1: sizes that add up, colours that come back, settings that act."""

import io

import pytest
import torch

from vidkernels.codec import classical
from vidkernels.codec._yuv import Converter, Layout
from vidkernels.metrics import psnr

av = pytest.importorskip("av")
PEERS = ("x264", "x265", "svtav1")


def decoded(made):
    return torch.stack(list(classical.decode(made)))


@pytest.mark.parametrize("peer", PEERS)
def test_round_trip(peer, moving_clip, capfd):
    clip = moving_clip(6, 64, 96)
    made = classical.encode(clip, 25, peer, 20)
    got = decoded(made)
    assert got.shape == clip.shape
    assert psnr(got, clip) > 30
    assert made.seconds > 0
    assert classical.decoding_seconds(made) > 0
    assert capfd.readouterr() == ("", "")  # the encoders talk unless they are told not to


@pytest.mark.parametrize("peer", PEERS)
def test_size_is_the_file_and_the_stream_is_its_packets(peer, moving_clip):
    made = classical.encode(moving_clip(6, 64, 96), 25, peer, 30)
    with av.open(io.BytesIO(made.data)) as container:
        packets = sum(packet.size for packet in container.demux(video=0))
        parameters = container.streams.video[0].codec_context.extradata_size
    assert packets <= made.stream_bytes <= packets + parameters + 8
    assert made.stream_bytes < len(made.data) < made.stream_bytes + 3000


@pytest.mark.parametrize("peer", PEERS)
def test_higher_crf_is_smaller_and_worse(peer, moving_clip):
    clip = moving_clip(8, 64, 96)
    fine, coarse = (classical.encode(clip, 25, peer, crf) for crf in (20, 45))
    assert coarse.stream_bytes < fine.stream_bytes
    assert psnr(decoded(coarse), clip) < psnr(decoded(fine), clip)


@pytest.mark.parametrize("matrix", ["bt709", "bt601"])
@pytest.mark.parametrize("full_range", [False, True])
def test_luma_of_grey_and_of_primaries_follows_the_formula(matrix, full_range):
    red, blue = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114)}[matrix]
    offset, scale = (0, 255) if full_range else (16, 219)
    converter = Converter(Layout("yuv444p", matrix, full_range))
    for colour in [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 30, 90)]:
        frame = torch.tensor(colour, dtype=torch.uint8).expand(16, 16, 3)
        luma = converter.to_yuv(frame).to_ndarray()[0, 5, 5]
        weights = (red, 1 - red - blue, blue)
        expected = offset + scale * sum(w * c for w, c in zip(weights, colour)) / 255
        assert abs(int(luma) - expected) <= 1, colour


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("matrix", ["bt709", "bt601"])
def test_flat_colours_come_back_through_the_codec(peer, matrix):
    for colour in [(255, 255, 255), (0, 0, 0), (200, 30, 90), (20, 180, 40)]:
        clip = torch.tensor(colour, dtype=torch.uint8).expand(2, 64, 64, 3).contiguous()
        got = decoded(classical.encode(clip, 25, peer, 10, layout=Layout(matrix=matrix)))
        assert (got.int() - clip.int()).abs().max() <= 4, colour


@pytest.mark.parametrize("peer", PEERS)
def test_the_stream_says_its_colour(peer, moving_clip):
    for layout, matrices, full in [(Layout(), (1,), 1), (Layout(matrix="bt601", full_range=True), (5, 6), 2)]:
        made = classical.encode(moving_clip(2, 64, 64), 25, peer, 30, layout=layout)
        with av.open(io.BytesIO(made.data)) as container:
            frame = next(container.decode(video=0))
        assert frame.colorspace in matrices
        assert frame.color_range == full


def test_444_keeps_more_colour_than_420(generator):
    colours = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8, generator=generator)
    clip = colours.expand(2, -1, -1, -1).contiguous()
    half, whole = (
        psnr(decoded(classical.encode(clip, 25, "x264", 1, layout=Layout(fmt))), clip) for fmt in ("yuv420p", "yuv444p")
    )
    assert whole > half + 10


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_the_shortest_clips(peer, frames, moving_clip):
    clip = moving_clip(frames, 64, 64)
    for _ in range(3):  # x265 fails in two of three runs if left alone
        assert decoded(classical.encode(clip, 25, peer, 20)).shape == clip.shape


@pytest.mark.parametrize("peer", PEERS)
def test_odd_sizes_are_padded_and_cut_again(peer, moving_clip):
    clip = moving_clip(3, 65, 67)
    made = classical.encode(clip, 25, peer, 15)
    got = decoded(made)
    assert made.size == (65, 67)
    assert got.shape == clip.shape
    assert psnr(got, clip) > 30


def test_measure_counts_the_file(moving_clip, monkeypatch):
    clip = moving_clip(6, 64, 96)
    # The very file that it measures: x264's bytes are not the same every time for so small a clip.
    made = classical.encode(clip, 25, "x264", 30)
    monkeypatch.setattr(classical, "encode", lambda *args, **rest: made)
    point = classical.measure(clip, 25, "x264", 30)
    assert point.name == "x264-medium"
    assert point.settings == {"crf": 30}
    assert point.stream_bytes == made.stream_bytes
    assert point.bytes == len(made.data)
    assert point.bpp == pytest.approx(8 * point.bytes / (6 * 64 * 96))
    assert point.psnr == pytest.approx(psnr(decoded(made), clip), abs=1e-9)
    assert point.psnr_pixels == pytest.approx(psnr(decoded(made), clip, pool="pixels"), abs=1e-9)
    assert point.decode_fps > 0


def test_presets_and_names():
    assert classical.encoder("x264")[0] == "x264-medium"
    assert {"svtav1-p4", "svtav1-p8", "x265-medium"} <= set(classical.ENCODERS)
    with pytest.raises(ValueError, match=r"(?s)no encoder named 'x266'.*svtav1-p4"):
        classical.encoder("x266")


def test_bad_clips_are_refused(moving_clip):
    clip = moving_clip(2, 64, 64)
    for words, wrong in [
        ("no frames", clip[:0]),
        ("uint8", clip.float()),
        ("one size", [clip[0], clip[1, :32]]),
        ("with pixels", clip[:, :0]),
    ]:
        with pytest.raises(ValueError, match=words):
            classical.encode(wrong, 25, "x264", 30)
    with pytest.raises(ValueError, match="matrix"):
        Layout(matrix="bt2020")
