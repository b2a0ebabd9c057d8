"""More video behind a finished Gaussian file, through the commands as well."""

import json

import pytest
import torch
from codec.fits import fit, run, whole
from typer.testing import CliRunner

from vidkernels import _native
from vidkernels.cli import app
from vidkernels.codec import ContainerWriter, gaussian, protocol
from vidkernels.codec import open as open_vkv
from vidkernels.codec.protocol import Goal, Source, state_path

pytest.importorskip("av")
pytest.importorskip("safetensors")
pytestmark = [
    pytest.mark.skipif(_native._C is None, reason="needs the compiled module"),
    pytest.mark.usefixtures("little_work"),
]
GOAL = Goal(psnr=30.0)


def test_appended_frames_follow_and_the_old_ones_stay(source, tmp_path):
    path, _ = source(frames=5, height=24, width=32)
    out = tmp_path / "o.vkv"
    fit(path, out, GOAL, gop=2, end=0.3)
    with open_vkv(out) as video:
        old = video[:]
    assert protocol.appending(out) is gaussian
    call = ["append", str(out), str(path), "--psnr", "30", "--start", "0.3", "--gop", "2", "--no-sheet"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    frames = whole(out, 5)
    assert torch.equal(frames[:3], old)
    fit(path, tmp_path / "alone.vkv", GOAL, gop=2, start=0.3)
    assert torch.equal(frames[3:], whole(tmp_path / "alone.vkv", 2))  # groups know nothing of each other
    facts = json.loads(CliRunner().invoke(app, ["info", str(out), "--json"]).output)
    assert (facts["frames"], facts["seconds"], facts["gops"]) == (5, pytest.approx(0.5), 3)


def test_interrupted_it_leaves_the_file_alone_and_goes_on(source, tmp_path, monkeypatch):
    path, _ = source(frames=3, height=24, width=32)
    out = tmp_path / "o.vkv"
    fit(path, out, GOAL, gop=2)
    before = out.read_bytes()
    (tmp_path / "whole.vkv").write_bytes(before)
    run(gaussian.append(tmp_path / "whole.vkv", Source(path), GOAL, gop=2))
    work = gaussian.append(out, Source(path), GOAL, gop=2)
    next(work)
    work.close()
    assert out.read_bytes() == before
    real = ContainerWriter.add_gop

    def broken(self, *args, **more):
        if self.frames > 4:
            raise KeyboardInterrupt
        return real(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(ContainerWriter, "add_gop", broken)
        with pytest.raises(KeyboardInterrupt):
            run(gaussian.resume(state_path(out)))
    assert out.read_bytes() == before
    run(gaussian.resume(state_path(out)))
    assert out.read_bytes() == (tmp_path / "whole.vkv").read_bytes()
    assert not state_path(out).exists()


def test_a_time_beside_another_goal_is_refused(source, tmp_path):
    path, _ = source(frames=2)
    for goal in (Goal(seconds=5, bytes=9000), Goal(seconds=5, psnr=30.0)):
        with pytest.raises(ValueError, match="takes a time, or bytes, or decibels"):
            fit(path, tmp_path / "o.vkv", goal)
        with pytest.raises(ValueError, match="takes a time, or bytes, or decibels"):
            run(gaussian.append(path, Source(path), goal))


def test_a_file_that_changed_and_a_model_without_append_are_refused(source, tmp_path):
    path, _ = source(frames=3, height=24, width=32)
    out = tmp_path / "o.vkv"
    fit(path, out, GOAL, gop=3)
    work = gaussian.append(out, Source(path), GOAL, gop=2)
    next(work)
    work.close()
    fit(path, out.with_name("p.vkv"), GOAL, gop=1)
    out.with_name("p.vkv").replace(out)
    with pytest.raises(ValueError, match="no longer the file"):
        run(gaussian.resume(state_path(out)))
    call = ["append", str(out), str(path), "--mask", str(path)]
    assert "unfinished" in CliRunner().invoke(app, call).output
    state_path(out).unlink()
    assert "no mask" in CliRunner().invoke(app, call).output
