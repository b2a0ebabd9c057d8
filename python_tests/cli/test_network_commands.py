"""The commands on network models, once from end to end."""

import json

import pytest
import torch
from typer.testing import CliRunner

from vidkernels.cli import app
from vidkernels.codec import nerv_latent, nerv_plan, nerv_work
from vidkernels.codec.protocol import Goal, Source
from vidkernels.data import VideoReader, write_video

pytest.importorskip("av")
pytest.importorskip("safetensors")


def call(*words, code=0):
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.fixture
def clip(tmp_path, monkeypatch, generator):
    monkeypatch.setattr(nerv_plan, "_LEAST_STEPS", 24)
    monkeypatch.setattr(nerv_plan, "_MOST_STEPS", 24)
    frames = torch.randint(256, (4, 6, 8, 3), generator=generator, dtype=torch.uint8)
    frames = frames.repeat_interleave(8, 1).repeat_interleave(8, 2)
    write_video(tmp_path / "in.mkv", frames, fps=10, codec="libx264rgb", crf=0)
    return tmp_path / "in.mkv"


def test_fit_info_verify_decode_resume_append_compare(tmp_path, clip, monkeypatch):
    out = tmp_path / "o.vkv"
    call("fit", clip, out, "--model", "latent", "--psnr", "12", "--gop", "3")
    assert out.with_suffix(".sheet.png").exists()
    facts = json.loads(call("info", out, "--json"))
    assert (facts["model"], facts["exact"], facts["gops"]) == ("latent", True, 2)
    assert "4 of 4 frame hashes checked" in call("verify", out)

    call("decode", out, tmp_path / "fast.mkv", "--fps", "60")
    with VideoReader(tmp_path / "fast.mkv") as reader:
        assert (len(reader), reader.size, round(reader.fps)) == (24, (48, 64), 60)
    call("compare", clip, out, "--peers", "none", "--points", tmp_path / "p.json")
    points = json.loads((tmp_path / "p.json").read_text())["points"]
    assert points[0]["name"] == "latent"
    assert points[0]["bytes"] == out.stat().st_size

    again = tmp_path / "again.vkv"
    monkeypatch.setattr(nerv_work, "_REPORT_EVERY", 0.0)
    work = nerv_latent.fit(Source(clip), again, Goal(psnr=12.0), gop=3)
    next(work)
    work.close()
    assert "resume" in call("fit", clip, again, "--model", "latent", "--psnr", "12", code=1)
    call("resume", again, "--no-sheet")  # the state knows which model it is of
    assert again.read_bytes() == out.read_bytes()

    call("append", again, clip, "--size", "50kB", "--gop", "2")
    facts = json.loads(call("info", again, "--json"))
    assert (facts["frames"], facts["gops"]) == (8, 4)
    assert "8 of 8 frame hashes checked" in call("verify", again)
    assert again.with_suffix(".sheet.png").exists()

    data = bytearray(out.read_bytes())
    data[len(data) // 2] ^= 1
    out.write_bytes(data)
    call("verify", out, code=1)


def test_mask_profile_and_models_that_do_not_know_them(tmp_path, clip):
    pictures = pytest.importorskip("PIL.Image")
    hidden = pictures.new("L", (64, 48), 0)
    hidden.paste(255, (0, 0, 20, 48))
    hidden.save(tmp_path / "mask.png")
    usual = ("fit", clip, tmp_path / "o.vkv", "--psnr", "12", "--no-sheet")
    call(*usual, "--model", "latent", "--mask", tmp_path / "mask.png", "--float")
    assert not json.loads(call("info", tmp_path / "o.vkv", "--json"))["exact"]
    assert "profile: not exact" in call("verify", tmp_path / "o.vkv")
    for option in (("--mask", tmp_path / "mask.png"), ("--float",)):
        assert "--model latent" in call(*usual, *option, code=1)
