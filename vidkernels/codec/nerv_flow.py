"""The codec model "flow": FlowNeRV between coded key frames, see models/nerv/flow_nerv.py, keys.py and nerv.py."""

from functools import partial

from . import nerv

fit = partial(nerv.fit, "flow")
resume = nerv.resume
