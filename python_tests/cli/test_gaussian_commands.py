"""The commands on the real codec, once from end to end."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from vidkernels import _native
from vidkernels.cli import app
from vidkernels.codec import gaussian
from vidkernels.codec.protocol import Goal, Source, state_path
from vidkernels.data import VideoReader, write_video

pytest.importorskip("av")
pytestmark = pytest.mark.skipif(_native._C is None, reason="needs the compiled module")


def call(*words, code=0):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_fit_info_verify_decode_resume(tmp_path, generator, monkeypatch):
    import torch

    plan = gaussian.plan_for
    monkeypatch.setattr(gaussian, "plan_for", lambda *a: replace(plan(*a), key_steps=24, steps=5))
    clip = torch.randint(256, (4, 6, 8, 3), generator=generator, dtype=torch.uint8)
    clip = clip.repeat_interleave(8, 1).repeat_interleave(8, 2)
    path, out, mp4 = tmp_path / "in.mkv", tmp_path / "o.vkv", tmp_path / "back.mkv"
    write_video(path, clip, fps=10, codec="libx264rgb", crf=0)

    call("fit", path, out, "--psnr", "30", "--gop", "3", "--no-sheet")
    facts = json.loads(call("info", out, "--json"))
    assert "gaussian" in json.dumps(facts)
    assert "4 of 4 frame hashes checked" in call("verify", out)
    call("decode", out, mp4)
    with VideoReader(mp4) as reader:
        assert len(reader) == 4

    again = tmp_path / "again.vkv"
    work = gaussian.fit(Source(path), again, Goal(psnr=30.0), gop=3)
    next(work)
    work.close()
    assert "resume" in call("fit", path, again, "--psnr", "30", code=1)
    call("resume", again, "--no-sheet")
    assert again.read_bytes() == out.read_bytes()
    assert not state_path(again).exists()
    call("resume", again, code=1)

    data = bytearray(out.read_bytes())
    data[len(data) // 2] ^= 1
    out.write_bytes(data)
    call("verify", out, code=1)
