"""The key-frame hybrid: AV1 key frames in the file, a network between them."""

import json
import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from codec.fits import psnr, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from vidkernels.cli import app
from vidkernels.codec import ContainerWriter, nerv, nerv_families, nerv_flow, nerv_plan, nerv_work
from vidkernels.codec import open as open_vkv
from vidkernels.codec.keys import chosen_quality, decode_keys, encode_keys
from vidkernels.codec.protocol import Goal, Source, state_path

av = pytest.importorskip("av")
pytest.importorskip("safetensors")
pytestmark = [
    pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="needs an FFmpeg with SVT-AV1"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.mark.parametrize(("count", "height", "width"), [(3, 48, 64), (1, 17, 5), (2, 65, 131)])
def test_key_frames_come_back(moving_clip, count, height, width):
    clip = moving_clip(count, height, width)
    coded = encode_keys(clip, 20)
    assert coded == encode_keys(clip, 20)
    back = decode_keys(coded, (height, width), count)
    assert back.shape == clip.shape
    assert psnr(back, clip) > 28
    assert len(encode_keys(clip, 60)) < len(coded)
    for size, number in (((height, width), count + 1), ((height + 1, width), count)):
        with pytest.raises(ValueError, match="key frames"):
            decode_keys(coded, size, number)


def test_the_best_quality_that_fits(moving_clip):
    clip = moving_clip(2)
    sizes = {len(encode_keys(clip, crf)) for crf in (20, 40, 63)}
    for room in sizes:
        assert len(chosen_quality(clip, lambda data: len(data) <= room)) <= room  # noqa: B023
    assert chosen_quality(clip, lambda data: False) == encode_keys(clip, 63)


def _coded(clip):
    return encode_keys(clip(2, 20, 24), 40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_key_frames_are_refused_or_decoded(moving_clip, damage):
    data = bytearray(_coded(moving_clip))
    for at, byte in damage:
        data[at % len(data)] = byte
    try:
        assert decode_keys(bytes(data), (20, 24), 2).shape == (2, 20, 24, 3)
    except ValueError:
        return


@pytest.mark.parametrize("goal", [Goal(bytes=5000), Goal(psnr=26.0)], ids=["bytes", "psnr"])
def test_goals_and_what_info_says(source, tmp_path, goal, monkeypatch):
    monkeypatch.setattr(nerv_plan, "_LEAST_STEPS", 100)
    monkeypatch.setattr(nerv_plan, "_MOST_STEPS", 100)
    monkeypatch.setattr(nerv_plan, "_LOOKS", 4)
    monkeypatch.setattr(nerv_families, "_KEY_DISTANCE", 3)
    path, clip = source(frames=6)
    out = tmp_path / "o.vkv"
    reports, _ = run(nerv_flow.fit(Source(path), out, goal, gop=4))
    assert reports[-1].bytes == os.path.getsize(out)
    if goal.bytes is not None:
        assert reports[-1].bytes <= goal.bytes
    else:
        assert reports[-1].psnr >= goal.psnr
    facts = json.loads(CliRunner().invoke(app, ["info", str(out), "--json"]).output)
    with open_vkv(out) as video:
        assert facts["key frame bytes (AV1)"] == video.side_bytes > 0
        assert not facts["exact"]
        report = video.verify()
        assert report.ok
        assert report.mismatches == ()
        assert video.reader.header.config["keys"] == [0, 2, 5]
        frames = torch.stack(list(video))
        each = np.mean([psnr(a, b) for a, b in zip(frames, clip, strict=True)])
        assert reports[-1].psnr == pytest.approx(each, abs=1e-3)
        assert video.at(0.05).shape == (48, 64, 3)


@pytest.mark.usefixtures("few_steps")
def test_one_frame_and_interruption(source, tmp_path, monkeypatch):
    monkeypatch.setattr(nerv_work, "_REPORT_EVERY", 0.0)
    path, _ = source(frames=1, height=47, width=33)
    run(nerv_flow.fit(Source(path), tmp_path / "whole.vkv", Goal(psnr=20.0), gop=None))
    work = nerv_flow.fit(Source(path), tmp_path / "o.vkv", Goal(psnr=20.0), gop=None)
    for _ in range(14):
        next(work)
    work.close()
    run(nerv.resume(state_path(tmp_path / "o.vkv")))
    assert (tmp_path / "o.vkv").read_bytes() == (tmp_path / "whole.vkv").read_bytes()
    with open_vkv(tmp_path / "o.vkv") as video:
        assert video[0].shape == (47, 33, 3)


@pytest.mark.usefixtures("few_steps")
def test_key_frames_by_our_own_coder(source, tmp_path):
    path, _ = source(frames=3)
    run(nerv_flow.fit(Source(path), tmp_path / "o.vkv", Goal(psnr=20.0), gop=None, keys="transform"))
    with open_vkv(tmp_path / "o.vkv") as video:
        assert video.reader.header.config["coder"] == "transform"
        assert video.verify().mismatches == ()
        reader = video.reader
        header = replace(reader.header, config={**reader.header.config, "coder": "later"})
        with ContainerWriter(tmp_path / "x.vkv", header) as writer:
            writer.add_chunk("NETW", bytes(reader.chunk("NETW")))
            writer.add_gop(0, reader.pts(0), {0: bytes(reader.read(0))}, reader.hashes(0))
    with pytest.raises(ValueError, match="coder"):
        open_vkv(tmp_path / "x.vkv")
    for model, keys in ((nerv_flow.fit, "jpeg"), (partial(nerv.fit, "latent"), "av1")):
        with pytest.raises(ValueError, match="keys"):
            run(model(Source(path), tmp_path / "y.vkv", Goal(psnr=20.0), gop=None, keys=keys))


@pytest.mark.usefixtures("few_steps")
def test_a_file_without_its_key_frames_is_refused(source, tmp_path):
    path, _ = source(frames=2)
    run(nerv_flow.fit(Source(path), tmp_path / "o.vkv", Goal(psnr=20.0), gop=None))
    with open_vkv(tmp_path / "o.vkv") as video:
        reader = video.reader
        with ContainerWriter(tmp_path / "x.vkv", reader.header) as writer:
            writer.add_chunk("NETW", bytes(reader.chunk("NETW")))
            writer.add_gop(0, reader.pts(0), {0: bytes(reader.read(0))}, reader.hashes(0))
    with pytest.raises(ValueError, match="key frames"):
        open_vkv(tmp_path / "x.vkv")
