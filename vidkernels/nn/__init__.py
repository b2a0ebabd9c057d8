"""Drop-in modules, by family."""

from vidkernels.nn.masking import *  # noqa: F403
from vidkernels.nn.masking import __all__ as _masking

__all__ = [*_masking]
