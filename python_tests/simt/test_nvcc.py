"""The kernels that the emulator runs are CUDA: nvcc compiles the same files for every supported card."""

import pathlib
import shutil
import subprocess

import pytest

CSRC = pathlib.Path(__file__).parents[2] / "csrc"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["selftest", "selftest_bugs"])
def test_nvcc_compiles_the_selftest(name, tmp_path):
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("no nvcc on this machine")
    archs = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90, 100, 120)]
    source, out = CSRC / "simt" / f"{name}.cu", tmp_path / "out.o"
    done = subprocess.run(
        [nvcc, "-std=c++20", "-I", CSRC, *archs, "-c", source, "-o", out], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size > 0
