import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidkernels.train import CheckpointError, load_checkpoint

PROGRAM = Path(__file__).with_name("tiny_run.py")


@pytest.fixture(scope="module")
def uninterrupted(tiny_run):
    run = tiny_run.trainer(None)
    report = run.fit()
    assert report.step == tiny_run.STEPS
    assert not report.interrupted
    return run.model.state_dict(), report.losses


def assert_same_bits(state, expected):
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key].view(torch.uint8), value.view(torch.uint8)), key


def test_two_runs_agree_and_training_changes_the_weights(tiny_run, uninterrupted):
    again = tiny_run.trainer(None)
    start = {key: value.clone() for key, value in again.model.state_dict().items()}
    again.fit()
    assert_same_bits(again.model.state_dict(), uninterrupted[0])
    unchanged = [key for key, value in start.items() if torch.equal(value, uninterrupted[0][key])]
    assert unchanged == []


# Before, on and after a checkpoint; in the first, second and last epoch (three steps each).
@pytest.mark.parametrize("at", [1, 4, 5, 11, 22])
def test_ctrl_c_then_resume_gives_the_same_bits(at, tiny_run, uninterrupted, tmp_path):
    path = tmp_path / "last.pt"
    report = tiny_run.trainer(path, at=at, number=signal.SIGINT).fit()
    assert (report.step, report.interrupted) == (at, True)
    torch.manual_seed(99)  # the state must come from the file, not from this process
    resumed = tiny_run.trainer(path)
    report = resumed.fit(resume=True)
    assert (report.step, report.interrupted) == (tiny_run.STEPS, False)
    assert report.losses == uninterrupted[1]
    assert_same_bits(resumed.model.state_dict(), uninterrupted[0])


@pytest.mark.parametrize("at", [3, 13])
def test_kill_between_checkpoints_then_resume_gives_the_same_bits(at, tiny_run, uninterrupted, tmp_path):
    path = tmp_path / "last.pt"
    command = [sys.executable, PROGRAM, path]
    killed = subprocess.run([*command, "--signal", "SIGKILL", "--at", str(at)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    if at > tiny_run.EVERY:
        assert load_checkpoint(path)["step"] == (at - 1) // tiny_run.EVERY * tiny_run.EVERY
    else:
        assert not path.exists()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"step {tiny_run.STEPS} interrupted False"
    assert_same_bits(load_checkpoint(path)["model"], uninterrupted[0])


def test_loader_processes_do_not_change_the_result(tiny_run, uninterrupted):
    assert tiny_run.trainer(None, workers=2).fit().losses == uninterrupted[1]


@pytest.fixture
def ctrl_c_interrupts():
    """Python's own handler, which a shell that starts tests in the background takes away."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_second_ctrl_c_stops_at_once(tiny_run, monkeypatch):
    run = tiny_run.trainer(None, at=4, number=signal.SIGINT)
    fetch = type(run.batches.dataset).__getitem__

    def twice(data, index):
        clip = fetch(data, index)
        if data.requests == data.at:
            signal.raise_signal(signal.SIGINT)
        return clip

    monkeypatch.setattr(type(run.batches.dataset), "__getitem__", twice)
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_checkpoint_of_other_settings_is_refused(tiny_run, tmp_path):
    path = tmp_path / "last.pt"
    tiny_run.trainer(path, steps=2).fit()
    with pytest.raises(CheckpointError, match=r"steps : 2 in the file, 23 now[\s\S]*HINT"):
        tiny_run.trainer(path).fit(resume=True)
    # How often to save is no part of what is computed.
    assert tiny_run.trainer(path, steps=2, checkpoint_every=1).fit(resume=True).step == 2


def test_resume_without_a_file_starts_from_the_beginning(tiny_run, tmp_path):
    report = tiny_run.trainer(tmp_path / "none.pt", steps=2).fit(resume=True)
    assert len(report.losses) == 2


def test_damaged_last_checkpoint_resumes_from_the_one_before(tiny_run, uninterrupted, tmp_path):
    path = tmp_path / "last.pt"
    tiny_run.trainer(path, at=12, number=signal.SIGINT).fit()
    path.write_bytes(path.read_bytes()[:-1000])
    resumed = tiny_run.trainer(path)
    with pytest.warns(UserWarning, match=r"last\.pt[\s\S]*Continuing from .*\.prev"):
        resumed.fit(resume=True)
    assert_same_bits(resumed.model.state_dict(), uninterrupted[0])
