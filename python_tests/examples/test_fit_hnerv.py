"""The HNeRV example, small: it fits, interpolates and leaves its pictures."""

import importlib.util
import json
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "fit_hnerv.py"


def test_smoke(tmp_path):
    spec = importlib.util.spec_from_file_location("fit_hnerv", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    out = example.main(["--smoke", "--out", str(tmp_path)])
    assert {p.name for p in out.iterdir()} == {"sheet.png", "between.mp4", "log.json"}
    log = json.loads((out / "log.json").read_text())
    assert log["parameters"] == 26_025
    assert log["psnr"] > 10
