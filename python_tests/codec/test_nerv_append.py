"""More video behind a finished file: what was there stays bit for bit, and the old weights help."""

import os
from itertools import pairwise

import pytest
import torch
from codec.fits import psnr, run

from vidkernels.codec import ContainerWriter, nerv, nerv_flow, nerv_latent, nerv_plan, nerv_work, protocol
from vidkernels.codec import open as open_vkv
from vidkernels.codec.protocol import Goal, Source, state_path

pytest.importorskip("av")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.usefixtures("one_thread")
PLENTY = Goal(bytes=60_000)


def steps(monkeypatch, count):
    monkeypatch.setattr(nerv_plan, "_LEAST_STEPS", count)
    monkeypatch.setattr(nerv_plan, "_MOST_STEPS", count)
    monkeypatch.setattr(nerv_plan, "_LOOKS", 2)


@pytest.mark.parametrize(("model", "exact"), [("latent", True), ("nerv", False), ("hnerv", False)])
def test_appended_frames_follow_and_the_old_ones_stay(source, tmp_path, monkeypatch, model, exact):
    steps(monkeypatch, 80)
    path, clip = source(frames=6, height=24, width=32)
    first, second = Source(path, end=0.3), Source(path, start=0.3)
    out, module = tmp_path / "o.vkv", protocol.model(model)
    run(module.fit(first, out, PLENTY, gop=2, exact=exact))
    alone = out.stat().st_size
    with open_vkv(out) as video:
        old, whole = video[:], len(video.reader.chunk("NETW"))
    assert protocol.appending(out) is module
    reports, returned = run(module.append(out, second, PLENTY, gop=2))
    assert (returned.path, returned.start, returned.size) == (path, 0.3, (24, 32))
    assert reports[-1].bytes == os.path.getsize(out) > alone
    assert not state_path(out).exists()
    steps(monkeypatch, 24)
    run(module.append(out, first, PLENTY, gop=2))
    with open_vkv(out) as video:
        assert len(video) == 9
        report = video.verify()
        assert report.ok
        assert (report.mismatches, report.checked_frames) == ((), 9)
        assert torch.equal(video[:3], old)
        assert float(video.reader.duration) == pytest.approx(0.9)
        each = [psnr(a, b) for a, b in zip(video[3:6], clip[3:], strict=True)]
        assert sum(each) / 3 == pytest.approx(reports[-1].psnr, abs=1e-3)
        grey = clip.float().mean((0, 1, 2)).expand_as(clip)
        assert sum(each) / 3 > psnr(grey, clip) + 0.5
        assert torch.equal(video.at(0.25), video[2])  # no picture lies between two videos
        if model != "nerv":  # whose frames lie in its weights
            assert len(video.reader.chunk("D001")) < whole  # a difference is less than the whole


@pytest.fixture
def finished(source, tmp_path, few_steps):
    """(a small file, its source)"""
    path, _ = source(frames=3, height=24, width=32)
    run(nerv_latent.fit(Source(path), tmp_path / "o.vkv", PLENTY, gop=2))
    return tmp_path / "o.vkv", Source(path)


def test_closed_and_resumed_it_leads_to_the_same_file(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(nerv_work, "_REPORT_EVERY", 0.0)
    out, more = finished
    before = out.read_bytes()
    (tmp_path / "whole.vkv").write_bytes(before)
    reports, _ = run(nerv_latent.append(tmp_path / "whole.vkv", more, PLENTY, gop=2))
    assert all(a.done <= b.done for a, b in pairwise(reports))
    for stop in (1, 15, reports[-1].done - 1):
        out.write_bytes(before)
        work = nerv_latent.append(out, more, PLENTY, gop=2)
        for _ in range(stop):
            next(work)
        work.close()
        assert out.read_bytes() == before
        run(protocol.model(protocol.state_model(state_path(out))).resume(state_path(out)))
        assert out.read_bytes() == (tmp_path / "whole.vkv").read_bytes(), f"closed after {stop} steps"
        assert not state_path(out).exists()


def test_interrupted_while_it_writes(finished, tmp_path, monkeypatch):
    """After the first of two groups, and killed before the index: the old file is what there is to read."""
    out, more = finished
    before = out.read_bytes()
    (tmp_path / "whole.vkv").write_bytes(before)
    run(nerv_latent.append(tmp_path / "whole.vkv", more, PLENTY, gop=2))
    real = ContainerWriter.add_gop

    def broken(self, *args, **more):
        if self.frames > 4:
            raise KeyboardInterrupt
        return real(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(ContainerWriter, "add_gop", broken)
        with pytest.raises(KeyboardInterrupt):
            run(nerv_latent.append(out, more, PLENTY, gop=2))
    assert out.read_bytes() == before
    killed = (tmp_path / "whole.vkv").read_bytes()[:-60]  # without the trailer
    out.write_bytes(killed)
    with pytest.warns(UserWarning, match="unfinished append"), open_vkv(out) as video:
        assert len(video) == 3
    with pytest.warns(UserWarning, match="unfinished append"):
        run(nerv.resume(state_path(out)))
    assert out.read_bytes() == (tmp_path / "whole.vkv").read_bytes()


def test_bytes_are_those_that_the_file_grows_by(finished):
    out, more = finished
    before = out.stat().st_size
    reports, _ = run(nerv_latent.append(out, more, Goal(bytes=1500), gop=3))
    assert reports[-1].bytes == out.stat().st_size
    assert before < out.stat().st_size <= before + 1500
    with pytest.raises(ValueError, match="allow more bytes"):
        run(nerv_latent.append(out, more, Goal(bytes=300), gop=3))


def test_a_look_counts_what_the_file_will_weigh(finished, monkeypatch):
    out, more = finished
    said, real = [], nerv_plan.AppendedEnvelope.bytes
    monkeypatch.setattr(nerv_plan.AppendedEnvelope, "bytes", lambda *a: said.append(real(*a)) or said[-1])
    for gop in (1, 3):
        run(nerv_latent.append(out, more, PLENTY, gop=gop))
        assert said[-1] == out.stat().st_size


def test_what_cannot_be_appended_is_refused(finished, source, monkeypatch):
    monkeypatch.setattr(nerv_work, "_REPORT_EVERY", 0.0)
    out, more = finished
    path, _ = source(frames=3, name="fast.mkv", timestamps=[0.0, 0.01, 0.02])
    with pytest.raises(ValueError, match="faster than the file's clock"):
        next(nerv_latent.append(out, Source(path), PLENTY))
    work = nerv_latent.append(out, more, PLENTY)
    next(work)
    work.close()
    state = state_path(out).read_bytes()
    run(nerv.resume(state_path(out)))
    state_path(out).write_bytes(state)
    with pytest.raises(ValueError, match="no longer the file that the append began with"):
        run(nerv.resume(state_path(out)))


def test_other_models_are_refused(source, tmp_path, few_steps):
    av = pytest.importorskip("av")
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("needs an FFmpeg with SVT-AV1")
    path, _ = source(frames=2, height=24, width=32)
    run(nerv_flow.fit(Source(path), tmp_path / "o.vkv", PLENTY, gop=2))
    with pytest.raises(ValueError, match="takes no more frames"):
        protocol.appending(tmp_path / "o.vkv")
    with pytest.raises(ValueError, match="takes no more frames"):
        next(nerv_latent.append(tmp_path / "o.vkv", Source(path), PLENTY))
