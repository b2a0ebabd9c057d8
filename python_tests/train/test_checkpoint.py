import os

import pytest
import torch

from vidkernels.train import CheckpointError, checkpoint, load_checkpoint, save_checkpoint


def state(step):
    return {"step": step, "weights": torch.arange(5000, dtype=torch.float32) + step}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "last.pt"


def test_round_trip_keeps_the_one_before_and_leaves_nothing_else(path):
    for step in (1, 2, 3):
        save_checkpoint(path, state(step))
    assert load_checkpoint(path)["step"] == 3
    assert torch.equal(load_checkpoint(path)["weights"], state(3)["weights"])
    assert load_checkpoint(checkpoint.previous(path))["step"] == 2
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.pt", "last.pt.prev"]


def flip(data, position):
    changed = bytearray(data)
    changed[position] ^= 0x10
    return bytes(changed)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "no checksum at the end of its 0 bytes"),
        (lambda data: data[:20], "no checksum at the end of its 20 bytes"),
        (lambda data: data[: len(data) // 2], "no checksum"),
        (lambda data: data[:-1], "no checksum"),
        (lambda data: flip(data, len(data) // 2), "do not match their checksum"),
        (lambda data: flip(data, 0), "do not match their checksum"),
        (lambda data: flip(data, -1), "do not match their checksum"),
        (lambda data: data + b"x", "no checksum"),
    ],
)
def test_damage_is_named_with_path_and_reason(damage, reason, path):
    save_checkpoint(path, state(1))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "HINT" in str(caught.value)


def test_damage_falls_back_to_the_one_before_with_a_warning(path):
    save_checkpoint(path, state(1))
    save_checkpoint(path, state(2))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="Continuing from"):
        assert load_checkpoint(path)["step"] == 1
    checkpoint.previous(path).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"last\.pt:[\s\S]*The one before[\s\S]*last\.pt\.prev:"):
        load_checkpoint(path)


def test_missing_file(path):
    with pytest.raises(CheckpointError, match="No such file"):
        load_checkpoint(path)


class Crash(Exception):
    pass


# The calls of one save, in order: fsync of the file, two renames, fsync of the folder.
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_crash_at_any_point_of_saving_leaves_a_complete_checkpoint(call, path, monkeypatch):
    save_checkpoint(path, state(1))
    calls = 0

    def crashing(real):
        def wrapped(*arguments):
            nonlocal calls
            calls += 1
            if calls == call:
                raise Crash
            return real(*arguments)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crashing(os.fsync))
        patch.setattr(os, "replace", crashing(os.replace))
        with pytest.raises(Crash):
            save_checkpoint(path, state(2))
    if call == 3:  # between the renames only the older file exists
        with pytest.warns(UserWarning, match="No such file"):
            assert load_checkpoint(path)["step"] == 1
    else:
        assert load_checkpoint(path)["step"] == (2 if call == 4 else 1)
    save_checkpoint(path, state(3))
    assert load_checkpoint(path)["step"] == 3


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("planted",))


def test_a_file_with_code_is_refused_and_not_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(path, {"step": Payload()})
    with pytest.raises(CheckpointError, match="only files of save_checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "planted").exists()
