"""The compression example, small: it fits, decodes, compares and leaves its pictures."""

import importlib.util
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "compress_video.py"


def test_smoke(tmp_path):
    spec = importlib.util.spec_from_file_location("compress_video", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    out = example.main(["--smoke", "--out", str(tmp_path)])
    names = {p.name for p in out.iterdir()}
    assert {"clip.vkv", "clip.mp4", "sheet.png", "rd.png", "rd.json"} <= names
    assert not any(name.endswith(".state") for name in names)
