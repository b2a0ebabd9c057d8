"""The PFNR example, small: two clips in one network, and the first one stays."""

import importlib.util
import json
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "fit_pfnr.py"


def test_smoke(tmp_path):
    spec = importlib.util.spec_from_file_location("fit_pfnr", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    out = example.main(["--smoke", "--out", str(tmp_path)])
    assert {p.name for p in out.iterdir()} == {"sheet-0.png", "sheet-1.png", "log.json"}
    clips = json.loads((out / "log.json").read_text())["clips"]
    assert [clip["unchanged"] for clip in clips] == [True, True]
    assert min(clip["psnr"] for clip in clips) > 10
    assert 0 < clips[1]["new_weights"] < clips[0]["new_weights"]
