"""Modules, by family."""

from vidkernels.nn.masking import *  # noqa: F403
from vidkernels.nn.masking import __all__ as _masking
from vidkernels.nn.splatting import *  # noqa: F403
from vidkernels.nn.splatting import __all__ as _splatting
from vidkernels.nn.tokens import *  # noqa: F403
from vidkernels.nn.tokens import __all__ as _tokens

__all__ = [*_masking, *_splatting, *_tokens]
