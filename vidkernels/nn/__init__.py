"""Modules, by family."""

from vidkernels.nn.clustering import *  # noqa: F403
from vidkernels.nn.clustering import __all__ as _clustering
from vidkernels.nn.masking import *  # noqa: F403
from vidkernels.nn.masking import __all__ as _masking
from vidkernels.nn.nerv import *  # noqa: F403
from vidkernels.nn.nerv import __all__ as _nerv
from vidkernels.nn.quantize import *  # noqa: F403
from vidkernels.nn.quantize import __all__ as _quantize
from vidkernels.nn.splatting import *  # noqa: F403
from vidkernels.nn.splatting import __all__ as _splatting
from vidkernels.nn.tokens import *  # noqa: F403
from vidkernels.nn.tokens import __all__ as _tokens

__all__ = [*_clustering, *_masking, *_nerv, *_quantize, *_splatting, *_tokens]
