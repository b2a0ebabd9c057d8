import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def load(name):
    """The emulator modules need neither torch nor the package: load them by path."""
    found = sorted((ROOT / "vidkernels").glob(f"{name}.*.so"))
    if not found:
        pytest.skip(f"vidkernels/{name} is not built (make build)")
    spec = importlib.util.spec_from_file_location(name, found[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_modules = {}


def _module(name):
    if name not in _modules:
        _modules[name] = load(name)
    module = _modules[name]
    module.simt_configure()
    module.simt_reset_counters()
    return module


@pytest.fixture
def fast():
    return _module("_simt")


@pytest.fixture
def trace():
    return _module("_simt_trace")


@pytest.fixture(params=["_simt", "_simt_trace"])
def simt(request):
    """Both builds, one after the other."""
    return _module(request.param)


@pytest.fixture(scope="session")
def bug_lines():
    """name -> line of its `// BUG name` mark in selftest_bugs.cu."""
    text = (ROOT / "csrc/simt/selftest_bugs.cu").read_text().splitlines()
    found = {}
    for number, line in enumerate(text, 1):
        if mark := re.search(r"// BUG (\w+)", line):
            found[mark[1]] = number
    return found
