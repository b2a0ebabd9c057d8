"""Stateless functions, by family."""

from vidkernels.functional.masking import *  # noqa: F403
from vidkernels.functional.masking import __all__ as _masking
from vidkernels.functional.splatting import *  # noqa: F403
from vidkernels.functional.splatting import __all__ as _splatting

__all__ = [*_masking, *_splatting]
