"""What importing the package costs and drags in, and what happens when the compiled module is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
HEAVY = ("triton", "av", "typer", "rich", "matplotlib", "timm", "transformers", "torchvision", "skimage")
WITHOUT_C = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "vidkernels._C":
            raise ImportError("blocked by the test")

sys.meta_path.insert(0, Blocker())
"""


def python(code, *arguments):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_nothing_heavy():
    loaded = json.loads(
        python(
            "import sys, json, torch; before = set(sys.modules); import vidkernels;"
            "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
        )
    )
    assert "vidkernels" in loaded
    assert not set(loaded) & set(HEAVY)


def test_without_the_compiled_module_the_reference_works():
    says = python(
        WITHOUT_C
        + """
import torch, vidkernels as vk
tokens = torch.arange(12.0).reshape(1, 4, 3).requires_grad_()
out = vk.functional.gather_tokens(tokens, torch.tensor([[3, 1]]))
assert torch.equal(out, tokens[:, [3, 1]])
out.sum().backward()
assert tokens.grad.sum(2).tolist() == [[0, 3, 0, 3]]
facts = vk.info()
assert "blocked by the test" in facts["native"], facts
assert "blocked by the test" in facts["ops"]["gather_tokens"]["cpu"], facts
assert facts["ops"]["gather_tokens"]["reference"] is None
try:
    vk.functional.gather_tokens(tokens, torch.tensor([[3, 1]]), backend="cpu")
except RuntimeError as error:
    assert "blocked by the test" in str(error), error
else:
    raise AssertionError("a forced backend fell back")
print("reference works")
"""
    )
    assert "reference works" in says


def test_info_command_says_why_the_compiled_module_is_missing():
    text = python(WITHOUT_C + "from vidkernels.cli import main; main()", "info")
    assert "blocked by the test" in " ".join(text.split())
    assert "gather_tokens" in text


def test_info_command_as_json():
    from vidkernels._version import __version__
    from vidkernels.cli import app

    result = CliRunner().invoke(app, ["info", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.output)
    assert facts["version"] == __version__
    assert facts["threads"] >= 1
    assert facts["native"]["isa"] in ("base", "v2", "v3", "v4")
    assert facts["ops"]["gather_tokens"]["reference"] is None
    assert facts["ops"]["gather_tokens"]["cpu"] is None


def test_info_command_as_tables():
    from vidkernels.cli import app

    result = CliRunner().invoke(app, ["info"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for word in ("version", "isa", "threads", "cuda", "triton", "gather_tokens", "runs on"):
        assert word in result.output, result.output


def test_the_module_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "vidkernels", "info", "--json"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["ops"]


@pytest.mark.parametrize("wish", ["v2", "v3"])
def test_a_lower_instruction_set_can_be_forced(wish):
    from vidkernels import _native

    if _native._C.build_info()["isa"] in ("base", "v2"):
        pytest.skip("this machine has nothing to lower")
    code = """
import os, sys
os.environ["VIDKERNELS_ISA"] = sys.argv[1]
import vidkernels as vk
print(vk.info()["native"]["isa"])
"""
    assert python(code, wish).strip() == wish
