"""Weights in planes: nothing is lost, little is paid, and the first plane alone draws the picture."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from codec.fits import fit as fit_gaussians
from codec.fits import psnr, run
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from vidkernels.cli import app
from vidkernels.codec import nerv_latent, nerv_plan
from vidkernels.codec import open as open_vkv
from vidkernels.codec.nerv_bits import LatentCode, Quantised
from vidkernels.codec.nerv_families import NETWORKS
from vidkernels.codec.nerv_model import Numbers
from vidkernels.codec.nerv_planes import coarser, decode_refinement, encode_refinement
from vidkernels.codec.protocol import Goal, Source
from vidkernels.data import VideoReader

CONFIG = {"latent": 16, "channels": [24, 16], "strides": [2, 2, 2]}


def laplace(rng, spread, shape):
    return np.rint(rng.laplace(0, spread, shape)).clip(-127, 127).astype(np.int32)


def numbers(spread):
    rng = np.random.default_rng(0)
    network = NETWORKS["latent"].network(CONFIG, (16, 24))
    weights = {n: Quantised(laplace(rng, spread, s), 0.01) for n, s in network.shapes.items()}
    return network, Numbers(weights, LatentCode(0.5, np.zeros(16, np.int32), np.zeros(16, np.uint8)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-(1 << 20), 1 << 20), min_size=4, max_size=4), min_size=1, max_size=6), st.data())
def test_refinements_come_back(rows, data):
    fine = np.array(rows, np.int32)
    coarse = coarser(fine)
    assert np.abs(fine - 3 * coarse).max() <= 1
    coded = encode_refinement(fine, coarse)
    assert np.array_equal(decode_refinement(coded, coarse), fine)
    damaged = bytearray(coded)
    damaged[data.draw(st.integers(0, len(coded) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode_refinement(bytes(damaged), coarse).shape == fine.shape
    except ValueError:
        return


@pytest.mark.parametrize("spread", [0.7, 3.0, 15.0])
@pytest.mark.parametrize("planes", [2, 3])
def test_planes_cost_little_and_lose_nothing(spread, planes):
    network, whole = numbers(spread)
    one, many = whole.chunks(), whole.chunks(planes)
    assert len(many) == planes
    assert sum(map(len, many)) < 1.03 * len(one[0])
    assert len(many[0]) < 0.8 * len(one[0])
    seen = [
        Numbers.from_bytes(many[0], network, False).refined(many[1:k], planes).weights for k in range(1, planes + 1)
    ]
    off = [np.mean([np.square(w[n].values - q.values).mean() for n, q in whole.weights.items()]) for w in seen]
    assert all(a > b for a, b in pairwise(off))
    assert off[-1] == 0
    for weights in seen:
        assert all(np.array_equal(weights[n].values, q.values) for n, q in whole.weights.items() if q.values.ndim == 1)
    with pytest.raises(ValueError, match="part"):
        Numbers.from_bytes(many[0], network, False).refined([many[0]], planes)


@pytest.fixture(scope="module")
def in_planes(tmp_path_factory):
    """(a file in two planes, its frames): slow waves of colour."""
    pytest.importorskip("av")
    pytest.importorskip("safetensors")
    from vidkernels.data import write_video

    folder = tmp_path_factory.mktemp("planes")
    y, x = torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij")
    frames = [
        torch.stack([torch.sin((x + t) / 9), torch.cos((y - t) / 7), torch.sin((x + y) / 13)], -1) for t in (0, 2)
    ]
    clip = (torch.stack(frames) * 90 + 128).round().to(torch.uint8)
    write_video(folder / "in.mkv", clip, fps=10, codec="libx264rgb", crf=0)
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_LEAST_STEPS", 240), ("_MOST_STEPS", 240), ("_LOOKS", 2)):
            patch.setattr(nerv_plan, name, value)
        torch.set_num_threads(1)
        reports, _ = run(
            nerv_latent.fit(Source(folder / "in.mkv"), folder / "o.vkv", Goal(bytes=20_000), gop=1, planes=2)
        )
        torch.set_num_threads(threads)
    assert reports[-1].bytes == (folder / "o.vkv").stat().st_size
    return folder / "o.vkv", clip


def test_a_coarse_plane_shows_the_picture(in_planes):
    out, clip = in_planes
    with open_vkv(out) as video, open_vkv(out, planes=1) as coarse, open_vkv(out, planes=7) as all_of_them:
        assert video.verify().ok
        assert video.verify().checked_frames == 2
        assert torch.equal(all_of_them[:], video[:])
        assert coarse.verify().checked_frames == 0  # hashes are those of the fine pictures
        assert not torch.equal(coarse[:], video[:])
        grey = psnr(clip.float().mean((0, 1, 2)).expand_as(clip), clip)
        assert grey + 3 < psnr(coarse[:], clip) < psnr(video[:], clip)
        fine = sum(len(video.reader.chunk(kind)) for kind in ("NETW", "NET1"))
        assert len(video.reader.chunk("NETW")) < 0.8 * fine


def test_a_download_that_stopped_shows_the_coarse_plane(in_planes, tmp_path):
    out, _ = in_planes
    data = out.read_bytes()
    with open_vkv(out) as video:
        finer = data.index(bytes(video.reader.chunk("NET1")))
    short = tmp_path / "short.vkv"
    short.write_bytes(data[: finer + 9])
    with pytest.raises(ValueError, match="cut short"):
        open_vkv(short)
    with open_vkv(short, partial=True) as video, open_vkv(out, planes=1) as coarse:
        assert (video.seen_planes, video.planes) == (1, 2)
        assert torch.equal(video[:], coarse[:])
    for words in ((short, "--partial"), (out, "--planes", "1")):
        result = CliRunner().invoke(app, ["decode", str(words[0]), str(tmp_path / "back.mkv"), *words[1:]])
        assert result.exit_code == 0, result.output
        with VideoReader(tmp_path / "back.mkv") as reader:
            assert len(reader) == 2
    assert CliRunner().invoke(app, ["decode", str(short), str(tmp_path / "back.mkv")]).exit_code == 1


@pytest.mark.usefixtures("little_work")
def test_what_has_no_planes_is_refused(source, tmp_path):
    path, _ = source(frames=1, height=24, width=32)
    fit_gaussians(path, tmp_path / "o.vkv")
    with pytest.raises(ValueError, match="planes"):
        open_vkv(tmp_path / "o.vkv", planes=1)
    with pytest.raises(ValueError, match="planes"):
        next(nerv_latent.fit(Source(path), tmp_path / "n.vkv", Goal(psnr=20.0), gop=1, planes=9))
    call = ["fit", str(path), str(tmp_path / "n.vkv"), "--planes", "2"]
    assert "--model latent" in CliRunner().invoke(app, call).output
