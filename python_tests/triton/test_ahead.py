"""Every Triton kernel compiles to a cubin for every architecture, without a GPU."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from vidkernels.ops._triton.ahead import ARCHITECTURES, variants


def compile_all(tmp_path, *names):
    """In a process of its own: this one interprets. A fresh cache, or an old cubin could hide an error."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "vidkernels.ops._triton.ahead", *names], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_compiles_for_every_architecture(tmp_path):
    results = compile_all(tmp_path)
    expected = {(op, v.name, sm) for op, v in variants() for sm in ARCHITECTURES}
    assert {(r["op"], r["variant"], r["sm"]) for r in results} == expected
    assert len(expected) >= 16
    for r in results:
        assert r["cubin_bytes"] > 1000
        assert 0 < r["reg"] <= 255
        assert r["local"] == 0, f"spills: {r}"
        assert r["stack"] == 0, f"local memory: {r}"
