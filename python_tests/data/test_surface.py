import doctest
import importlib
import inspect

import pytest

import vidkernels.data as data


@pytest.mark.parametrize("name", data.__all__)
def test_every_name_loads_and_is_documented(name):
    assert inspect.getdoc(getattr(data, name))


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="nothing"):
        _ = data.nothing
    assert set(data.__all__) <= set(dir(data))


@pytest.mark.parametrize("module", ["reader", "sampler", "scene"])
def test_examples_run(module):
    result = doctest.testmod(importlib.import_module(f"vidkernels.data.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
