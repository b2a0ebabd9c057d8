"""Stateless functions, by family."""

from vidkernels.functional.clustering import *  # noqa: F403
from vidkernels.functional.clustering import __all__ as _clustering
from vidkernels.functional.masking import *  # noqa: F403
from vidkernels.functional.masking import __all__ as _masking
from vidkernels.functional.nerv import *  # noqa: F403
from vidkernels.functional.nerv import __all__ as _nerv
from vidkernels.functional.quantize import *  # noqa: F403
from vidkernels.functional.quantize import __all__ as _quantize
from vidkernels.functional.splatting import *  # noqa: F403
from vidkernels.functional.splatting import __all__ as _splatting
from vidkernels.functional.tokens import *  # noqa: F403
from vidkernels.functional.tokens import __all__ as _tokens

__all__ = [*_clustering, *_masking, *_nerv, *_quantize, *_splatting, *_tokens]
