"""`make new-op` gives an op that builds and keeps every contract before a line of it is changed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = [sys.executable, str(ROOT / "tools" / "new_op.py")]


def run(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, **options)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "reason"),
    [("", "snake_case"), ("MergeRows", "snake_case"), ("class", "snake_case"), ("gather_tokens", "already there")],
)
def test_unusable_names_are_refused(name, reason):
    code, text = run([*TOOL, name])
    assert code != 0
    assert reason in text


@pytest.mark.slow
def test_a_new_op_builds_and_keeps_the_contract(tmp_path):
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.split():
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    code, text = run([*TOOL, "pick_rows", "--root", str(tmp_path)])
    assert code == 0, text
    assert "csrc/ops/pick_rows/pick_rows_cuda.cu" in text
    copied = [p for p in tmp_path.rglob("*pick_rows*") if p.is_file()]
    copied += list((tmp_path / "vidkernels/ops/pick_rows").glob("*.py"))
    assert not [p for p in copied if "gather_tokens" in p.read_text() or "GatherTokens" in p.read_text()]

    env = os.environ | {"PYTHONPATH": str(tmp_path), "MAKEFLAGS": ""}
    code, text = run(["make", "build", "SIMT=OFF", "OPS=pick_rows", f"PY={sys.executable}"], cwd=tmp_path, env=env)
    assert code == 0, text[-4000:]
    tests = ["python_tests/test_contract.py", "python_tests/ops/test_pick_rows.py", "python_tests/test_layering.py"]
    code, text = run([sys.executable, "-m", "pytest", *tests, "-k", "pick_rows"], cwd=tmp_path, env=env)
    assert code == 0, text[-4000:]
    assert "passed" in text
    code, text = run([sys.executable, "-m", "ruff", "check", "."], cwd=tmp_path, env=env)
    assert code == 0, text[-4000:]
