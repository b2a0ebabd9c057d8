import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "examples" / "merge_tokens_video.py"


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[PATH.stem] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[PATH.stem]


def test_smoke_run_writes_the_picture(example, tmp_path, capsys):
    from matplotlib import image

    example.main(["--smoke", "--share", "0.25", "--out", str(tmp_path)])
    log = json.loads((tmp_path / "log.json").read_text())
    assert log["tokens"] == 32
    assert log["merged"] == 8
    assert log["in_several_frames"] > 0
    assert image.imread(tmp_path / "merged.png")[..., :3].std() > 0.05
    assert "32 tokens -> 8" in capsys.readouterr().out


def test_equal_frames_merge_first(example):
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (1, 48, 48, 3), generator=generator, dtype=torch.uint8)
    features = example.patch_colours(frame.expand(4, 48, 48, 3), (2, 16, 16))
    merging = example.merge_features(features, 0.5, steps=1)
    assert torch.equal(merging.source()[0, :9], merging.source()[0, 9:])


def test_paint_draws_every_token_in_its_mean_colour(example):
    video = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    video[:, :, 4:] = 200
    picture = example.paint(video, torch.tensor([0, 1, 0, 1]), (1, 4, 4))
    assert picture[0, 5, 1].tolist() == [0, 0, 0]
    assert picture[0, 5, 5].tolist() == [200, 200, 200]
    assert (picture[0, :, 4] == 255).all()  # the border between the two
    whole = example.paint(video, torch.tensor([0, 0, 0, 0]), (1, 4, 4))
    assert (whole == 100).all()


def test_reads_a_checkpoint_of_the_pretraining_example(example, tmp_path):
    from vidkernels import methods
    from vidkernels.models import VideoViTConfig
    from vidkernels.train.checkpoint import save_checkpoint

    cls = methods.get("videomae")
    model = cls(
        cls.Config(VideoViTConfig(width=128, depth=2, heads=2), VideoViTConfig(width=48, depth=1, heads=2), (2, 8, 8))
    )
    save_checkpoint(tmp_path / "checkpoint.pt", {"model": model.state_dict()})
    loaded = example.Encoder(tmp_path / "checkpoint.pt")
    video = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    assert tuple(loaded.tube) == (2, 8, 8)
    # All 8 tokens, through the encoder whose weights these are.
    tokens = model.embed(video.unsqueeze(0)) + example.grid_positions((2, 2, 2), 128)
    torch.testing.assert_close(loaded(video), model.encoder(tokens))
