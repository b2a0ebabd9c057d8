"""The codec model "hnerv": HNeRV, see models/nerv/hnerv.py, nerv_published.py and nerv.py."""

from functools import partial

from . import nerv

fit = partial(nerv.fit, "hnerv")
resume = nerv.resume
