import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from vidkernels import data

PATH = Path(__file__).parents[2] / "examples" / "edit_gaussian_video.py"


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[PATH.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[PATH.stem]


PICTURES = ("fit", "flow", "depth", "tracks", "recoloured", "removed", "moved", "stereo")


def test_smoke_run_writes_everything(example, tmp_path, capsys):
    from matplotlib import image

    example.main(["--smoke", "--out", str(tmp_path)])
    log = json.loads((tmp_path / "log.json").read_text())
    video = example.synthetic(5, (24, 36)).video / 255
    flat = float(-10 * torch.log10((video - video.mean((0, 1, 2))).square().mean()))
    assert log["psnr_db"] > flat + 2
    assert 0 < log["selected"] < log["gaussians"]
    for name in PICTURES:
        assert image.imread(tmp_path / f"{name}.png")[..., :3].std() > 0.02
    assert "Gaussians" in capsys.readouterr().out


def test_smoke_run_on_a_real_clip(example, tmp_path):
    pytest.importorskip("av")
    try:
        data.sample_clip()
    except RuntimeError as missing:
        pytest.skip(str(missing))
    example.main(["--smoke", "--clip", "bigbuckbunny", "--out", str(tmp_path)])
    assert (tmp_path / "removed.png").exists()


def test_block_matching_finds_a_shift(example):
    texture = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video = torch.stack([texture[4:34, 6:46], texture[6:36, 3:43]])  # the content goes 3 right and 2 up
    flow, trusted = example.match_blocks(video)
    inner = (slice(None), slice(8, -8), slice(8, -8))
    assert torch.equal(flow[0][inner], torch.tensor([3.0, -2.0]).view(2, 1, 1).expand_as(flow[0][inner]))
    assert trusted[0][inner[1:]].all()
