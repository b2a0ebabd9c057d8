"""fit, append, info, verify, decode and resume with the model "pfnr", once from end to end."""

import json

import pytest
import torch
from typer.testing import CliRunner

from vidkernels.cli import app
from vidkernels.codec import nerv_pfnr, nerv_plan, nerv_work
from vidkernels.codec import open as open_vkv
from vidkernels.codec.protocol import Goal, Source
from vidkernels.data import VideoReader, write_video

pytest.importorskip("av")
pytest.importorskip("safetensors")


def call(*words, code=0):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_two_videos_in_one_file(tmp_path, monkeypatch, generator):
    monkeypatch.setattr(nerv_plan, "_LEAST_STEPS", 12)
    monkeypatch.setattr(nerv_plan, "_MOST_STEPS", 12)
    monkeypatch.setattr(nerv_work, "_REPORT_EVERY", 0.0)
    clips = []
    for name, frames in (("a.mkv", 3), ("b.mkv", 2)):
        pixels = torch.randint(256, (frames, 6, 8, 3), generator=generator, dtype=torch.uint8)
        clips.append(tmp_path / name)
        write_video(
            clips[-1], pixels.repeat_interleave(8, 1).repeat_interleave(8, 2), fps=10, codec="libx264rgb", crf=0
        )
    out = tmp_path / "o.vkv"
    call("fit", clips[0], out, "--model", "pfnr", "--psnr", "10", "--gop", "2")
    with open_vkv(out) as video:
        first = video[:]
    alone = out.stat().st_size
    call("append", out, clips[1], "--size", "6000", "--no-sheet")
    assert out.stat().st_size - alone <= 6000
    facts = json.loads(call("info", out, "--json"))
    assert (facts["model"], facts["exact"], facts["frames"], facts["gops"]) == ("pfnr", False, 5, 3)
    assert "5 of 5 frame hashes checked" in call("verify", out)
    with open_vkv(out) as video:
        assert torch.equal(video[:3], first)
    call("decode", out, tmp_path / "fast.mkv", "--fps", "20")
    with VideoReader(tmp_path / "fast.mkv") as reader:
        assert len(reader) == 10

    copy = tmp_path / "copy.vkv"
    copy.write_bytes(out.read_bytes())
    for path in (out, copy):
        work = nerv_pfnr.append(path, Source(clips[0]), Goal(psnr=10.0))
        next(work)
        work.close()
        call("resume", path, "--no-sheet")
    assert copy.read_bytes() == out.read_bytes()
    assert "8 of 8 frame hashes checked" in call("verify", out)
