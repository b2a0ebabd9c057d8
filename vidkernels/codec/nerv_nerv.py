"""The codec model "nerv": NeRV, see models/nerv/nerv.py, nerv_published.py and nerv.py."""

from functools import partial

from . import nerv, nerv_append

fit = partial(nerv.fit, "nerv")
resume = nerv.resume
append = nerv_append.append
