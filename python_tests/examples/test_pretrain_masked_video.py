import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from vidkernels import data
from vidkernels.train import load_checkpoint

PATH = Path(__file__).parents[2] / "examples" / "pretrain_masked_video.py"


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("av")
    pytest.importorskip("matplotlib")
    try:
        data.sample_clip()
    except RuntimeError as missing:
        pytest.skip(str(missing))
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[PATH.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[PATH.stem]


def test_smoke_run_writes_everything(example, tmp_path, capsys):
    example.main(["--smoke", "--out", str(tmp_path)])
    written = {file.name for file in tmp_path.iterdir()}
    assert {"checkpoint.pt", "log.json", "loss.png", "reconstruction.png"} <= written
    log = json.loads((tmp_path / "log.json").read_text())
    assert len(log["losses"]) == log["steps"] == example.PRESETS["smoke"].steps
    assert set(log["psnr_db"]) == set(example.CLIPS)
    from matplotlib import image

    for name in ("loss.png", "reconstruction.png"):
        picture = image.imread(tmp_path / name)
        assert min(picture.shape[:2]) > 300
        assert picture[..., :3].std() > 0.02
    assert "reconstruction.png" in capsys.readouterr().out


def test_resumed_run_ends_with_the_same_weights(example, tmp_path, monkeypatch):
    arguments = ["--smoke", "--quiet", "--precision", "fp32", "--out"]
    example.main([*arguments, str(tmp_path / "straight")])

    # Ctrl-C while the second step's clips are loaded.
    import signal

    fetch, calls = data.VideoClipDataset.__getitem__, 0

    def interrupting(dataset, index):
        nonlocal calls
        calls += 1
        if calls == 3:
            signal.raise_signal(signal.SIGINT)
        return fetch(dataset, index)

    with monkeypatch.context() as patch:
        patch.setattr(data.VideoClipDataset, "__getitem__", interrupting)
        example.main([*arguments, str(tmp_path / "stopped")])
    assert load_checkpoint(tmp_path / "stopped" / "checkpoint.pt")["step"] == 2
    assert not (tmp_path / "stopped" / "log.json").exists()
    example.main([*arguments, str(tmp_path / "stopped"), "--resume"])

    straight = load_checkpoint(tmp_path / "straight" / "checkpoint.pt")
    resumed = load_checkpoint(tmp_path / "stopped" / "checkpoint.pt")
    assert torch.equal(straight["losses"], resumed["losses"])
    for key, value in straight["model"].items():
        assert torch.equal(value, resumed["model"][key]), key


def test_psnr_closed_form(example):
    # Two tubes of one frame; half of the masked one is 0, half 20: its mean misses by 10 everywhere.
    original = torch.zeros(1, 1, 2, 4, 3, dtype=torch.uint8)
    original[..., 1::2, :] = 20
    guess = original.clone()
    guess[:, :, :, 2:] += 5
    result = {"original": original, "reconstruction": guess, "mask": torch.tensor([[False, True]])}
    score = example.psnr(result, (1, 2, 2))
    assert score["prediction"] == pytest.approx(10 * torch.log10(torch.tensor(255**2 / 25)).item())
    assert score["mean_colour"] == pytest.approx(10 * torch.log10(torch.tensor(255**2 / 100)).item())
