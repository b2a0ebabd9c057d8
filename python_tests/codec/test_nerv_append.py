"""More video behind a finished file: what was there stays bit for bit, and the old weights help."""

import os
import shutil

import pytest
import torch
from codec.fits import psnr, run

from vidkernels.codec import nerv_flow, nerv_latent, nerv_plan
from vidkernels.codec import open as open_vkv
from vidkernels.codec.nerv_append import append
from vidkernels.codec.protocol import Goal, Source

pytest.importorskip("av")
pytest.importorskip("safetensors")


@pytest.mark.parametrize("exact", [True, False])
def test_appended_frames_follow_and_the_old_ones_stay(source, tmp_path, monkeypatch, exact):
    monkeypatch.setattr(nerv_plan, "_LEAST_STEPS", 200)
    path, clip = source(frames=6)
    first, second = Source(path, end=0.3), Source(path, start=0.3)
    out = tmp_path / "o.vkv"
    run(nerv_latent.fit(first, out, Goal(psnr=25.0), gop=2, exact=exact))
    alone = out.stat().st_size
    with open_vkv(out) as video:
        old = torch.stack(list(video))
        parts = video.reader.chunk("NETW")
        whole = len(parts)
    reports, returned = run(append(out, second, steps=200, gop=2))
    assert returned == second
    assert reports[-1].bytes == os.path.getsize(out) > alone
    run(append(out, first, steps=40, gop=2))
    with open_vkv(out) as video:
        assert len(video) == 9
        report = video.verify()
        assert report.ok
        assert report.mismatches == ()
        assert report.checked_frames == 9
        assert torch.equal(video[:3], old)
        assert float(video.reader.duration) == pytest.approx(0.9)
        assert psnr(video[3:6], clip[3:]) == pytest.approx(reports[-1].psnr, abs=0.5)
        assert psnr(video[3:6], clip[3:]) > 20
        assert torch.equal(video.at(0.25), video[2])  # no picture lies between two videos
        assert len(video.reader.chunk("D001")) < whole  # a difference is less than the whole


@pytest.mark.usefixtures("few_steps")
def test_an_interrupted_append_leaves_the_file_alone(source, tmp_path):
    path, _ = source(frames=3)
    out = tmp_path / "o.vkv"
    run(nerv_latent.fit(Source(path), out, Goal(psnr=14.0), gop=2))
    shutil.copy(out, tmp_path / "before.vkv")
    work = append(out, Source(path), steps=100)
    next(work)
    work.close()
    assert out.read_bytes() == (tmp_path / "before.vkv").read_bytes()


@pytest.mark.usefixtures("few_steps")
def test_other_models_are_refused(source, tmp_path):
    av = pytest.importorskip("av")
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("needs an FFmpeg with SVT-AV1")
    path, _ = source(frames=2)
    run(nerv_flow.fit(Source(path), tmp_path / "o.vkv", Goal(psnr=14.0), gop=2))
    with pytest.raises(ValueError, match="append"):
        next(append(tmp_path / "o.vkv", Source(path)))
