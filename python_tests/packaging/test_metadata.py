"""The files that describe the package agree with each other."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def name_of(requirement):
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower().replace("_", "-")


def test_every_dependency_and_tool_is_pinned():
    extras = PROJECT["project"]["optional-dependencies"]
    needed = {name_of(r) for r in PROJECT["project"]["dependencies"]}
    needed |= {name_of(r) for extra in ("video", "triton", "plot", "samples", "bench", "dev") for r in extras[extra]}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pinned = {name_of(line) for line in lines if "==" in line.split(";")[0]}
    assert needed - {"vidkernels"} <= pinned


def test_version_is_that_of_the_changelog():
    version = re.search(r'"(.+)"', (ROOT / "vidkernels/_version.py").read_text())[1]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert version == next(h for h in headings if h != "Unreleased")


def test_pypi_toolchain_is_the_same_in_the_extra_and_in_the_build():
    (override,) = PROJECT["tool"]["scikit-build"]["overrides"]
    assert override["build"]["requires"] == PROJECT["project"]["optional-dependencies"]["cuda-toolchain"]


def test_every_make_target_is_in_the_help():
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY: (.+)$", makefile, re.M)[1].split())
    listed = set(re.findall(r"^([a-z0-9-]+):.*##", makefile, re.M))
    assert phony - listed == {"configure"}


@pytest.mark.slow
def test_sdist_builds_from_a_clean_tree_and_has_what_the_build_needs(tmp_path):
    import tarfile

    tree = tmp_path / "tree"
    tree.mkdir()
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        if not (ROOT / name).is_file():
            continue
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", str(tmp_path), str(tree)],
        capture_output=True,
        check=True,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {n.split("/", 1)[1] for n in tar.getnames() if "/" in n}
    needed = {"CMakeLists.txt", "cmake/cuda.cmake", "cmake/cpu_kernels.cmake", "csrc/module.cpp", "pyproject.toml"}
    needed |= {f for f in files if f.startswith(("csrc/ops/", "csrc/core/", "csrc/device/", "vidkernels/"))}
    assert needed <= names, sorted(needed - names)
    assert not [n for n in names if n.endswith((".so", ".pyc"))]
