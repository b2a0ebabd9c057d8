"""The codec model "latent": LatentNeRV, see models/nerv/latent_nerv.py and nerv.py."""

from functools import partial

from . import nerv, nerv_append

fit = partial(nerv.fit, "latent")
resume = nerv.resume
append = nerv_append.append
