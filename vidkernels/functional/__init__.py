"""Stateless functions, by family."""

from vidkernels.functional.masking import *  # noqa: F403
from vidkernels.functional.masking import __all__ as _masking

__all__ = [*_masking]
