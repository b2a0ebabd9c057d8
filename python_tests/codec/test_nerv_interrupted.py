"""A fit of a network that is closed, stopped or killed goes on to the same bytes, or says why it cannot."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from codec.fits import run

from vidkernels.codec import nerv, nerv_latent, nerv_work
from vidkernels.codec.nerv_train import Trainer
from vidkernels.codec.protocol import Goal, Source, state_path

pytest.importorskip("av")
pytest.importorskip("safetensors")
pytestmark = pytest.mark.usefixtures("few_steps", "one_thread")
ROOT = Path(__file__).parents[2]


def fit(path, out, goal=None, **more):
    return nerv_latent.fit(Source(path), out, goal or Goal(bytes=60_000), gop=2, **more)


@pytest.mark.parametrize("goal", [Goal(bytes=7000), Goal(psnr=12.5)], ids=["bytes", "psnr"])
def test_closed_at_any_step_and_resumed_it_writes_the_same_bytes(source, tmp_path, goal, monkeypatch):
    """In every stage, also in the rounds that a goal out of reach adds."""
    monkeypatch.setattr(nerv_work, "_REPORT_EVERY", 0.0)
    path, _ = source(frames=3, height=24, width=32)
    reports, _ = run(fit(path, tmp_path / "whole.vkv", goal))
    expected = (tmp_path / "whole.vkv").read_bytes()
    stops = sorted({1, 7, 13, 22, reports[-1].done - 1})
    for stop in stops:
        out = tmp_path / f"o{stop}.vkv"
        work = fit(path, out, goal)
        for _ in range(stop):
            last = next(work)
        work.close()
        assert last.done == stop
        assert not out.exists()
        again, returned = run(nerv.resume(state_path(out)))
        assert returned.path == path
        assert again[0].elapsed >= last.elapsed
        assert again[-1].done == reports[-1].done
        assert out.read_bytes() == expected, f"closed after {stop} steps"
        assert not state_path(out).exists()


def test_with_a_mask(source, tmp_path, monkeypatch):
    monkeypatch.setattr(nerv_work, "_REPORT_EVERY", 0.0)
    pictures = pytest.importorskip("PIL.Image")
    path, _ = source(frames=3, height=24, width=32)
    mask = tmp_path / "mask.png"
    hidden = pictures.new("L", (32, 24), 0)
    hidden.paste(255, (10, 10, 20, 20))
    hidden.save(mask)
    run(fit(path, tmp_path / "whole.vkv", mask=mask))
    work = fit(path, tmp_path / "o.vkv", mask=mask)
    for _ in range(15):
        next(work)
    work.close()
    data = mask.read_bytes()
    mask.write_bytes(data + b"x")
    with pytest.raises(ValueError, match="no longer the mask"):
        run(nerv.resume(state_path(tmp_path / "o.vkv")))
    mask.write_bytes(data)
    run(nerv.resume(state_path(tmp_path / "o.vkv")))
    assert (tmp_path / "o.vkv").read_bytes() == (tmp_path / "whole.vkv").read_bytes()


def test_interrupted_inside_a_step(source, tmp_path, monkeypatch):
    """Ctrl-C does not wait for a step to end: what is kept is the state before it."""
    path, _ = source(frames=3, height=24, width=32)
    run(fit(path, tmp_path / "whole.vkv"))
    out, real = tmp_path / "o.vkv", Trainer.advance

    def interrupted(self, *args):
        if self.at == 19:
            real(self, *args)
            raise KeyboardInterrupt
        real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(fit(path, out))
    run(nerv.resume(state_path(out)))
    assert out.read_bytes() == (tmp_path / "whole.vkv").read_bytes()


def test_killed_and_resumed(source, tmp_path):
    path, _ = source(frames=4, height=24, width=32)
    program = (
        "import sys\nfrom vidkernels.codec import nerv_latent, nerv_plan, nerv_work\n"
        "from vidkernels.codec.protocol import Goal, Source\n"
        "nerv_work._SAVE_EVERY = nerv_work._REPORT_EVERY = 0.0\n"
        "nerv_plan._LEAST_STEPS = nerv_plan._MOST_STEPS = 24\nnerv_plan._LOOKS = 3\n"
        "for report in nerv_latent.fit(Source(sys.argv[1]), sys.argv[2], Goal(bytes=60_000), gop=2):\n"
        "    print(report.done, flush=True)\n"
    )
    run(fit(path, tmp_path / "whole.vkv"))
    out = tmp_path / "o.vkv"
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(path), str(out)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    while child.stdout.readline().strip() != "15":
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert state_path(out).exists()
    run(nerv.resume(state_path(out)))
    assert out.read_bytes() == (tmp_path / "whole.vkv").read_bytes()


def test_a_damaged_state_is_refused(source, tmp_path, monkeypatch):
    from safetensors.numpy import load, save

    path, _ = source()
    monkeypatch.setattr(nerv_work, "_REPORT_EVERY", 0.0)
    work = fit(path, tmp_path / "o.vkv")
    next(work)
    work.close()
    state = state_path(tmp_path / "o.vkv")
    data = state.read_bytes()
    for damage in (b"", data[: len(data) // 2], b"\xff" * len(data)):
        state.write_bytes(damage)
        with pytest.raises(ValueError, match="resume"):
            run(nerv.resume(state))
    arrays, size = load(data), int.from_bytes(data[:8], "little")
    facts = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["facts"])
    for key in facts:
        if key not in ("start", "end", "size"):
            state.write_bytes(save(arrays, {"facts": json.dumps({k: v for k, v in facts.items() if k != key})}))
            with pytest.raises(ValueError, match="resume"):
                run(nerv.resume(state))
    for name in ("value/latents", "value/head.weight"):
        state.write_bytes(save({k: v for k, v in arrays.items() if k != name}, {"facts": json.dumps(facts)}))
        with pytest.raises(ValueError, match="resume"):
            run(nerv.resume(state))
    state.write_bytes(save(arrays, {"facts": json.dumps({**facts, "model": "octree"})}))
    with pytest.raises(ValueError, match="resume"):
        run(nerv.resume(state))


def test_another_source_under_the_same_name_is_refused(source, tmp_path, monkeypatch):
    path, _ = source()
    monkeypatch.setattr(nerv_work, "_REPORT_EVERY", 0.0)
    work = fit(path, tmp_path / "o.vkv")
    next(work)
    work.close()
    source(height=40)
    with pytest.raises(ValueError, match="no longer the file"):
        run(nerv.resume(state_path(tmp_path / "o.vkv")))
    assert state_path(tmp_path / "o.vkv").exists()
