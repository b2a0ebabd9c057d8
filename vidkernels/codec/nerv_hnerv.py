"""The codec model "hnerv": HNeRV, see models/nerv/hnerv.py, nerv_published.py and nerv.py."""

from functools import partial

from . import nerv, nerv_append

fit = partial(nerv.fit, "hnerv")
resume = nerv.resume
append = nerv_append.append
