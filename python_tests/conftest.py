"""Options and fixtures of all tests."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, so before anything else

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="also run tests marked slow")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--runslow"):
            item.add_marker(pytest.mark.skip(reason="slow: needs --runslow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="gpu: no CUDA device on this machine"))


@pytest.fixture(autouse=True)
def _unwritten_outputs_show(monkeypatch):
    """Fill every kernel output with NaN (or 0x7f...) before the kernel, so that an element left out is seen."""
    from vidkernels import _pool

    def poisoned(shape, dtype, device):
        out = torch.empty(shape, dtype=dtype, device=device)
        return out.fill_(float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max)

    real = _pool.empty
    import sys

    for module in [m for name, m in sys.modules.items() if name.startswith("vidkernels.ops.")]:
        if getattr(module, "empty", None) is real:
            monkeypatch.setattr(module, "empty", poisoned)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def one_and_two_threads():
    """Call it with a function: its results at 1 and at 2 threads."""

    def run(function):
        before = torch.get_num_threads()
        try:
            results = []
            for n in (1, 2):
                torch.set_num_threads(n)
                results.append(function())
            return results
        finally:
            torch.set_num_threads(before)

    return run
