"""The examples in the docstrings run, and the package says what it exports."""

import doctest

import pytest

from vidkernels import codec
from vidkernels.codec import entropy, writer


@pytest.mark.parametrize("module", [entropy, writer], ids=lambda m: m.__name__)
def test_examples_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_public_name_is_documented():
    assert codec.__all__ == sorted(codec.__all__)
    for name in codec.__all__:
        assert (getattr(codec, name).__doc__ or "").strip(), name
