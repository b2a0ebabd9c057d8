"""A fit of the Gaussian codec that is closed, stopped or killed goes on to the same bytes, or says why it cannot."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from codec.fits import fit, run

from vidkernels import _native
from vidkernels.codec import clip, gaussian
from vidkernels.codec.protocol import Goal, Source, state_path

pytest.importorskip("av")
pytest.importorskip("safetensors")
pytestmark = [
    pytest.mark.skipif(_native._C is None, reason="needs the compiled module"),
    pytest.mark.usefixtures("little_work"),
]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("goal", [Goal(bytes=4000), Goal(psnr=33.0)], ids=["bytes", "psnr"])
def test_closed_at_any_frame_and_resumed_it_writes_the_same_bytes(source, tmp_path, goal):
    path, _ = source(frames=5)
    fit(path, tmp_path / "whole.vkv", goal, gop=2)
    expected = (tmp_path / "whole.vkv").read_bytes()
    for stop in range(6):
        out = tmp_path / f"o{stop}.vkv"
        work = gaussian.fit(Source(path), out, goal, gop=2)
        for _ in range(stop):
            next(work)
        work.close()
        if stop == 0:
            assert not state_path(out).exists()  # it had not begun
            continue
        assert state_path(out).exists()
        assert not out.exists()
        reports, returned = run(gaussian.resume(state_path(out)))
        assert returned.path == path
        assert reports[-1].done == 5
        assert out.read_bytes() == expected, f"closed after {stop} frames"
        assert not state_path(out).exists()


def test_interrupted_again_and_again(source, tmp_path):
    path, _ = source(frames=6)
    fit(path, tmp_path / "whole.vkv", gop=4)
    out = tmp_path / "o.vkv"
    work = gaussian.fit(Source(path), out, Goal(psnr=30.0), gop=4)
    elapsed = []
    for _ in range(6):
        elapsed.append(next(work).elapsed)
        work.close()
        work = gaussian.resume(state_path(out))
    run(work)
    assert elapsed == sorted(elapsed)
    assert out.read_bytes() == (tmp_path / "whole.vkv").read_bytes()


@pytest.mark.parametrize("name", ["fit_change", "block_motion", "encode_passes", "frame_hash", "fit_key", "encode_key"])
def test_interrupted_inside_a_frame(source, tmp_path, monkeypatch, name):
    """Ctrl-C does not wait for a frame to end."""
    path, _ = source(frames=5)
    fit(path, tmp_path / "whole.vkv", gop=3)
    out, calls, real = tmp_path / "o.vkv", [], getattr(gaussian, name)

    def interrupted(*args):
        calls.append(0)
        result = real(*args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(gaussian, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(path, out, gop=3)
    run(gaussian.resume(state_path(out)))
    assert out.read_bytes() == (tmp_path / "whole.vkv").read_bytes()


def test_interrupted_while_the_file_is_written(source, tmp_path, monkeypatch):
    path, _ = source(frames=3)
    fit(path, tmp_path / "whole.vkv")
    out = tmp_path / "o.vkv"
    with monkeypatch.context() as patch:
        patch.setattr(clip, "read_audio", lambda path: (_ for _ in ()).throw(OSError("disk")))
        with pytest.raises(OSError, match="disk"):
            fit(path, out)
    assert not out.exists()
    run(gaussian.resume(state_path(out)))
    assert out.read_bytes() == (tmp_path / "whole.vkv").read_bytes()


def test_killed_and_resumed(source, tmp_path):
    path, _ = source(frames=5)
    program = (
        "import sys\nfrom vidkernels.codec import gaussian\nfrom vidkernels.codec.protocol import Goal, Source\n"
        "gaussian._SAVE_EVERY = 0.0\n"
        "from dataclasses import replace\nplan = gaussian.plan_for\n"
        "gaussian.plan_for = lambda *a: replace(plan(*a), key_steps=24, steps=6)\n"
        "for report in gaussian.fit(Source(sys.argv[1]), sys.argv[2], Goal(bytes=4000), gop=3):\n"
        "    print(report.done, flush=True)\n"
    )
    fit(path, tmp_path / "whole.vkv", Goal(bytes=4000), gop=3)
    out = tmp_path / "o.vkv"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(path), str(out)], stdout=subprocess.PIPE, text=True, env=environment
    )
    while child.stdout.readline().strip() != "2":
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    if state_path(out).exists():  # unless it was quicker than the signal
        run(gaussian.resume(state_path(out)))
    assert out.read_bytes() == (tmp_path / "whole.vkv").read_bytes()


def _stopped(path, out):
    work = gaussian.fit(Source(path), out, Goal(psnr=30.0), gop=3)
    next(work), next(work)
    work.close()
    return state_path(out)


def test_a_damaged_state_is_refused(source, tmp_path):
    path, _ = source()
    state = _stopped(path, tmp_path / "o.vkv")
    data = state.read_bytes()
    for damage in (b"", data[:7], data[: len(data) // 2], data[:-1], b"\xff" * len(data), b"{}" + data):
        state.write_bytes(damage)
        with pytest.raises(ValueError, match="resume"):
            run(gaussian.resume(state))
    from safetensors.numpy import load, save

    arrays = load(data)
    size = int.from_bytes(data[:8], "little")
    facts = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["facts"])
    for key in facts:
        if key not in ("start", "end", "size", "out"):
            state.write_bytes(save(arrays, {"facts": json.dumps({k: v for k, v in facts.items() if k != key})}))
            with pytest.raises(ValueError, match="resume"):
                run(gaussian.resume(state))
    state.write_bytes(save(arrays, {"facts": json.dumps({**facts, "version": 2})}))
    with pytest.raises(ValueError, match="version 2"):
        run(gaussian.resume(state))
    for name in ("variance", "symbols", "lengths", "hashes"):
        state.write_bytes(save({k: v for k, v in arrays.items() if k != name}, {"facts": json.dumps(facts)}))
        with pytest.raises(ValueError, match="resume"):
            run(gaussian.resume(state))


def test_a_state_without_its_source_is_refused_and_kept(source, tmp_path):
    path, _ = source()
    state = _stopped(path, tmp_path / "o.vkv")
    path.rename(tmp_path / "elsewhere.mkv")
    with pytest.raises((ValueError, OSError), match=r"in\.mkv"):
        run(gaussian.resume(state))
    assert state.exists()


def test_another_source_under_the_same_name_is_refused(source, tmp_path):
    path, _ = source()
    state = _stopped(path, tmp_path / "o.vkv")
    source(height=40)
    with pytest.raises(ValueError, match="no longer the file"):
        run(gaussian.resume(state))
    assert state.exists()


def test_without_safetensors_it_does_not_begin(source, tmp_path, monkeypatch):
    path, _ = source()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"vidkernels\[codec\]"):
        fit(path, tmp_path / "o.vkv")
    assert not (tmp_path / "o.vkv").exists()
